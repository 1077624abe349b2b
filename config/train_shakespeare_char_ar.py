"""
Tiny Shakespeare, characters, a GPT. The start of train_shakespeare_char.py, and the evaluator of
its samples. On 2 cores 8 minutes with AVX2, 6 with AVX-512 (float32).

$ python train.py config/train_shakespeare_char_ar.py
"""

dataset = "shakespeare_char"
objective = "ar"
out_dir = "out/shakespeare_char_ar"
block_size = 256
n_layer = 4
n_head = 4
n_embd = 192
dropout = 0.1
batch_size = 16
learning_rate = 2e-3
min_lr = 0.02
warmup_iters = 50
max_iters = 700
ema = 0.99
eval_interval = 250
eval_iters = 20
