"""
Tiny Shakespeare in GPT-2 byte pairs, the real vocabulary of 50257 on a laptop: a GPT. 0.3 M tokens
are few: it overfits after some hundred steps. On 2 cores 11 minutes with AVX2 (float32).

$ python train.py config/train_shakespeare_ar.py
"""

dataset = "shakespeare"
objective = "ar"
out_dir = "out/shakespeare_ar"
block_size = 128
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.2
batch_size = 16
learning_rate = 1e-3
min_lr = 0.02
warmup_iters = 50
max_iters = 300
eval_interval = 100
eval_iters = 10
