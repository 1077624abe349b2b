"""
A small T5 that summarises Python's reference, and its drafters. Chapter 6 of lessons/ has all the
commands.

First:  the folders out/t5/small and out/t5/data, and the target:
$ python -m extras.t5 config/kd_small_t5.py --drafter=hf:out/t5/small --learn=text \
    --learning_rate=1e-3 --max_iters=800 --eval_interval=266 --out_dir=out/t5/target
$ python -m extras.t5 config/kd_small_t5.py --drafter=lstm --out_dir=out/t5/drafters/lstm_kd
"""

target = "out/t5/target/ckpt.pt"
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
max_iters = 700
ema = 0.98
eval_interval = 350
pseudo_tokens = 200_000
