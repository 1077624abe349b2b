"""
nanoGPT's recipe of tiny Shakespeare in characters for a CPU, number for number: 4 layers of 128,
context 64, batch 12, 2000 steps, learned positions. nanoGPT's README has a validation loss of 1.88.

$ python train.py config/train_shakespeare_char_nanogpt_cpu.py

On 2 cores in 105 seconds, float32: 1.903, 1.905, 1.913, 1.926 with seeds 1, 2, 3, 1337. A literal
nanoGPT beside it reports 1.873 to 1.896 with four seeds, each over 20 random batches; over all of
the validation text it has 1.891 to 1.908 (mean 1.900), and ours 1.897 to 1.924 (1.908).
"""

dataset = "shakespeare_char"
objective = "ar"
out_dir = "out/shakespeare_char_nanogpt_cpu"
block_size = 64
n_layer = 4
n_head = 4
n_embd = 128
pos = "learned"
dropout = 0.0
batch_size = 12
max_iters = 2000
learning_rate = 1e-3
min_lr = 0.1  # 1e-4
warmup_iters = 100
weight_decay = 0.1
beta2 = 0.99
eval_interval = 250
eval_iters = 20
