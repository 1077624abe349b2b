"""
A run to step through: a tiny model on the CPU, a small part of a second a step on any machine, for every objective.

$ python data/pydoc/prepare.py                 once: 1 second, nothing to download
$ python train.py config/debug.py              also --objective=ar; until its first "saved to", the others need it
$ python distill.py config/debug.py            also --sampler=spread; --method=dimo, kd or soft
$ python sample.py config/debug.py
$ python sample.py config/debug.py --ckpt=out/debug/ar/ckpt.pt --draft=out/debug/kd/ckpt.pt --gamma=3

kd and soft learn from the GPT of --objective=ar; the last line drafts with what kd has saved.
Put breakpoint() where you want to look: in diffusion_loss, sdtt_loss or another loss, in unmask or verify. (The first
60 steps of dimo are its fake's; then comes the student's turn.)
Training goes on where it last saved; a distillation begins anew. .vscode/launch.json starts the same.
"""

import os
import shutil
import sys

_script = os.path.basename(
    getattr(sys.modules["__main__"], "__file__", None) or ""
)  # sys.argv[0] is this file here
# the command line, which is read after this file
_said = dict(arg[2:].split("=", 1) for arg in sys.argv if "=" in arg)


device = "cpu"
dtype = "float32"  # so that all digits are there to look at
if _script == "train.py":
    dataset = "pydoc"
    objective = _said.get("objective", "diffusion")
    out_dir = _said.get("out_dir", f"out/debug/{objective}")
    init_from = "resume" if os.path.exists(f"{out_dir}/ckpt.pt") else "scratch"
    block_size, n_layer, n_head, n_embd = 32, 2, 2, 64
    max_iters = 1_000_000  # until you stop it
if _script == "distill.py":
    method = _said.get("method", "sdtt")
    teacher = (
        "out/debug/diffusion/ckpt.pt" if method in ("sdtt", "dimo") else "out/debug/ar/ckpt.pt"
    )
    divergence = "kl_bwd" if method == "sdtt" else "kl_fwd"
    out_dir = _said.get("out_dir", f"out/debug/{method}")
    if out_dir == f"out/debug/{method}":
        shutil.rmtree(
            out_dir, ignore_errors=True
        )  # the last one's teacher or knobs may have been others
    orig_steps, rounds, iters_per_round = 16, 1, 1_000_000
    n_embd = 32  # of a drafter
    pseudo_tokens = 10_000
    gradient_accumulation_steps = 1
if _script in ("train.py", "distill.py"):
    batch_size = 4
    warmup_iters = 10
    min_lr = 1.0
    learning_rate = 1e-3
    eval_interval = sample_interval = 100
    eval_iters = 2
if _script == "sample.py":
    ckpt = "out/debug/diffusion/ckpt.pt"
    num_samples = 1
    steps = 8
