"""
Tiny Shakespeare, characters: the same small model, distilled from its target for as many steps, 3
to 6 minutes.

$ python distill.py config/kd_shakespeare_char.py --drafter=lstm --out_dir=out/drafters/lstm_kd
"""

method = "kd"
teacher = "out/shakespeare_char_ar/ckpt.pt"
drafter = "lstm"
out_dir = "out/drafters/lstm_kd"
divergence = "kl_fwd"
n_layer = 1
n_head = 4
n_embd = 128
batch_size = 16
gradient_accumulation_steps = 1
learning_rate = 5e-3
min_lr = 0.02
beta2 = 0.99
weight_decay = 0.1
warmup_iters = 40
iters_per_round = 1000
ema = 0.98
eval_interval = 500
pseudo_tokens = 300_000
