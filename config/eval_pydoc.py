"""
The last part of `make demo`: diffusion model, its student, GPT and real text, judged by the GPT.

$ python eval.py config/eval_pydoc.py
"""

ckpt = "out/pydoc/ckpt.pt,out/sdtt_pydoc/round_3.pt,out/pydoc_ar/ckpt.pt"
judge = "out/pydoc_ar/ckpt.pt"
what = "nelbo,genppl,latency"
steps = [4, 8, 16, 32, 64]
ar_top_p = [1.0, 0.9]
draws = 8
out = "out/demo"
