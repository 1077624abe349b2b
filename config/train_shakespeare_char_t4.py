"""
Tiny Shakespeare, characters, from scratch on a T4 (a free notebook's GPU): the shape and steps of
train_shakespeare_char_gpu.py in float16, the only 16-bit format that a T4 multiplies fast. By
arithmetic 2 GB of its 16.

$ python train.py config/train_shakespeare_char_t4.py
"""

from config.train_shakespeare_char_gpu import *

dtype = "float16"
out_dir = "out/shakespeare_char_t4"
