"""
The autoregressive counterpart of train_shakespeare_char_t4.py, and the evaluator of its samples.

$ python train.py config/train_shakespeare_char_t4_ar.py
"""

from config.train_shakespeare_char_gpu_ar import *

dtype = "float16"
out_dir = "out/shakespeare_char_t4_ar"
