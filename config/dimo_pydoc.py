"""
Beyond `make demo`: the diffusion model becomes a student of one step by Di[M]O; 4 minutes on 2
AVX-512 cores (float32).

$ python -m extras.dimo config/dimo_pydoc.py
"""

teacher = "out/pydoc/ckpt.pt"
out_dir = "out/dimo_pydoc"
max_iters = 450
batch_size = 16
learning_rate = 5e-4
warmup_iters = 20
beta2 = 0.99
ema = 0.98
eval_interval = 150
