"""
nanoGPT's recipe of tiny Shakespeare in characters for one GPU (its README: best validation loss
1.4697 after 3 minutes on an A100). Not measured here.

$ python train.py config/train_shakespeare_char_nanogpt_gpu.py
"""

from config.train_shakespeare_char_nanogpt_cpu import *

out_dir = "out/shakespeare_char_nanogpt_gpu"
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
batch_size = 64
max_iters = 5000
eval_iters = 200
