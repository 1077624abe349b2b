"""
The second part of `make demo`: the GPT becomes a masked diffusion model, 5 minutes on 2 CPU cores.

$ python train.py config/train_pydoc_char.py
"""

from config.train_pydoc_char_ar import *

objective = "diffusion"
out_dir = "out/pydoc_char"
init_from = "out/pydoc_char_ar/ckpt.pt"  # same weights, causal = False, one new embedding row for [MASK]
t_weight = 0.5
max_iters = 2200
ema = 0.995
eval_interval = 550
sample_interval = 550
