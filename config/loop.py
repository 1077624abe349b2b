"""
The knobs of the training loop, of train.py and distill.py: --help shows them. Each script gives some of them another
value.
"""

# a small drafter's
kernel_size = 5  # of a cnn, in tokens
ngram_n = 5  # of an ngram, which counts and needs none of the other knobs
smoothing = "kneser_ney"  # of an ngram: 'kneser_ney' | 'laplace'
ngram_discount = 0.75  # taken off every count, by Kneser-Ney; 0 ... 1
ngram_alpha = 0.1  # added to every count, by Laplace; above 0
dropout = 0.0  # of the model that is trained
# optimizer: AdamW
learning_rate = 1e-3
warmup_iters = 100  # linear, up to learning_rate
lr_schedule = "cosine"  # 'cosine' (down to min_lr) | 'constant', both after the warm-up
min_lr = 0.1  # fraction of learning_rate at the end
weight_decay = 0.1  # of matrices
beta2 = 0.99  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
ema = 0.0  # decay of the averaged weights, e.g. 0.999; they are validated and sampled; 0: off
gradient_accumulation_steps = 1  # forwards per step, over all processes
# the run
eval_interval = 500  # steps between validations; each one saves the checkpoint
eval_iters = 20  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
log_interval = 10  # steps between log lines
compile = "auto"  # torch.compile the trunk for training: 'auto' (on cuda) | 'on' | 'off'
fsdp = False  # under torchrun: shard weights, gradients and optimizer over the processes (FSDP2); False: DDP
export = ""  # a folder: also save the trained model there as model.safetensors and config.json, to publish it
laptop_minutes = 0.0  # that the README says the run (of SDTT: a round) takes on a laptop; 0: nothing
wandb = ""  # a project name: also log to Weights & Biases
