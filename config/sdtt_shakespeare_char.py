"""
Tiny Shakespeare, characters: four rounds of SDTT on the model of train_shakespeare_char.py, to 8,
4, 2 and 1 steps.

$ python distill.py config/sdtt_shakespeare_char.py
"""

teacher = "out/shakespeare_char/ckpt.pt"
out_dir = "out/sdtt_shakespeare_char"
sampler = "spread"
orig_steps = 16
rounds = 4
iters_per_round = 80
learning_rate = 5e-4
warmup_iters = 10
batch_size = 16
gradient_accumulation_steps = 1
ema = 0.98
eval_interval = 80
