"""
The last part of `make demo`: the diffusion model at 4 to 256 steps beside the GPT and real text, judged by the GPT.

$ python eval.py config/eval_pydoc_char.py
"""

ckpt = "out/pydoc_char/ckpt.pt,out/pydoc_char_ar/ckpt.pt"
judge = "out/pydoc_char_ar/ckpt.pt"
out = "out/demo"
