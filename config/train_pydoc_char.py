"""
The diffusion model of train_pydoc.py on single characters: harder, since it must learn to spell first.

$ python train.py config/train_pydoc_char.py
"""

from config.train_pydoc import *

dataset = "pydoc_char"
out_dir = "out/pydoc_char"
init_from = "out/pydoc_char_ar/ckpt.pt"
max_iters = 2200
eval_interval = 550
sample_interval = 550
laptop_minutes = 15.0
