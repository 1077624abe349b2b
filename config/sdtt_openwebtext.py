"""
The paper's recipe (Deschenaux & Gulcehre 2024, section 4): 7 rounds of 10,000 steps, from 1024
sampling steps to 8.

One node of 8 GPUs:   torchrun --standalone --nproc_per_node=8 distill.py config/sdtt_openwebtext.py
Two nodes, on each:   torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \
                          --rdzv_endpoint=HOST:29500 distill.py config/sdtt_openwebtext.py
One GPU of 24 GB:     the same without torchrun, 49 hours at 66 TFLOP/s by arithmetic; a tenth of
                      the steps is config/sdtt_openwebtext_24gb.py
First:                python data/openwebtext/prepare.py, and the teacher:
                      config/train_openwebtext.py, or the published one, --teacher=mdlm-owt; out_dir
                      on a disk that all nodes share
"""

teacher = "out/openwebtext/ckpt.pt"  # small, 1024 tokens
out_dir = "out/sdtt_openwebtext"
sampler = "ancestral"
orig_steps = 1024
rounds = 7
iters_per_round = 10_000
learning_rate = 6e-5
warmup_iters = 500
min_lr = 1.0
beta2 = 0.999
weight_decay = 0.0
grad_clip = 1.0
batch_size = 8
gradient_accumulation_steps = 16  # over all processes: 16 x 8 = 128 sequences
reset_optimizer = False  # as in the released configuration
ema_teacher = False
ema = 0.9999
eval_interval = 1000
