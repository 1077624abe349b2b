"""
The knobs of sampling, of sample.py and eval.py: --help shows them.
"""

ckpt = "out/pydoc/ckpt.pt"  # several (a,b or out/x/round_*.pt) side by side; also gpt2, sdtt:kld:7, hf:NAME, a folder
sampler = ""  # '' (own, or spread) | 'spread' | 'ancestral' | 'analytic' | 'first_hitting' | 'confidence' | 'dimo'
temperature = 1.0  # 0: always the most probable token, at least 0
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all, at least 0
top_p = 1.0  # keep the most probable tokens that hold this much probability, from 1e-6 to 1
length = 0  # tokens with the prompt; 0: the context, more than it works too, at least 0
draft = ""  # autoregressive: what guesses ahead, a checkpoint, hf:NAME, ngram.txt or 'lookup'; the law is kept
compile = "off"  # 'off' | 'on': torch.compile: half a minute, then a GPT is 1.2 to 1.4 times as fast; a CPU needs g++
draft_steps = (
    1  # a diffusion drafter reveals its tokens in so many groups, left to right, at least 1
)
