"""
Tiny Shakespeare, characters: a GPT that drafters make faster, 6 layers x 384, context 256, 4 minutes on 2 CPU cores.

$ python train.py config/train_shakespeare_char_target.py
"""

dataset = "shakespeare_char"
objective = "ar"
out_dir = "out/shakespeare_char_target"
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.1
batch_size = 16
optimizer = "muon"
learning_rate = 3e-3
min_lr = 0.02
warmup_iters = 40
max_iters = 450
ema = 0.98
eval_interval = 150
eval_iters = 10
