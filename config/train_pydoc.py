"""
The second part of `make demo`: the GPT becomes a masked diffusion model, 4 minutes on 2 laptop
cores with AVX2 in float32.

$ python train.py config/train_pydoc.py
"""

from config.train_pydoc_ar import *

objective = "diffusion"
out_dir = "out/pydoc"
init_from = "out/pydoc_ar/ckpt.pt"  # same weights, causal = False, one new embedding row for [MASK]
dropout = 0.0
t_weight = 0.5
learning_rate = 1e-3
max_iters = 650
ema = 0.995
eval_interval = 200
sample_interval = 400
