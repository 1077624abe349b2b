"""
Tiny Shakespeare in GPT-2 byte pairs: the real vocabulary of 50257 on a laptop.
On 2 cores 30 minutes with AVX2 (float32), 17 with AVX-512 and bfloat16.

$ python train.py config/train_shakespeare.py
"""

dataset = "shakespeare"
objective = "diffusion"
out_dir = "out/shakespeare"
block_size = 128
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.1
batch_size = 16
learning_rate = 1e-3
min_lr = 0.02
warmup_iters = 50
max_iters = 1500
ema = 0.998
eval_interval = 500
eval_iters = 10
laptop_minutes = 30.0
