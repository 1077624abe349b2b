"""
The diffusion model of train_pydoc.py on single characters: harder, since it must learn to spell
first. On 2 cores 12 minutes with AVX2 (float32), 7 with AVX-512 and bfloat16.

$ python train.py config/train_pydoc_char.py
"""

from config.train_pydoc import *

dataset = "pydoc_char"
out_dir = "out/pydoc_char"
init_from = "out/pydoc_char_ar/ckpt.pt"
max_iters = 2200
eval_interval = 550
sample_interval = 550
