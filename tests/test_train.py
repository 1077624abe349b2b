"""
python -m pytest tests/test_train.py

the loop: exact resume, kill -9, conversion, learning, mistakes
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, knobs, run, way_to

import data
import loop
import model as M
import train
from drafters import load_model
from plumbing import runs
from plumbing.checkpoints import checkpoint_hint, load_checkpoint, save_checkpoint

slow = pytest.mark.slow


def equal_states(a, b):
    """Two checkpoints' weights, averages, optimizer states and steps, bit for bit."""
    names = ("model", "ema", "optimizer", "step")
    flat = [torch.utils._pytree.tree_leaves([c[name] for name in names]) for c in (a, b)]
    for x, y in zip(*flat, strict=True):
        if not (torch.equal(x, y) if torch.is_tensor(x) else x == y):
            return False
    return True


def trained(cfg):
    train.main(cfg)
    return load_checkpoint(os.path.join(cfg.out_dir, "ckpt.pt"))


def log_of(folder):
    """-> log.jsonl without what differs from run to run."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


# --------------------------------------------------------------------------------------------------
# the loop


@pytest.mark.parametrize("objective", ["ar", "diffusion"])
def test_two_functions_stand_between_the_command_and_the_loss(objective, pydoc, tmp_path):
    cfg = knobs(tmp_path, dataset=pydoc, objective=objective)
    way = way_to(train, f"{objective}_loss", lambda: train.main(cfg))
    assert way == ["train.py:main", "loop.py:fit"]


def test_validation_and_samples_do_not_change_training(pydoc, tmp_path):
    kw = dict(dataset=pydoc, dropout=0.1)
    seldom = trained(knobs(tmp_path / "a", **kw))
    often = dict(eval_interval=1, sample_interval=1, eval_iters=5)
    assert equal_states(seldom, trained(knobs(tmp_path / "b", **kw, **often)))


def test_accumulated_steps_are_one_big_batch_in_pieces(pydoc, tmp_path):
    """Two forward passes of 4 sequences take the gradient of the mean over all 8."""
    kw = dict(dataset=pydoc, objective="ar", max_iters=1, grad_clip=0.0, dtype="float32")
    cfg = knobs(tmp_path, gradient_accumulation_steps=2, **kw)
    corpus = data.load(pydoc)
    model, _ = train.make_model(cfg, corpus.meta)
    at_once, _ = train.make_model(cfg, corpus.meta)
    batches = []

    def loss(model, batch, generator):
        batches.append(batch)
        return M.ar_loss(model, batch)

    def get_batch(generator):
        return data.batch(corpus.train, 4, 17, generator)

    loop.fit(model, loss, get_batch, cfg, lambda *_: 0.0, lambda *_: None)
    assert len(batches) == 2
    assert not torch.equal(*batches)
    optimizer = loop.make_optimizer(at_once, cfg)
    loop.set_learning_rate(optimizer, 0, cfg)
    M.ar_loss(at_once, torch.cat(batches)).backward()
    optimizer.step()
    for a, b in zip(model.parameters(), at_once.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_learning_rate_warms_up_and_decays():
    cfg = knobs("x", learning_rate=1.0, warmup_iters=4, max_iters=14, min_lr=0.1)
    rates = [loop.learning_rate_at(step, cfg) for step in range(15)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.55)
    assert rates[14] == pytest.approx(0.1)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    cfg.min_lr = 1.0
    assert loop.learning_rate_at(13, cfg) == 1.0


def test_only_matrices_decay(pydoc, tmp_path):
    cfg = knobs(tmp_path, dataset=pydoc, weight_decay=0.3)
    model, _ = train.make_model(cfg, data.load(pydoc).meta)
    matrices, vectors = loop.make_optimizer(model, cfg).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}


def test_the_average_starts_fast_and_is_what_gets_loaded(pydoc, tmp_path):
    saved = trained(knobs(tmp_path, dataset=pydoc, ema=0.999))
    model, checkpoint = load_model(str(tmp_path / "ckpt.pt"))
    assert torch.equal(model.wte.weight, saved["ema"]["wte.weight"])
    assert not torch.equal(saved["ema"]["wte.weight"], saved["model"]["wte.weight"])
    assert not {"model", "ema", "optimizer"} & checkpoint.keys()
    weights = {n: torch.zeros(2) for n in ("a", "b")}
    module = torch.nn.ParameterDict({n: torch.nn.Parameter(torch.ones(2)) for n in ("a", "b")})
    loop.update_averages(weights, module, 0, 0.999)
    assert weights["a"].tolist() == pytest.approx([0.9, 0.9])  # the random start counts 1 / 10
    loop.update_averages(weights, module, 10**6, 0.999)
    assert weights["a"].tolist() == pytest.approx([0.9001, 0.9001])


@pytest.mark.parametrize("objective", ["ar", "diffusion"])
@slow
def test_the_loss_approaches_the_known_entropy_from_above(objective, markov, tmp_path):
    """On a language whose entropy is known, 600 steps come within 0.1 nats, and never below."""
    meta = data.load(markov).meta
    kw = dict(n_embd=64, batch_size=64, max_iters=600, eval_interval=600, learning_rate=3e-3)
    kw |= dict(dataset=markov, objective=objective, warmup_iters=20, eval_iters=30)
    saved = trained(knobs(tmp_path, **kw))
    floor = (meta["stationary_entropy"] + 15 * meta["entropy_rate"]) / 16  # of 16 tokens
    if objective == "ar":
        floor = meta["entropy_rate"]  # its first token is context
    assert -0.02 < saved["val_loss"] - floor < 0.1


# --------------------------------------------------------------------------------------------------
# exact resume


@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_n_plus_n_steps_equal_2n(objective, pydoc, tmp_path, monkeypatch):
    kw = dict(dataset=pydoc, objective=objective, dropout=0.1, ema=0.9, random_length=0.5)
    whole = trained(knobs(tmp_path / "whole", **kw))
    calls = []
    real = data.batch

    def batch(*args):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "batch", batch)
        train.main(knobs(tmp_path / "parts", **kw))  # stopped in step 5, step 3 is saved
    parts = trained(knobs(tmp_path / "parts", **kw, init_from="resume"))
    assert equal_states(whole, parts)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    assert [r["step"] for r in log_of(tmp_path / "parts")] == [3, 3, 6, 6]


def interrupting(times):
    """-> data.batch, with so many Ctrl-C in its fourth call."""
    real = data.batch
    calls = []

    def batch(*args):
        calls.append(1)
        if len(calls) == 4:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return real(*args)

    return batch


@pytest.mark.parametrize("times, saved", [(1, 4), (2, 3)])
def test_ctrl_c_ends_after_the_step_and_saves_it_twice_at_once(
    times, saved, pydoc, tmp_path, monkeypatch, capfd
):
    whole = trained(knobs(tmp_path / "whole", dataset=pydoc, ema=0.9))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "batch", interrupting(times))
        train.main(knobs(tmp_path / "parts", dataset=pydoc, ema=0.9))
    assert "This step is the last" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert load_checkpoint(f"{tmp_path}/parts/ckpt.pt")["step"] == saved
    parts = trained(knobs(tmp_path / "parts", dataset=pydoc, ema=0.9, init_from="resume"))
    assert equal_states(whole, parts)


def test_a_training_leaves_ctrl_c_to_whom_it_belongs(pydoc, tmp_path, monkeypatch):
    """A shell makes what it runs in the background deaf to it; a program may have its own use."""
    deaf = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained(knobs(tmp_path / "deaf", dataset=pydoc))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, deaf)
    trained(knobs(tmp_path / "done", dataset=pydoc))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


TOY = dict(block_size=16, n_layer=2, n_head=2, n_embd=16, batch_size=4)
TOY |= dict(warmup_iters=2, eval_iters=1, ema=0.9, dropout=0.1, device="cpu")


def as_arguments(**kw):
    return [f"--{name}={value}" for name, value in kw.items()]


@slow
def test_a_run_killed_at_random_moments_ends_bit_identical(pydoc, tmp_path):
    args = as_arguments(dataset=pydoc, **TOY, max_iters=400, eval_interval=20)
    run("train.py", *args, f"--out_dir={tmp_path}/whole")
    log = tmp_path / "killed" / "log.jsonl"
    kills = 0
    rng = random.Random(0)
    for _ in range(12):
        resume = ["--init_from=resume"] if (tmp_path / "killed" / "ckpt.pt").exists() else []
        process = subprocess.Popen(
            [sys.executable, "train.py", *args, f"--out_dir={tmp_path}/killed", *resume],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = log.stat().st_mtime if log.exists() else 0
        while process.poll() is None and not (log.exists() and log.stat().st_mtime > before):
            time.sleep(0.01)  # until training has begun
        try:
            process.wait(timeout=rng.random() * 0.7 if kills < 3 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0
    assert kills >= 2
    whole = load_checkpoint(tmp_path / "whole" / "ckpt.pt")
    assert equal_states(whole, load_checkpoint(tmp_path / "killed" / "ckpt.pt"))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")


def test_the_shape_of_a_resumed_run_is_its_own_and_that_is_said(pydoc, tmp_path, capsys):
    was = trained(knobs(tmp_path, dataset=pydoc))["model_config"]
    assert "the shape is that of" not in capsys.readouterr().out
    kw = dict(init_from="resume", max_iters=7, n_embd=48, n_head=4)
    resumed = trained(knobs(tmp_path, dataset=pydoc, **kw))
    assert resumed["model_config"] == was
    said = f"the shape is that of {tmp_path}: n_head 2, n_embd 16"
    assert said in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["n_head"], config["n_embd"]) == (2, 16)


def test_a_finished_run_resumes_to_nothing(pydoc, tmp_path, capsys):
    train.main(knobs(tmp_path, dataset=pydoc))
    before = (tmp_path / "ckpt.pt").read_bytes()
    train.main(knobs(tmp_path, dataset=pydoc, init_from="resume"))
    assert "already trained for 6 steps" in capsys.readouterr().out
    assert (tmp_path / "ckpt.pt").read_bytes() == before


def test_two_runs_never_share_a_folder(pydoc, tmp_path, error_of):
    """Not even before the first checkpoint. The lock of a run that was killed is gone with it."""
    hold = f"from plumbing.runs import claim; claim({str(tmp_path)!r}); "
    hold += "print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    assert "Another run is writing" in error_of(train.main, knobs(tmp_path, dataset=pydoc))
    assert sorted(os.listdir(tmp_path)) == ["lock"]
    other.kill()
    other.wait()
    train.main(knobs(tmp_path, dataset=pydoc, max_iters=1))


@slow
def test_two_processes_train_as_one(pydoc, tmp_path):
    """Same global batch, same noise, same loss; equal except for the order of a sum."""
    kw = {**TOY, "dropout": 0.0, "gradient_accumulation_steps": 4, "max_iters": 6}
    args = ["train.py", *as_arguments(dataset=pydoc, **kw, eval_interval=1, dtype="float32")]
    run(*args, f"--out_dir={tmp_path}/one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run(*launcher, *args, f"--out_dir={tmp_path}/two", env={"OMP_NUM_THREADS": "1"})
    one = load_checkpoint(tmp_path / "one" / "ckpt.pt")["model"]
    two = load_checkpoint(tmp_path / "two" / "ckpt.pt")["model"]
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4)
    losses = [[r["loss"] for r in log_of(tmp_path / d) if "loss" in r] for d in ("one", "two")]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, atol=2e-4)
    odd = ["--gradient_accumulation_steps=3", f"--out_dir={tmp_path}/x"]
    _, said = run(*launcher, *args, *odd, ok=False)
    assert "does not divide into 2 processes" in said


# --------------------------------------------------------------------------------------------------
# conversion


def test_a_gpt_converts_to_diffusion_and_back(pydoc, tmp_path):
    gpt = trained(knobs(tmp_path / "gpt", dataset=pydoc, objective="ar", ema=0.5))["ema"]
    kw = dict(dataset=pydoc, max_iters=1, learning_rate=0.0, block_size=32, n_embd=64)
    init = dict(objective="diffusion", init_from=str(tmp_path / "gpt" / "ckpt.pt"))
    diffusion = trained(knobs(tmp_path / "d", **kw, **init))
    assert diffusion["model_config"]["n_embd"] == 16  # the checkpoint's
    assert diffusion["model_config"]["block_size"] == 32  # the knob's
    rows = diffusion["model"]["wte.weight"]
    assert torch.equal(rows[:-1], gpt["wte.weight"])
    torch.testing.assert_close(rows[-1], gpt["wte.weight"].mean(0))
    init = dict(objective="ar", init_from=str(tmp_path / "d" / "ckpt.pt"))
    back = trained(knobs(tmp_path / "b", **kw, **init))
    assert torch.equal(back["model"]["wte.weight"], gpt["wte.weight"])


# --------------------------------------------------------------------------------------------------
# what goes wrong


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_checkpoint(
    pydoc, tmp_path, monkeypatch, error_of
):
    calls = []
    real = M.diffusion_loss

    def loss(*args, **kw):
        calls.append(1)
        return real(*args, **kw) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(train, "diffusion_loss", loss)
    said = error_of(train.main, knobs(tmp_path, dataset=pydoc))
    assert "nan at step 5" in said
    assert "learning rate" in said
    assert str(tmp_path / "ckpt.pt") in said
    assert load_checkpoint(tmp_path / "ckpt.pt")["step"] == 3


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate(
    pydoc, tmp_path, monkeypatch, error_of
):
    """Whatever the next ones are: all of them are read after some steps."""
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(train, "diffusion_loss", lambda *args, **kw: nan * 1)
    for kw in ({}, {"max_iters": 12, "eval_interval": 12}):
        said = error_of(train.main, knobs(tmp_path / str(len(kw)), dataset=pydoc, **kw))
        assert "nan at step 1, before a step has changed any weight" in said
        assert "the data or the model" in said and "--learning_rate" not in said


def test_weights_that_are_not_finite_are_never_saved(pydoc, tmp_path, monkeypatch, error_of):
    """The loss of the last step was fine, its gradient was not."""

    def spoil(parameters, norm):
        for p in parameters:
            p.grad.mul_(float("nan"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    said = error_of(train.main, knobs(tmp_path, dataset=pydoc, eval_interval=1))
    assert "nan at step 1" in said
    assert "No checkpoint was saved yet: start again" in said
    assert not os.path.exists(tmp_path / "ckpt.pt")


def test_a_killed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, {"model_config": {}, "step": 1})

    def killed(_, f):
        f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"model_config": {}, "step": 2})
    assert load_checkpoint(path)["step"] == 1


def test_checkpoints_that_are_missing_or_damaged_raise_in_one_line(pydoc, tmp_path, error_of):
    assert "no checkpoint" in error_of(load_checkpoint, str(tmp_path / "none.pt"))
    train.main(knobs(tmp_path, dataset=pydoc))
    assert "holds ckpt.pt." in error_of(load_checkpoint, str(tmp_path / "none.pt"))
    whole = (tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in error_of(load_checkpoint, str(tmp_path / "cut.pt"))
    torch.save({"weights": 1}, tmp_path / "other.pt")
    assert "not a nanoSDTT checkpoint" in error_of(load_checkpoint, str(tmp_path / "other.pt"))


def test_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "python train.py config/train_pydoc_ar.py" in checkpoint_hint("out/pydoc_ar")
    assert "python distill.py config/sdtt_pydoc.py" in checkpoint_hint("out/sdtt_pydoc")


def test_a_run_is_neither_overwritten_nor_resumed_as_another(pydoc, tmp_path, error_of):
    def said(**kw):
        return error_of(train.main, knobs(tmp_path, dataset=pydoc, **kw))

    none = knobs(tmp_path / "none", dataset=pydoc, init_from="resume")
    assert "nothing to resume" in error_of(train.main, none)
    saved = trained(knobs(tmp_path, dataset=pydoc))
    before = (tmp_path / "ckpt.pt").read_bytes()
    assert "already holds a run" in said()
    assert "--init_from=resume" in said()
    assert "already holds a run" in said(init_from=str(tmp_path / "ckpt.pt"))
    assert "already holds a run" in said(objective="ar", arch="ngram")
    assert "--ema=0.0" in said(init_from="resume", max_iters=9, ema=0.9)
    assert "another objective than 'ar'" in said(objective="ar", init_from="resume")
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    other_text = {**saved, "meta": {**saved["meta"], "sha256": "0"}}
    save_checkpoint(tmp_path / "ckpt.pt", other_text)
    assert "is not the text" in said(init_from="resume", max_iters=9)


def test_a_folder_that_cannot_be_a_runs_says_why(tmp_path, error_of):
    (tmp_path / "file").write_text("")
    assert "Take another --out_dir" in error_of(runs.claim, str(tmp_path / "file"))
    assert "Take another --out_dir" in error_of(runs.claim, str(tmp_path / "file" / "run"))
    (tmp_path / "ngram.txt").write_text("")
    said = error_of(runs.check_unused, str(tmp_path))
    assert "n-grams cannot be resumed" in said and "--init_from" not in said


def test_a_checkpoint_of_another_vocabulary_raises_with_the_way_out(pydoc, tmp_path, error_of):
    saved = trained(knobs(tmp_path, dataset=pydoc))
    saved["meta"]["itos"] = saved["meta"]["itos"][::-1]  # as many characters, but others
    path = str(tmp_path / "v.pt")
    save_checkpoint(path, saved)
    said = error_of(train.main, knobs(tmp_path / "v", dataset=pydoc, init_from=path))
    assert "another vocabulary" in said
    assert f"--tokenizer={path}" in said


def test_other_mistakes_raise_before_any_work(pydoc, tmp_path, error_of):
    def said(**kw):
        return error_of(train.main, knobs(tmp_path, **{"dataset": pydoc, **kw}))

    for name, value in dict(objective="gan", dtype="f", device="tpu", pos="x", arch="rnn").items():
        assert repr(value) in said(**{name: value})
    assert "Did you mean shakespeare?" in said(dataset="shakespear")
    for name in ("batch_size", "eval_interval", "eval_iters", "block_size", "n_layer", "n_head"):
        assert f"{name} is 0; it must be at least" in said(**{name: 0})
    assert "The run has 0 steps" in said(max_iters=0)
    for name in ("dropout", "ema", "beta2"):
        assert f"{name} is 1.5" in said(**{name: 1.5})
    assert "ngram_n is 9" in said(objective="ar", arch="ngram", ngram_n=9)
    assert "which is causal" in said(arch="lstm")
    assert "multiple" in said(sample_interval=4)
    assert "pip install wandb" in said(wandb="x")
    assert "torchrun" in said(fsdp=True)
    assert "finds 0" in said(device="cuda:7")
    assert "'cpu:x'" in said(device="cpu:x")
    assert not os.path.exists(tmp_path / "ckpt.pt")
