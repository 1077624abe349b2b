"""
The autoregressive twin of train_shakespeare_char.py, for the same minutes.

$ python train.py config/train_shakespeare_char_ar.py
"""

from config.train_shakespeare_char import *

objective = "ar"
out_dir = "out/shakespeare_char_ar"
