"""
nanoGPT's recipe of tiny Shakespeare in characters for a CPU (its README: validation loss 1.88),
number for number: 4 layers of 128, context 64, batch 12, 2000 steps, learned positions.

$ python train.py config/train_shakespeare_char_nanogpt_cpu.py
"""

dataset = "shakespeare_char"
objective = "ar"
out_dir = "out/shakespeare_char_nanogpt_cpu"
block_size = 64
n_layer = 4
n_head = 4
n_embd = 128
pos = "learned"
dropout = 0.0
batch_size = 12
max_iters = 2000
learning_rate = 1e-3
min_lr = 0.1  # 1e-4
warmup_iters = 100
weight_decay = 0.1
beta2 = 0.99
eval_interval = 250
eval_iters = 20
