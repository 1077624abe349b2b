"""
A run to step through: a tiny model on the CPU, a small part of a second a step on any machine, for every objective.

$ python data/pydoc/prepare.py                               once: 1 second, nothing to download
$ python train.py config/debug.py                            also --objective=ar
$ python distill.py config/debug.py                          also --method=kd, --method=soft (after --objective=ar)
$ python sample.py config/debug.py

Put breakpoint() where you want to look: in diffusion_loss, ar_loss, sdtt_loss, kd_loss, soft_loss or sample. Started
again, a run goes on where it was stopped, so that there is always a next step. .vscode/launch.json starts the same.
"""

import os
import sys

_script = os.path.basename(getattr(sys.modules["__main__"], "__file__", None) or "")  # sys.argv[0] is this file here
_said = dict(arg[2:].split("=", 1) for arg in sys.argv if "=" in arg)


def _exists(name):
    return os.path.exists(os.path.join("out", "debug", name))


device = "cpu"
if _script == "train.py":
    dataset = "pydoc"
    objective = _said.get("objective", "diffusion")
    out_dir = f"out/debug/{objective}"
    init_from = "resume" if _exists(f"{objective}/ckpt.pt") else "scratch"
    block_size, n_layer, n_head, n_embd = 32, 2, 2, 64
    max_iters = 1_000_000  # until you stop it
if _script == "distill.py":
    method = _said.get("method", "sdtt")
    teacher = "out/debug/diffusion/ckpt.pt" if method == "sdtt" else "out/debug/ar/ckpt.pt"
    out_dir = f"out/debug/{method}"
    init_from = "resume" if _exists(f"{method}/round_1.pt") or _exists(f"{method}/ckpt.pt") else "teacher"
    orig_steps, rounds, iters_per_round = 16, 1, 1_000_000
    n_embd = 32  # of a drafter
    pseudo_tokens = 10_000
    gradient_accumulation_steps = 1
if _script in ("train.py", "distill.py"):
    batch_size = 4
    warmup_iters = 10
    lr_schedule = "constant"
    learning_rate = 1e-3
    eval_interval = sample_interval = 50
    eval_iters = 2
if _script == "sample.py":
    ckpt = "out/debug/diffusion/ckpt.pt"
    num_samples = 1
    steps = 8
