"""
The last part of `make demo`: the diffusion model at 2 to 128 steps beside the GPT and real text, judged by the GPT.

$ python eval.py config/eval_pydoc.py
"""

ckpt = "out/pydoc/ckpt.pt,out/pydoc_ar/ckpt.pt"
judge = "out/pydoc_ar/ckpt.pt"
steps = [2, 4, 8, 16, 32, 64, 128]
out = "out/demo"
