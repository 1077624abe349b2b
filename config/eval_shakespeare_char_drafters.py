"""
Every drafter of the GPT of train_shakespeare_char_ar.py, trained on text and distilled; 12 minutes
on 2 cores.

$ python eval.py config/eval_shakespeare_char_drafters.py
"""

ckpt = "out/shakespeare_char_ar/ckpt.pt"
draft = "out/drafters/*/ngram.txt,out/drafters/*/ckpt.pt,lookup"
what = "acceptance"
num_samples = 64
out = "out/drafters_eval"
