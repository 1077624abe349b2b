"""
Tiny Shakespeare, characters: three rounds of SDTT on the model of train_shakespeare_char.py, 6 minutes on 2 CPU cores.

$ python distill.py config/sdtt_shakespeare_char.py
"""

teacher = "out/shakespeare_char/ckpt.pt"
out_dir = "out/sdtt_shakespeare_char"
orig_steps = 32
rounds = 3
iters_per_round = 300
learning_rate = 1e-3
warmup_iters = 20
batch_size = 32
gradient_accumulation_steps = 1
ema = 0.99
eval_interval = 150
