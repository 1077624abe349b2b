"""
Tiny Shakespeare, characters, from scratch in the shape of nanoGPT's own config, for one GPU.

$ python train.py config/train_shakespeare_char_gpu.py
"""

from config.train_shakespeare_char import *

out_dir = "out/shakespeare_char_gpu"
init_from = "scratch"
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.1
batch_size = 64
max_iters = 10_000
warmup_iters = 200
ema = 0.999
eval_interval = 1000
