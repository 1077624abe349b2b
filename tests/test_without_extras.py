"""
python -m pytest tests/test_without_extras.py          the core works where extras/ is deleted
"""

import os
import shutil

import pytest
from conftest import ROOT, run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project without extras/."""
    copy = tmp_path_factory.mktemp("core") / "project"
    left = ("extras", "out", ".*", "__pycache__", "*.bin", "*.png", "shared")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left))
    assert not os.path.exists(copy / "extras")
    return copy


TOY = ["--block_size=32", "--n_layer=1", "--n_head=2", "--n_embd=32", "--max_iters=4"]
SMALL = ["--batch_size=8", "--eval_interval=2", "--eval_iters=1", "--warmup_iters=1"]
SMALL += ["--device=cpu", "--dtype=float32"]


@pytest.mark.slow
def test_a_copy_without_extras_trains_distills_samples_and_evaluates(project, pydoc):
    def command(*args, **kw):
        return run(*args, cwd=project, **kw)

    ar = "out/ar/ckpt.pt"
    diffusion = "out/diffusion/ckpt.pt"
    toy = [*TOY, *SMALL, f"--dataset={pydoc}"]
    command("train.py", *toy, "--objective=ar", "--out_dir=out/ar")
    command("train.py", *toy, f"--init_from={ar}", "--out_dir=out/diffusion")
    command("train.py", *toy, "--arch=ngram", "--ngram_n=3", "--out_dir=out/ngram")

    few = [*SMALL, "--iters_per_round=2", "--gradient_accumulation_steps=1"]
    rounds = ["--rounds=2", "--orig_steps=8", "--sampler=spread", "--out_dir=out/sdtt"]
    command("distill.py", *few, *rounds, f"--teacher={diffusion}")
    command("distill.py", *few, "--method=kd", f"--teacher={ar}", "--out_dir=out/lstm")

    student = "out/sdtt/round_2.pt"
    said, _ = command("sample.py", f"--ckpt={diffusion},{student}", "--num_samples=1", "--steps=4")
    assert "sample 1" in said
    gpt = ["sample.py", f"--ckpt={ar}", "--num_samples=1", "--gamma=2"]
    said, _ = command(*gpt, "--draft=out/lstm/ckpt.pt")
    assert "tokens were drafted" in said

    few = ["--num_samples=8", "--device=cpu", "--out=out/eval"]
    models = [f"--ckpt={diffusion},{student},{ar}", f"--evaluator={ar}", "--eval_blocks=8"]
    parts = ["--what=nelbo,genppl,selfbleu,frontier,latency", "--steps=2", "--latency_batch=1"]
    command("eval.py", *parts, *models, *few, "--temperatures=1,0.5")
    assert os.path.exists(project / "out" / "eval" / "eval.json")
    drafters = ["--draft=out/lstm/ckpt.pt,out/ngram/ngram.txt,lookup", "--what=acceptance"]
    said, _ = command("eval.py", f"--ckpt={ar}", *drafters, *few)
    assert "lookup" in said


def test_a_name_that_only_an_extra_knows_is_one_line_without_extras(project):
    for name in ("gpt2", "hf:gpt2", "mdlm-owt"):
        _, said = run("sample.py", f"--ckpt={name}", ok=False, cwd=project)
        assert f"There is no checkpoint {name}" in said
        assert said.count("\n") == 1
