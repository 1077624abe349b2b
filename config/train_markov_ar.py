"""
The autoregressive counterpart of train_markov.py.
On 2 cores 5 minutes with AVX2 (float32), 3 with AVX-512 and bfloat16.

$ python train.py config/train_markov_ar.py
"""

from config.train_markov import *

objective = "ar"
out_dir = "out/markov_ar"
