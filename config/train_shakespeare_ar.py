"""
The autoregressive twin of train_shakespeare.py. 0.3 M tokens are few: it overfits after some hundred steps.

$ python train.py config/train_shakespeare_ar.py
"""

from config.train_shakespeare import *

objective = "ar"
out_dir = "out/shakespeare_ar"
dropout = 0.2
max_iters = 500
eval_interval = 100
