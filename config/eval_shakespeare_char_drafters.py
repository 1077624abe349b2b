"""
Every drafter of the target of train_shakespeare_char_target.py, trained on text and distilled, 3 minutes.

$ python eval.py config/eval_shakespeare_char_drafters.py
"""

ckpt = "out/shakespeare_char_target/ckpt.pt"
draft = "out/drafters/*/ngram.txt,out/drafters/*/ckpt.pt,lookup"
what = "acceptance"
num_samples = 64
out = "out/drafters_eval"
