"""
Tiny Shakespeare, characters: diffusion model, every round of its distillation, GPT and real text, judged by the GPT.

$ python eval.py config/eval_shakespeare_char.py
"""

ckpt = "out/shakespeare_char/ckpt.pt,out/sdtt_shakespeare_char/round_*.pt,out/shakespeare_char_ar/ckpt.pt"
judge = "out/shakespeare_char_ar/ckpt.pt"
what = "nelbo,genppl,latency"
steps = [4, 8, 16, 32, 64, 128]
ar_top_p = [1.0, 0.9]
draws = 1
out = "out/shakespeare_eval"
