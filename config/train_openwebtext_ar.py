"""
The autoregressive counterpart of train_openwebtext.py: same data, shape and schedule.

$ torchrun --standalone --nproc_per_node=8 train.py config/train_openwebtext_ar.py
"""

from config.train_openwebtext import *

objective = "ar"
out_dir = "out/openwebtext_ar"
