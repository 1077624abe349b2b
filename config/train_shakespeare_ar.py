"""
The autoregressive twin of train_shakespeare.py. 0.3 M tokens are few: it overfits after some hundred steps.
On 2 cores 16 minutes with AVX2 (float32), 8 with AVX-512 and bfloat16.

$ python train.py config/train_shakespeare_ar.py
"""

from config.train_shakespeare import *

objective = "ar"
out_dir = "out/shakespeare_ar"
dropout = 0.2
max_iters = 500
eval_interval = 100
laptop_minutes = 16.0
