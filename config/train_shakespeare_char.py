"""
Tiny Shakespeare, characters: the GPT of train_shakespeare_char_ar.py becomes a diffusion model, 10 more minutes.

$ python train.py config/train_shakespeare_char.py
"""

from config.train_shakespeare_char_ar import *

objective = "diffusion"
out_dir = "out/shakespeare_char"
init_from = "out/shakespeare_char_ar/ckpt.pt"
t_weight = 0.5
learning_rate = 1e-3
max_iters = 2600
ema = 0.998
eval_interval = 650
