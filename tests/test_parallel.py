"""
python -m pytest tests/test_parallel.py

DDP and FSDP: equal to one process, resume on any number
"""

import json
import os
import re
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, knobs, run

import distill as D
import loop
import train
from plumbing.checkpoints import load_checkpoint, save_checkpoint
from plumbing.checks import check_distillation
from plumbing.parallel import parallel_loss

pytestmark = pytest.mark.slow
KNOBS = dict(eval_interval=2, eval_iters=1, gradient_accumulation_steps=4, ema=0.9, dtype="float32")


def launch(*script, **kw):
    """Runs it on two processes -> (stdout, stderr)."""
    ok = kw.pop("ok", True)
    args = [f"--{k}={v}" for k, v in kw.items()]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return run(*launcher, *script, *args, ok=ok, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT})


def losses_of(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def assert_equal_runs(one, other):
    """
    Two checkpoint files: equal except for the order of a sum, which Adam magnifies where a gradient
    is nearly 0.
    """
    names = ("model_config", "model", "ema", "optimizer", "step", "meta", "val_loss")
    flat = []
    for path in (one, other):
        saved = load_checkpoint(path)
        flat.append(torch.utils._pytree.tree_flatten([saved[name] for name in names]))
    (a, spec_a), (b, spec_b) = flat
    assert spec_a == spec_b  # the same keys in the same order
    for x, y in zip(a, b, strict=True):
        if isinstance(x, (torch.Tensor, float)):
            torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)  # also type and shape
        else:
            assert x == y
    np.testing.assert_allclose(losses_of(one.parent), losses_of(other.parent), atol=2e-4)


@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_sharded_or_not_two_processes_train_as_one(objective, markov, tmp_path, capsys):
    """Rows that do not divide, head tied or not, a clip that changes only some of the gradients."""
    kw = {**TINY, **KNOBS, "dataset": markov, "objective": objective}
    kw |= dict(max_iters=4, sample_interval=4, grad_clip=1.9, dropout=0.1)
    kw["tie_weights"] = objective == "diffusion"
    kw["pos"] = "rope" if objective == "diffusion" else "learned"
    train.main(knobs(tmp_path / "one", **kw))
    sample = re.search(r"--- step 4\n.*\n---", capsys.readouterr().out)[0]
    for fsdp in (True, False):
        out, _ = launch("train.py", **kw, fsdp=fsdp, out_dir=tmp_path / str(fsdp))
        assert out.count(sample) == 1
        assert out.count("--- step") == 1
        assert_equal_runs(tmp_path / "one/ckpt.pt", tmp_path / str(fsdp) / "ckpt.pt")


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train.main(knobs(folder, dataset=markov, learning_rate=3e-3))
    return str(folder / "ckpt.pt")


def test_sharded_or_not_two_processes_distill_as_one(teacher, tmp_path):
    """Two rounds, the second with the optimizer of the first."""
    kw = dict(KNOBS, teacher=teacher, rounds=2, iters_per_round=3, orig_steps=8, batch_size=4)
    kw |= dict(reset_optimizer=False, warmup_iters=1, learning_rate=1e-3, grad_clip=0.02)
    kw |= dict(eval_interval=3, device="cpu")
    one = dict(kw, out_dir=str(tmp_path / "one"))
    D.main(types.SimpleNamespace(**{**vars(D.cfg), **one}))
    for fsdp in (True, False):
        launch("distill.py", **kw, fsdp=fsdp, out_dir=tmp_path / str(fsdp))
        for r in (1, 2):
            assert_equal_runs(
                tmp_path / f"one/round_{r}.pt", tmp_path / str(fsdp) / f"round_{r}.pt"
            )


WATCHED = """
import os, runpy, sys, torch
import data
from configurator import UserError
from torch.optim.optimizer import register_optimizer_step_post_hook

def held(optimizer, *_):
    n_bytes = 0
    for p, state in optimizer.state.items():
        for x in (p, *state.values()):
            n_bytes += getattr(x, "_local_tensor", x).untyped_storage().nbytes()
    sys.stdout.write(f"holds {n_bytes} bytes\\n")

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
    """In shards each process holds half of weights and optimizer, also of what a file held."""
    kw = {**TINY, **KNOBS, "dataset": markov, "min_lr": 1.0, "dropout": 0.1}
    train.main(knobs(tmp_path / "whole", **kw, max_iters=6))
    train.main(knobs(tmp_path / "parts", **kw, max_iters=2))
    kw |= dict(init_from="resume", out_dir=str(tmp_path / "parts"))
    (tmp_path / "watched.py").write_text(WATCHED.replace("FAILS", "None"))
    out, _ = launch(tmp_path / "watched.py", "train.py", **kw, fsdp=fsdp, max_iters=4)
    saved = load_checkpoint(tmp_path / "parts/ckpt.pt")
    assert saved["step"] == 4
    # with AdamW's two moments, float32
    whole = 3 * 4 * sum(p.numel() for p in saved["model"].values())
    held = [int(n) / whole for n in re.findall(r"holds (\d+) bytes", out)]
    assert len(held) == 4
    for fraction in held:
        assert 0.45 < fraction < 0.6 if fsdp else 0.99 < fraction < 1.1
    train.main(knobs(tmp_path, **kw, max_iters=6))
    assert_equal_runs(tmp_path / "whole/ckpt.pt", tmp_path / "parts/ckpt.pt")


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
    kw = {**TINY, **KNOBS, "dataset": markov, "fsdp": True, "eval_interval": 1}
    kw["out_dir"] = tmp_path / "run"
    _, said = launch(tmp_path / "watched.py", "train.py", **kw, ok=False)
    assert "the disk of this process is gone" in said
    # 2 if the first process was done writing
    assert load_checkpoint(tmp_path / "run/ckpt.pt")["step"] in (1, 2)


def test_what_does_not_go_with_shards_raises(tmp_path, monkeypatch, error_of):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = error_of(loop.check_loop, knobs(tmp_path, fsdp=True))
    assert "torchrun --standalone" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = types.SimpleNamespace(**{**vars(D.cfg), "kd_data": "student", "fsdp": True})
    assert "--kd_data=student" in error_of(check_distillation, cfg)
    no_blocks = types.SimpleNamespace()
    said = error_of(parallel_loss, no_blocks, None, torch.device("cpu"), 2, True)
    assert "--fsdp=False" in said
