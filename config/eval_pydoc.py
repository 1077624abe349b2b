"""
The last part of `make demo`: diffusion model, every round of its distillation, GPT and real text, judged by the GPT.

$ python eval.py config/eval_pydoc.py
"""

ckpt = "out/pydoc/ckpt.pt,out/sdtt_pydoc/round_*.pt,out/pydoc_ar/ckpt.pt"
judge = "out/pydoc_ar/ckpt.pt"
what = "nelbo,genppl,latency"
steps = [4, 8, 16, 32, 64, 128]
ar_top_p = [1.0, 0.9]
draws = 16  # the noise of a draw is as large as that of this little text
out = "out/demo"
