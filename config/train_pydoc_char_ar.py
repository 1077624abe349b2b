"""
The first part of `make demo`: a small GPT on Python's language reference, 1.5 minutes on 2 CPU cores.
It is the judge of the samples and the start of the diffusion model.

$ python train.py config/train_pydoc_char_ar.py
"""

dataset = "pydoc_char"
objective = "ar"
out_dir = "out/pydoc_char_ar"
block_size = 128
n_layer = 4
n_head = 4
n_embd = 256
batch_size = 16
optimizer = "muon"
learning_rate = 3e-3
min_lr = 0.02
warmup_iters = 40
max_iters = 600
ema = 0.99
eval_interval = 200
eval_iters = 40
