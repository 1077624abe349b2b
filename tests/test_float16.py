"""
python -m pytest tests/test_float16.py

float16, what a T4 trains in: the loss is scaled, and a step that overflows is skipped
"""

import types

import pytest
import torch
from conftest import knobs
from test_train import equal_states, log_of
from test_train import trained as checkpoint_of

import distill
import loop
import train
from drafters import load_model
from plumbing.checkpoints import load_checkpoint
from plumbing.hardware import pick_device
from plumbing.training import make_scaler

DEBUG = dict(block_size=32, n_embd=64, min_lr=1.0)  # the shape of config/debug.py


def test_only_float16_scales_the_loss():
    for dtype, scales in (("float32", False), ("bfloat16", False), ("float16", True)):
        device, autocast, _ = pick_device("cpu", dtype)
        assert make_scaler(device, autocast).is_enabled() == scales


@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_float16_learns_as_float32_does(objective, pydoc, tmp_path):
    """The mean loss of every 10 steps is the same to 0.005 nats, of 4.4 to 3.1."""
    kw = dict(dataset=pydoc, objective=objective, max_iters=60, eval_interval=60, warmup_iters=10)
    logs = []
    for dtype in ("float32", "float16"):
        saved = checkpoint_of(knobs(tmp_path / dtype, dtype=dtype, **DEBUG, **kw))
        logs.append(log_of(tmp_path / dtype))
        assert saved["model"]["wte.weight"].dtype == torch.float32
    for a, b in zip(*logs, strict=True):
        key = "loss" if "loss" in a else "val_loss"
        assert a[key] == pytest.approx(b[key], abs=0.005)


def huge_scaler(device, autocast):
    return torch.amp.GradScaler(device.type, init_scale=2.0**100)


def test_a_step_that_overflows_is_skipped_and_a_resumed_run_goes_on_from_its_scale(
    pydoc, tmp_path, monkeypatch
):
    kw = dict(dataset=pydoc, dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_scaler", huge_scaler)
        saved = checkpoint_of(knobs(tmp_path, **kw))
    untrained, _ = train.make_model(knobs(tmp_path / "new", **kw), saved["meta"])
    for name, weight in untrained.state_dict().items():
        assert torch.equal(saved["model"][name], weight)
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {0}
    assert saved["scaler"]["scale"] == 2.0**94  # halved in each of 6 steps
    saved = checkpoint_of(knobs(tmp_path, **kw, init_from="resume", max_iters=7))
    assert saved["scaler"]["scale"] == 2.0**93


def test_n_plus_n_steps_in_float16_equal_2n(pydoc, tmp_path, monkeypatch):
    kw = dict(dataset=pydoc, dtype="float16", dropout=0.1, ema=0.9)
    whole = checkpoint_of(knobs(tmp_path / "whole", **kw))
    checkpoint_of(knobs(tmp_path / "parts", **kw, max_iters=3))
    parts = checkpoint_of(knobs(tmp_path / "parts", **kw, init_from="resume"))
    assert equal_states(whole, parts)
    assert whole["scaler"] == parts["scaler"] and whole["scaler"]["_growth_tracker"] == 6


@pytest.mark.parametrize("first, then", [("float32", "float16"), ("float16", "float32")])
def test_a_run_may_be_resumed_in_another_format(first, then, pydoc, tmp_path):
    checkpoint_of(knobs(tmp_path, dataset=pydoc, dtype=first))
    kw = dict(dataset=pydoc, init_from="resume", max_iters=8)
    saved = checkpoint_of(knobs(tmp_path, dtype=then, **kw))
    assert bool(saved["scaler"]) == (then == "float16")


@pytest.mark.parametrize(
    "objective, method, more",
    [
        ("diffusion", "sdtt", dict(orig_steps=4, rounds=2, reset_optimizer=False)),
        ("ar", "kd", dict(drafter="lstm", divergence="kl_fwd", kd_data="student")),
    ],
)
def test_students_and_drafters_learn_in_float16(objective, method, more, trained, tmp_path):
    few = dict(iters_per_round=2, eval_interval=2, eval_iters=1, batch_size=4, n_embd=16)
    few |= dict(gradient_accumulation_steps=1, device="cpu", dtype="float16", out_dir=str(tmp_path))
    kw = {**vars(distill.cfg), **few, **more, "method": method, "teacher": trained[objective]}
    distill.main(types.SimpleNamespace(**kw))
    path = f"{tmp_path}/{'round_2' if method == 'sdtt' else 'ckpt'}.pt"
    assert load_checkpoint(path)["scaler"]["_growth_tracker"] > 0
    model, _ = load_model(path)
    assert all(p.isfinite().all() for p in model.parameters())
