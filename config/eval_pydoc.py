"""
The last part of `make demo`: the diffusion model in 1, 2 and 4 steps over five temperatures,
uniform and falling, its students against that frontier, the GPT token by token; the GPT is the
evaluator.

$ python eval.py config/eval_pydoc.py
"""

ckpt = "out/pydoc/ckpt.pt,out/sdtt_pydoc/round_2.pt,out/sdtt_pydoc/round_3.pt,out/pydoc_ar/ckpt.pt"
evaluator = "out/pydoc_ar/ckpt.pt"
what = "nelbo,frontier,latency"
steps = [1, 2, 4]
temperatures = [1.0, 0.9, 0.8, 0.7, 0.6]
coolings = [1.0, 0.3]
draws = 2
out = "out/demo"
