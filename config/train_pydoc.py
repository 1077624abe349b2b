"""
The second part of `make demo`: the GPT becomes a masked diffusion model, 4 minutes on 2 laptop
cores, with AVX2 in float32 and, in more steps, with bfloat16.

$ python train.py config/train_pydoc.py
"""

from config.train_pydoc_ar import *
from plumbing.hardware import pick_device

_fast = pick_device()[2].endswith("bfloat16")  # then the same minutes are enough for more steps

objective = "diffusion"
out_dir = "out/pydoc"
init_from = "out/pydoc_ar/ckpt.pt"  # same weights, causal = False, one new embedding row for [MASK]
dropout = 0.0
t_weight = 0.5
learning_rate = 1e-3
max_iters = 1050 if _fast else 650
ema = 0.995
eval_interval = 200
sample_interval = 400
