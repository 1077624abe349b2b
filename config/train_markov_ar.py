"""
The autoregressive twin of train_markov.py.

$ python train.py config/train_markov_ar.py
"""

from config.train_markov import *

objective = "ar"
out_dir = "out/markov_ar"
