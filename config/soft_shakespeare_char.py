"""
Tiny Shakespeare, characters: a small LSTM learns from the most probable tokens of a GPT, in a few
minutes.

$ python -m extras.soft_labels config/soft_shakespeare_char.py --topk=8
"""

teacher = "out/shakespeare_char_ar/ckpt.pt"
out_dir = "out/drafters/lstm_soft"
drafter = "lstm"
n_layer = 1
n_head = 4
n_embd = 128
n_tokens = 300_000
max_iters = 1000
batch_size = 16
gradient_accumulation_steps = 1
learning_rate = 5e-3
min_lr = 0.02
beta2 = 0.99
weight_decay = 0.1
warmup_iters = 40
ema = 0.98
eval_interval = 500
