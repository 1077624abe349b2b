"""
A small T5 that summarises Python's reference, and its drafters. Chapter 6 of lessons/ has all the
commands.

First:  the folders out/t5/small and out/t5/data, and the target: the same command, learning from the text alone
$ python distill.py config/kd_small_t5.py --drafter=lstm --out_dir=out/t5/drafters/lstm_kd
"""

method = "kd"
teacher = "hf:out/t5/target"
dataset = "out/t5/data"
drafter = "lstm"
out_dir = "out/t5/drafters/lstm_kd"
divergence = "kl_fwd"
n_layer = 1
n_embd = 128
ngram_n = 3
batch_size = 16
gradient_accumulation_steps = 1
learning_rate = 3e-3
min_lr = 0.02
beta2 = 0.99
weight_decay = 0.1
warmup_iters = 50
iters_per_round = 700
ema = 0.98
eval_interval = 350
pseudo_tokens = 200_000
