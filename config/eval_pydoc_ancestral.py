"""
Beside it: the order of the papers, each token at a random time, needs a hundred steps for what
`spread` does in 4.

$ python eval.py config/eval_pydoc_ancestral.py
"""

ckpt = "out/pydoc/ckpt.pt"
evaluator = "out/pydoc_ar/ckpt.pt"
what = "genppl"
sampler = "ancestral"
steps = [2, 4, 16, 128]
out = "out/demo/ancestral"
