"""
The third part of `make demo`: three rounds of SDTT, to 4, 2 and 1 steps; a minute or two on 2
laptop cores.

$ python distill.py config/sdtt_pydoc.py
"""

teacher = "out/pydoc/ckpt.pt"
out_dir = "out/sdtt_pydoc"
sampler = "spread"
orig_steps = 8
rounds = 3
iters_per_round = 60
learning_rate = 5e-4  # above the paper's 6e-5, for 60 steps instead of 10,000
warmup_iters = 10
batch_size = 16
gradient_accumulation_steps = 1
ema = 0.98
eval_interval = 60
