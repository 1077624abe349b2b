"""
The third part of `make demo`: three rounds of SDTT, 3 minutes on 2 laptop cores (AVX2), and in twice that, where
bfloat16 is fast, three times the steps.

$ python distill.py config/sdtt_pydoc.py
"""

from plumbing.hardware import pick_device

_fast = pick_device()[2].endswith("bfloat16")  # as in train_pydoc.py

teacher = "out/pydoc/ckpt.pt"
out_dir = "out/sdtt_pydoc"
orig_steps = 32
rounds = 3
iters_per_round = 250 if _fast else 80
learning_rate = 1e-3  # far above the paper's 6e-5, for a hundred steps or two instead of 10,000
warmup_iters = 20
batch_size = 16
gradient_accumulation_steps = 1
ema = 0.99
eval_interval = 125 if _fast else 40
laptop_minutes = 1.2
