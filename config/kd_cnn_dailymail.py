"""
CNN / Daily Mail: an LSTM learns to draft for GPT-2's summaries. One GPU.

First:  python data/cnn_dailymail/prepare.py
$ python distill.py config/kd_cnn_dailymail.py
$ python distill.py config/kd_cnn_dailymail.py --drafter=ngram --ngram_n=3 \
      --out_dir=out/cnn_dailymail/ngram_kd
The baselines:
$ python train.py --dataset=cnn_dailymail --arch=ngram --ngram_n=3 --out_dir=out/cnn_dailymail/ngram
"""

method = "kd"
teacher = "gpt2"
dataset = "cnn_dailymail"
drafter = "lstm"
out_dir = "out/cnn_dailymail/lstm_kd"
divergence = "kl_fwd"
n_layer = 1
n_embd = 512
batch_size = 4
gradient_accumulation_steps = 2
learning_rate = 2e-3
min_lr = 0.02
beta2 = 0.99
weight_decay = 0.1
warmup_iters = 200
iters_per_round = 10_000
ema = 0.999
eval_interval = 1000
pseudo_tokens = 10_000_000
