"""
The knobs of the training loop, of train.py and distill.py: --help shows them. Each script gives some of them another
value.
"""

# a small drafter's
kernel_size = 5  # of a cnn, in tokens, at least 1
ngram_n = 5  # of an ngram, which counts and needs none of the other knobs, from 1 to 8
smoothing = "kneser_ney"  # 'kneser_ney' | 'laplace', of an ngram
ngram_discount = 0.75  # taken off every count, by Kneser-Ney, from 0 to 1
ngram_alpha = 0.1  # added to every count, by Laplace, at least 1e-9
dropout = 0.0  # of the model that is trained, from 0 to 0.99
# optimizer: AdamW
learning_rate = 1e-3  # at least 0
warmup_iters = 100  # steps, linear, up to learning_rate, at least 0
lr_schedule = "cosine"  # 'cosine' (down to min_lr) | 'constant', both after the warm-up
min_lr = 0.1  # fraction of learning_rate at the end, from 0 to 1
weight_decay = 0.1  # of matrices, at least 0
beta2 = 0.99  # beta1 is 0.9, from 0 to 0.999999
grad_clip = 1.0  # gradient norm, 0: off, at least 0
ema = 0.0  # decay of the averaged weights, which are validated and sampled; 0: off, from 0 to 0.999999
gradient_accumulation_steps = 1  # forwards per step, over all processes, at least 1
# the run
eval_interval = 500  # steps between validations, which save the checkpoint, at least 1
eval_iters = 20  # validation batches, at least 1
sample_interval = (
    0  # steps between printed samples, a multiple of eval_interval; 0: none, at least 0
)
log_interval = 10  # steps between log lines, at least 1
compile = "auto"  # 'auto' (on cuda) | 'on' | 'off': torch.compile the trunk for training
fsdp = False  # under torchrun: shard weights, gradients and optimizer over the processes (FSDP2); False: DDP
export = ""  # a folder: also save the trained model there as model.safetensors and config.json, to publish it
laptop_minutes = (
    0.0  # that the README says the run (of SDTT: a round) takes on a laptop; 0: nothing
)
wandb = ""  # a project name: also log to Weights & Biases
