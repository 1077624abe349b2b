"""
MDLM small on OpenWebText (Sahoo et al. 2024): 162 M parameters, 1 M steps of 512 x 1024 tokens in
bfloat16.

One node of 8 GPUs:   torchrun --standalone --nproc_per_node=8 train.py config/train_openwebtext.py
Two nodes, on each:   torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \
                          --rdzv_endpoint=HOST:29500 train.py config/train_openwebtext.py
A model too large:    torchrun --standalone --nproc_per_node=8 \
                          train.py config/train_openwebtext.py --fsdp=True
First:                python data/openwebtext/prepare.py
"""

dataset = "openwebtext"
objective = "diffusion"
out_dir = "out/openwebtext"
block_size = 1024
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.1
tie_weights = False
learning_rate = 3e-4
beta2 = 0.999
weight_decay = 0.0
min_lr = 1.0
warmup_iters = 2500
max_iters = 1_000_000
ema = 0.9999
batch_size = 32
gradient_accumulation_steps = 16  # over all processes: 16 x 32 = 512 sequences
eval_interval = 5000
eval_iters = 50
