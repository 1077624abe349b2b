"""
SDTT of the published MDLM small on one GPU of 24 GB: the paper's seven rounds with a tenth of its
steps, 1024 tokens.

$ python distill.py config/sdtt_openwebtext_24gb.py
First:                python data/openwebtext/prepare.py

By arithmetic (python tests/bench.py --rows=memory), not measured: 14 GB, half of them logits of
student and teacher; 5 hours at 66 TFLOP/s.
"""

from config.sdtt_openwebtext import *

dtype = "bfloat16"
teacher = "mdlm-owt"
out_dir = "out/sdtt_openwebtext_24gb"
iters_per_round = 1000
warmup_iters = 50
eval_interval = 500
