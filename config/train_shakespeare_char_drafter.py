"""
Tiny Shakespeare, characters: a small model trained on the text, the baseline of the distilled
drafters, half a minute to two on 2 cores.

$ python train.py config/train_shakespeare_char_drafter.py --arch=lstm --out_dir=out/drafters/lstm
"""

dataset = "shakespeare_char"
objective = "ar"
arch = "lstm"
out_dir = "out/drafters/lstm"
block_size = 256
n_layer = 1
n_head = 4
n_embd = 128
batch_size = 16
learning_rate = 5e-3
min_lr = 0.02
warmup_iters = 40
max_iters = 1000
ema = 0.98
eval_interval = 500
