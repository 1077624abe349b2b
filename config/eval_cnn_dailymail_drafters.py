"""
CNN / Daily Mail: how much faster drafters make GPT-2 write a summary. One GPU. That ROUGE-2 stays
what it was: python -m extras.rouge.

First:  the drafters, config/kd_cnn_dailymail.py
$ python eval.py config/eval_cnn_dailymail_drafters.py
"""

ckpt = "gpt2"
draft = "out/cnn_dailymail/*/ngram.txt,out/cnn_dailymail/*/ckpt.pt,lookup"
what = "acceptance"
prompts = "data/cnn_dailymail/prompts.jsonl"
num_samples = 256
length = 640  # 512 of the prompt, 128 of the summary
top_k = 2  # as in the GPT-2 paper
out = "out/cnn_dailymail/eval"
