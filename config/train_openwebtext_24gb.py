"""
MDLM small on OpenWebText on one GPU of 24 GB: a fortieth of the paper's tokens, 13 B.

$ python train.py config/train_openwebtext_24gb.py
First:                python data/openwebtext/prepare.py

By arithmetic (python tests/bench.py --rows=memory), not measured: 14 GB, 3.2 of them weights,
gradients and optimizer, 6.1 activations and 4.9 the head (half of 16 x 1024 positions are masked,
each has 50257 logits and their gradients); 41 hours at 66 TFLOP/s. An estimate of the bound that it
reaches: 3.5 nats a token, where the paper's 1 M steps of 512 give 3.14.
"""

from config.train_openwebtext import *

dtype = "bfloat16"
out_dir = "out/openwebtext_24gb"
dropout = 0.0
learning_rate = 6e-4
max_iters = 100_000
batch_size = 16
gradient_accumulation_steps = 8  # 8 x 16 = 128 sequences
