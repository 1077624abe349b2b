"""
python -m pytest tests/test_parallel.py       DDP and FSDP: equal to one process, resume on any other, the end of a run
"""

import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, knobs, run

import distill as D
import loop
import train
from plumbing.checkpoints import load_checkpoint, save_checkpoint

KNOBS = dict(
    ema=0.9,
    eval_interval=2,
    gradient_accumulation_steps=4,
    eval_iters=1,
    log_interval=1,
    dtype="float32",
)


def launch(*script, **kw):
    """Runs it on two processes -> (stdout, stderr)."""
    ok = kw.pop("ok", True)
    args = [f"--{k}={v}" for k, v in kw.items()]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return run(*launcher, *script, *args, ok=ok, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT})


def assert_same(one, other, log="log.jsonl", atol=2e-5):
    """Two checkpoint files: the same but for the order of a sum, which Adam magnifies where a gradient is nearly 0."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    parts = "model_config", "model", "ema", "optimizer", "step", "meta", "val_loss"
    (a, spec_a), (b, spec_b) = (
        torch.utils._pytree.tree_flatten([c[k] for k in parts]) for c in (a, b)
    )
    assert spec_a == spec_b  # the same keys in the same order
    for x, y in zip(a, b, strict=True):
        if isinstance(x, (torch.Tensor, float)):
            torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)  # also type and shape
        else:
            assert x == y
    logs = [
        [r["loss"] for r in map(json.loads, open(p.parent / log)) if "loss" in r]
        for p in (one, other)
    ]
    np.testing.assert_allclose(*logs, atol=2e-4)


@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_sharded_or_not_two_processes_train_as_one(objective, markov, tmp_path, capsys):
    """Embedding rows that do not divide, head tied or not, and a clip that meets some of the gradients only."""
    kw = {
        **TINY,
        **KNOBS,
        "dataset": markov,
        "objective": objective,
        "tie_weights": objective == "diffusion",
    }
    kw |= dict(max_iters=4, sample_interval=4, grad_clip=1.9, dropout=0.1)
    kw["pos"] = "rope" if objective == "diffusion" else "learned"
    train.main(knobs(tmp_path / "one", **kw))
    sample = re.search(r"--- step 4\n.*\n---", capsys.readouterr().out)[0]
    for fsdp in (True, False):
        out, _ = launch("train.py", **kw, fsdp=fsdp, out_dir=tmp_path / str(fsdp))
        assert out.count(sample) == 1 and out.count("--- step") == 1
        assert_same(tmp_path / "one/ckpt.pt", tmp_path / str(fsdp) / "ckpt.pt")


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train.main(knobs(folder, dataset=markov, learning_rate=3e-3))
    return str(folder / "ckpt.pt")


def test_sharded_or_not_two_processes_distill_as_one(teacher, tmp_path):
    """Two rounds, the second with the optimizer of the first."""
    kw = {
        **KNOBS,
        "teacher": teacher,
        "rounds": 2,
        "iters_per_round": 3,
        "orig_steps": 8,
        "batch_size": 4,
    }
    kw |= dict(
        reset_optimizer=False,
        warmup_iters=1,
        learning_rate=1e-3,
        eval_interval=3,
        grad_clip=0.02,
        device="cpu",
    )
    one = dict(kw, out_dir=str(tmp_path / "one"))
    D.main(type(D.cfg)(**{**vars(D.cfg), **one}))
    for fsdp in (True, False):
        launch("distill.py", **kw, fsdp=fsdp, out_dir=tmp_path / str(fsdp))
        for r in (1, 2):
            assert_same(tmp_path / f"one/round_{r}.pt", tmp_path / str(fsdp) / f"round_{r}.pt")


WATCHED = """
import os, runpy, sys, torch
import data
from configurator import UserError
from torch.optim.optimizer import register_optimizer_step_post_hook

def held(optimizer, *_):
    parts = [getattr(x, "_local_tensor", x) for p, s in optimizer.state.items() for x in (p, *s.values())]
    sys.stdout.write(f"holds {sum(x.untyped_storage().nbytes() for x in parts)} bytes\\n")

def batch(*args, real=data.batch, calls=[]):
    calls.append(1)
    if os.environ["RANK"] == FAILS and len(calls) == 5:
        raise UserError("the disk of this process is gone")
    return real(*args)

data.batch = batch
register_optimizer_step_post_hook(held)
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("fsdp", [True, False])
def test_a_run_continues_on_more_and_on_fewer_processes(fsdp, markov, tmp_path):
    """And in shards each process holds half of the weights and optimizer, also of those that were read from a file."""
    kw = {**TINY, **KNOBS, "dataset": markov, "lr_schedule": "constant", "dropout": 0.1}
    train.main(knobs(tmp_path / "whole", **kw, max_iters=6))
    train.main(knobs(tmp_path / "parts", **kw, max_iters=2))
    kw |= dict(init_from="resume", out_dir=str(tmp_path / "parts"))
    (tmp_path / "watched.py").write_text(WATCHED.replace("FAILS", "None"))
    out, _ = launch(tmp_path / "watched.py", "train.py", **kw, fsdp=fsdp, max_iters=4)
    saved = load_checkpoint(tmp_path / "parts/ckpt.pt")
    assert saved["step"] == 4
    whole = (
        3 * 4 * sum(p.numel() for p in saved["model"].values())
    )  # with AdamW's two moments, float32
    held = [int(n) / whole for n in re.findall(r"holds (\d+) bytes", out)]
    assert len(held) == 4 and all(0.45 < h < 0.6 if fsdp else 0.99 < h < 1.1 for h in held)
    train.main(knobs(**{"tmp_path": tmp_path, **kw}, max_iters=6))
    assert_same(tmp_path / "whole/ckpt.pt", tmp_path / "parts/ckpt.pt")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="counts pages as Linux does")
def test_under_torchrun_a_process_reads_only_the_shards_that_it_takes(tmp_path, monkeypatch):
    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20  # MB

    moments = torch.ones(2**25)  # 128 MB
    save_checkpoint(tmp_path / "x.pt", {"model_config": {}, "optimizer": moments})
    monkeypatch.setenv("WORLD_SIZE", "8")
    before = resident()
    saved = load_checkpoint(str(tmp_path / "x.pt"))
    assert resident() - before < 8
    assert saved["optimizer"][: 2**22].clone().sum() == 2**22  # an eighth
    assert resident() - before < 48  # the shard, its copy, what the kernel reads ahead


def test_a_process_that_fails_ends_the_run_and_says_why(markov, tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED.replace("FAILS", "'1'"))
    kw = {
        **TINY,
        **KNOBS,
        "dataset": markov,
        "fsdp": True,
        "eval_interval": 1,
        "out_dir": tmp_path / "run",
    }
    _, said = launch(tmp_path / "watched.py", "train.py", **kw, ok=False)
    assert "the disk of this process is gone" in said
    assert load_checkpoint(tmp_path / "run/ckpt.pt")["step"] in (
        1,
        2,
    )  # 2 if the first was done writing


def test_what_does_not_go_with_shards_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "start them with torchrun" in refused(loop.check_loop, knobs(tmp_path, fsdp=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for kw in (dict(vocab_parallel=True), dict(kd_data="student")):
        said = refused(
            D.refuse_odd_distillation, type(D.cfg)(**{**vars(D.cfg), **kw, "fsdp": True})
        )
        assert "--vocab_parallel=True nor --kd_data=student" in said
