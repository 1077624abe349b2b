"""
Tiny Shakespeare, characters, about 15 minutes on 2 CPU cores.

$ python train.py config/train_shakespeare_char.py
"""

dataset = "shakespeare_char"
objective = "diffusion"
out_dir = "out/shakespeare_char"
block_size = 128
n_layer = 6
n_head = 4
n_embd = 256
batch_size = 32
optimizer = "muon"
learning_rate = 3e-3
min_lr = 0.02
warmup_iters = 50
max_iters = 2800
ema = 0.998
eval_interval = 700
eval_iters = 20
