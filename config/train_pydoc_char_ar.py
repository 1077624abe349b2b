"""
The GPT of train_pydoc_ar.py on single characters.
On 2 cores 3 minutes with AVX2 (float32), 2 with AVX-512 and bfloat16.

$ python train.py config/train_pydoc_char_ar.py
"""

from config.train_pydoc_ar import *

dataset = "pydoc_char"
out_dir = "out/pydoc_char_ar"
dropout = 0.0
max_iters = 600
ema = 0.99
eval_interval = 200
sample_interval = 200
