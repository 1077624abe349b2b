"""
A run to step through: a tiny model on the CPU, a small part of a second a step on any machine.

$ python data/pydoc/prepare.py                 once: 1 second, nothing to download
$ python train.py config/debug.py              also --objective=ar; the others need what it saves
$ python distill.py config/debug.py            also --sampler=spread, or --method=kd
$ python sample.py config/debug.py
$ python sample.py config/debug.py --ckpt=out/debug/ar/ckpt.pt --draft=out/debug/kd/ckpt.pt

Put breakpoint() where you want to look: in diffusion_loss, sdtt_loss or another loss, in unmask or
verify. A run lasts until you stop it; training goes on where it last saved (every 100 steps), a
distillation begins again without --init_from=resume. .vscode/launch.json starts the same.
"""

import os
import shutil
import sys

# sys.argv[0] is this file here
_script = os.path.basename(getattr(sys.modules["__main__"], "__file__", None) or "")
# the command line, which is read after this file
_said = dict(arg[2:].split("=", 1) for arg in sys.argv if "=" in arg)

device = "cpu"
dtype = "float32"  # so that all digits are there to look at
if _script == "train.py":
    dataset = "pydoc"
    objective = _said.get("objective", "diffusion")
    out_dir = _said.get("out_dir", f"out/debug/{objective}")
    init_from = "resume" if os.path.exists(f"{out_dir}/ckpt.pt") else "scratch"
    block_size = 32
    n_layer = 2
    n_head = 2
    n_embd = 64
    max_iters = 1_000_000  # until you stop it
if _script == "distill.py":
    method = _said.get("method", "sdtt")
    teacher = "out/debug/diffusion/ckpt.pt"
    divergence = "kl_bwd"
    if method == "kd":
        teacher = "out/debug/ar/ckpt.pt"
        divergence = "kl_fwd"
    out_dir = _said.get("out_dir", f"out/debug/{method}")
    if out_dir == f"out/debug/{method}" and _said.get("init_from") != "resume":
        shutil.rmtree(out_dir, ignore_errors=True)  # the last teacher or knobs may have been others
    orig_steps = 16
    rounds = 1
    iters_per_round = 1_000_000
    n_embd = 32  # of a drafter
    pseudo_tokens = 10_000
    gradient_accumulation_steps = 1
if _script in ("train.py", "distill.py"):
    batch_size = 4
    warmup_iters = 10
    min_lr = 1.0
    learning_rate = 1e-3
    eval_interval = 100
    sample_interval = 100
    eval_iters = 2
if _script == "sample.py":
    ckpt = "out/debug/diffusion/ckpt.pt"
    num_samples = 1
    steps = 8
