"""
The first part of `make demo`: a small GPT on Python's language reference; on 2 cores 2 minutes with
AVX2, 1 with AVX-512 and bfloat16. It is the evaluator of the samples and the start of the diffusion
model.

$ python train.py config/train_pydoc_ar.py
"""

dataset = "pydoc"
objective = "ar"
out_dir = "out/pydoc_ar"
block_size = 128
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.1
batch_size = 16
learning_rate = 2e-3
min_lr = 0.02
warmup_iters = 40
max_iters = 300
ema = 0.98
eval_interval = 100
sample_interval = 100
eval_iters = 8
