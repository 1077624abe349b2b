"""
Tiny Shakespeare, characters: the frontier of the diffusion model, its students against it, and the
GPT, which is the evaluator.

$ python eval.py config/eval_shakespeare_char.py
"""

ckpt = (
    "out/shakespeare_char/ckpt.pt,out/sdtt_shakespeare_char/round_*.pt,"
    "out/shakespeare_char_ar/ckpt.pt"
)
evaluator = "out/shakespeare_char_ar/ckpt.pt"
what = "nelbo,frontier"
steps = [1, 2, 4, 8]
temperatures = [1.0, 0.9, 0.8, 0.7]
coolings = [1.0, 0.3]
draws = 1
out = "out/shakespeare_eval"
