"""
Tiny Shakespeare, characters: the GPT of train_shakespeare_char_ar.py becomes a diffusion model.
On 2 cores 10 minutes with AVX2, 7 with AVX-512 (float32).

$ python train.py config/train_shakespeare_char.py
"""

from config.train_shakespeare_char_ar import *

objective = "diffusion"
out_dir = "out/shakespeare_char"
init_from = "out/shakespeare_char_ar/ckpt.pt"
dropout = 0.0
t_weight = 0.5
max_iters = 1200
ema = 0.998
eval_interval = 400
