"""
GPT-2 becomes a diffusion model, on one GPU of 24 GB: its weights with causal = False, and a tenth
of the tokens that config/train_openwebtext_24gb.py takes from scratch, 1.3 B.

$ python train.py config/train_openwebtext_gpt2_24gb.py
First:                python data/openwebtext/prepare.py

By arithmetic, not measured: 14 GB, 4 hours at 66 TFLOP/s. An estimate of the bound it reaches: 3.6
nats a token.
"""

from config.train_openwebtext_24gb import *

out_dir = "out/openwebtext_gpt2"
init_from = "gpt2"
t_weight = 0.5
learning_rate = 3e-4
warmup_iters = 500
max_iters = 10_000
ema = 0.999
eval_interval = 1000
