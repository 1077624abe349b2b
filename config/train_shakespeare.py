"""
Tiny Shakespeare in GPT-2 byte pairs: the GPT of train_shakespeare_ar.py becomes a diffusion model.
On 2 cores 15 minutes with AVX2 (float32).

$ python train.py config/train_shakespeare.py
"""

from config.train_shakespeare_ar import *

objective = "diffusion"
out_dir = "out/shakespeare"
init_from = "out/shakespeare_ar/ckpt.pt"
dropout = 0.1
t_weight = 0.5
max_iters = 600
ema = 0.995
eval_interval = 200
