import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import types

# no test sees an NVIDIA GPU, nor does what it runs
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest
import torch

import train
from configurator import UserError
from drafters import new_model
from model import GPTConfig
from plumbing.checkpoints import save_checkpoint

# a shell lets what it runs in the background ignore Ctrl-C, and that is inherited
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = dict(
    block_size=16,
    n_layer=2,
    n_head=2,
    n_embd=16,
    batch_size=4,
    warmup_iters=2,
    eval_iters=2,
    device="cpu",
)


def tiny_model(V=7, seed=0, **kw):
    """A GPT of two layers, with weights so large that its predictions are far from uniform."""
    torch.manual_seed(seed)
    shape = dict(block_size=16, vocab_size=V, n_layer=2, n_head=2, n_embd=16)
    model = new_model(GPTConfig(**{**shape, **kw}))
    for p in model.parameters():
        if p.dim() == 2:
            p.data.mul_(12)
    return model.eval()


def save_tiny(path, itos, **kw):
    """Writes the checkpoint of a tiny_model whose tokens are these pieces of text -> the model."""
    model = tiny_model(V=len(itos), **kw)
    saved = {
        "model_config": vars(model.config),
        "model": model.state_dict(),
        "ema": None,
        "step": 1,
        "made_for": None,
    }
    meta = {"tokenizer": "char", "vocab_size": len(itos), "itos": itos}
    save_checkpoint(path, saved | {"config": {"dataset": "none"}, "meta": meta})
    return model


@functools.cache
def forking_server():
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "tests", "forked.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_forked(args, cwd, folder):
    """As run, by tests/forked.py -> exit status, stdout, stderr. folder: for the output."""
    job = {"args": args, "cwd": str(cwd), "stdout": f"{folder}/out", "stderr": f"{folder}/err"}
    server = forking_server()
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    outputs = []
    for name in ("out", "err"):
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            outputs.append(f.read())
    return status, *outputs


def run(*args, ok=True, cwd=ROOT, env=None):
    """Runs a script of the project in a process of its own -> (stdout, stderr). ok: should it?"""
    args = [str(arg) for arg in args]
    if env or sys.platform != "linux":  # macOS does not fork safely, Windows not at all
        command = [sys.executable, *args]
        env = {**os.environ, **(env or {})}
        result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
        status, out, err = result.returncode, result.stdout, result.stderr
    else:
        with tempfile.TemporaryDirectory() as folder:
            status, out, err = run_forked(args, cwd, folder)
    assert (status == 0) is ok, out + err
    return out, err


def knobs(tmp_path, **kw):
    """train.py's knobs for a run of seconds in tmp_path."""
    few = {"out_dir": str(tmp_path), "max_iters": 6, "eval_interval": 3}
    return types.SimpleNamespace(**{**vars(train.cfg), **TINY, **few, **kw})


def way_to(module, loss, command):
    """-> the project's functions between a command and its loss's first call, as file:function."""
    seen = []

    def stop(*args, **kw):
        for frame in traceback.extract_stack():
            folder, file = os.path.split(frame.filename)
            if folder == ROOT:
                seen.append(f"{file}:{frame.name}")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, loss, stop)
        command()
    return seen


@pytest.fixture(scope="session")
def pydoc(tmp_path_factory):
    """The folder of a prepared pydoc_char dataset."""
    folder = tmp_path_factory.mktemp("data") / "pydoc_char"
    run("data/pydoc_char/prepare.py", f"--out_dir={folder}")
    return str(folder)


@pytest.fixture(scope="session")
def markov(tmp_path_factory):
    """The folder of a small markov language of 8 letters."""
    folder = tmp_path_factory.mktemp("data") / "markov"
    run(
        "data/markov/prepare.py",
        f"--out_dir={folder}",
        "--vocab_size=8",
        "--successors=2",
        "--n_tokens=200000",
    )
    return str(folder)


@pytest.fixture(scope="session")
def trained(markov, tmp_path_factory):
    """
    Paths of checkpoints of a diffusion model and of a GPT of the markov language, 6 steps old.
    """
    out = {}
    for objective in ("diffusion", "ar"):
        folder = tmp_path_factory.mktemp(objective)
        train.main(knobs(folder, dataset=markov, objective=objective))
        out[objective] = str(folder / "ckpt.pt")
    return out


@pytest.fixture
def error_of():
    """error_of(f, *args) -> the one-line message of the UserError that f raises."""

    def call(f, *args, **kw):
        with pytest.raises(UserError) as error:
            f(*args, **kw)
        assert "\n" not in str(error.value)
        return str(error.value)

    return call


def have_gpt2():
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    return bool(folder and os.path.isdir(folder) and os.listdir(folder))


needs_gpt2 = pytest.mark.skipif(
    not have_gpt2(), reason="needs the GPT-2 vocabulary in TIKTOKEN_CACHE_DIR"
)
