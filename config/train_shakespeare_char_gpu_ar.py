"""
The autoregressive counterpart of train_shakespeare_char_gpu.py. It overfits sooner: fewer steps,
more dropout.

$ python train.py config/train_shakespeare_char_gpu_ar.py
"""

from config.train_shakespeare_char_gpu import *

objective = "ar"
out_dir = "out/shakespeare_char_gpu_ar"
dropout = 0.2
max_iters = 2500
eval_interval = 250
