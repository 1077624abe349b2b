"""
Train a GPT, or a masked diffusion language model.
$ python train.py config/train_pydoc.py           (4 minutes on 2 laptop cores; --help: all knobs)
$ torchrun --standalone --nproc_per_node=8 train.py config/train_openwebtext.py

To start a diffusion model from a trained GPT: --init_from=out/gpt/ckpt.pt.
Sahoo et al. 2024, arXiv 2406.07524.
"""

import dataclasses
import functools

import torch

import data
from configurator import UserError, check_at_least, choose, configure, print_once, save_config
from drafters import fit_ngram, load_model, new_model
from loop import check_loop, fit, hooks, validator
from model import GPTConfig, ar_loss, convert, diffusion_loss, nelbo
from plumbing.checkpoints import load_checkpoint, load_weights
from plumbing.parallel import (
    is_first_process,
    join_processes,
    leave_processes,
    on_first_process,
)
from plumbing.runs import check_unused, claim, release, to_resume

# --------------------------------------------------------------------------------------------------
dataset = "pydoc"  # a name under data/, or a folder that a prepare.py wrote
objective = "diffusion"  # 'diffusion' | 'ar'
out_dir = "out/train"
init_from = "scratch"  # 'scratch' | 'resume' (out_dir) | a checkpoint, converted if need be
# model
arch = "gpt"  # 'gpt' | 'lstm' | 'cnn' | 'ngram'; the last three are drafters: --objective=ar
block_size = 256  # tokens
n_layer = 6
n_head = 6
n_embd = 384
pos = "rope"  # 'rope' | 'learned'
tie_weights = True  # the head shares the token embedding
ngram_n = 5  # of an n-gram, from 1 to 8
smoothing = "kneser_ney"  # 'kneser_ney' | 'laplace', of an n-gram
# diffusion
t_weight = 1.0  # a: noise t has weight (2 - a) / t^a; 1 is the bound, 0.5 learns faster
random_length = 0.0  # fraction of batches cut to a random length (LLaDA: 0.01)
# optimizer: AdamW
max_iters = 2000  # optimizer steps
batch_size = 16  # sequences per forward pass, on each process
gradient_accumulation_steps = 1  # forward passes per step, over all processes
learning_rate = 1e-3
warmup_iters = 100  # steps, linear, up to learning_rate
min_lr = 0.1  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.1  # of matrices
beta2 = 0.99  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
dropout = 0.0  # of the model that is trained
ema = 0.0  # decay of the averaged weights, which are validated and sampled; 0: off
# the run
eval_interval = 500  # steps between validations, which save the checkpoint
eval_iters = 20  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "auto"  # 'auto' (on cuda) | 'on' | 'off': torch.compile
fsdp = False  # under torchrun: shard weights, gradients and optimizer (FSDP2); False: DDP
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

# the knobs that are a model's shape
SHAPE = ("block_size", "n_layer", "n_head", "n_embd", "pos", "tie_weights", "arch")


def check_vocabulary(path, checkpoint, meta, dataset):
    if not data.same_vocabulary(checkpoint["meta"], meta):
        V = checkpoint["meta"]["vocab_size"]
        raise UserError(
            f"{path} has another vocabulary ({V} tokens, {dataset} has {meta['vocab_size']}). Use: "
            f"python data/text/prepare.py {data.tokenizer_knob(path, checkpoint['meta'])}"
        )


def new_run(cfg, meta):
    """-> a model from scratch, or from a checkpoint of either objective."""
    causal = cfg.objective == "ar"
    check_unused(cfg.out_dir)
    torch.manual_seed(cfg.seed)  # nn.init knows only the global generator
    if cfg.init_from == "scratch":
        shape = {name: getattr(cfg, name) for name in SHAPE}
        config = GPTConfig(
            vocab_size=meta["vocab_size"],
            causal=causal,
            dropout=cfg.dropout,
            attention=cfg.attention,
            **shape,
        )
        return new_model(config)

    model, checkpoint = load_model(cfg.init_from, attention=cfg.attention)
    if not isinstance(model.config, GPTConfig):
        raise UserError(f"{cfg.init_from} is a model of transformers, which train.py cannot train.")
    check_vocabulary(cfg.init_from, checkpoint, meta, cfg.dataset)
    if model.config.block_size != cfg.block_size:
        n = model.config.block_size
        print_once(f"block_size is {cfg.block_size}; {cfg.init_from} was trained with {n}")
    return convert(model, causal, cfg.block_size, cfg.dropout)


def resumed_run(cfg, meta):
    """-> the model of out_dir's checkpoint, and the checkpoint."""
    (path,) = to_resume(cfg.out_dir, "ckpt.pt")
    saved = load_checkpoint(path)  # on the CPU: with averages and optimizer it may not fit the GPU
    check_vocabulary(path, saved, meta, cfg.dataset)
    if saved["meta"].get("sha256") != meta.get("sha256"):
        raise UserError(f"{cfg.dataset} is not the text that {path} was trained on.")
    config = dataclasses.replace(
        GPTConfig(**saved["model_config"]), dropout=cfg.dropout, attention=cfg.attention
    )
    if config.causal != (cfg.objective == "ar"):
        raise UserError(
            f"{path} has another objective than {cfg.objective!r}. To convert it: "
            f"--init_from={path}."
        )
    model = new_model(config)
    load_weights(model, saved["model"])
    return model, saved


def make_model(cfg, meta):
    """-> the model to train, on the CPU, and the checkpoint to resume from or None."""
    saved = None
    source = cfg.init_from
    if cfg.init_from == "resume":
        model, saved = resumed_run(cfg, meta)
        source = cfg.out_dir
    else:
        model = new_run(cfg, meta)
    overridden = []  # knobs that the shape of a checkpoint overrides
    for name in SHAPE:
        value = getattr(model.config, name)
        if getattr(cfg, name) != value and value != "none":  # an LSTM has no positions
            overridden.append(f"{name} {value}")
            setattr(cfg, name, value)  # so that config.json has the real shape
    if overridden:
        print_once(f"the shape is that of {source}: {', '.join(overridden)}")
    return model, saved


def check_training(cfg):
    choose("objective", cfg.objective, ("diffusion", "ar"))
    choose("arch", cfg.arch, ("gpt", "lstm", "cnn", "ngram"))
    check_at_least(cfg, block_size=2, n_layer=1, n_head=1, n_embd=1)
    for name in ("t_weight", "random_length"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"{name} is {getattr(cfg, name)}; it must be from 0 to 1.")
    if not 1 <= cfg.ngram_n <= 8:
        raise UserError(f"ngram_n is {cfg.ngram_n}; it must be from 1 to 8.")


def count_ngrams(cfg, corpus):
    check_unused(cfg.out_dir)
    fit_ngram(corpus.train, corpus, cfg.ngram_n, cfg.smoothing, cfg.out_dir)
    save_config(cfg, cfg.out_dir)


def main(cfg):
    check_training(cfg)
    check_loop(cfg)
    device, note = join_processes(cfg)
    corpus = data.load(cfg.dataset)
    if cfg.arch == "ngram":
        on_first_process(lambda: count_ngrams(cfg, corpus))
        return leave_processes()

    model, resume = make_model(cfg, corpus.meta)
    if not cfg.fsdp:
        model = model.to(device)  # FSDP moves it to the GPUs itself, block by block
    n_params = sum(p.numel() for p in model.parameters())
    print_once(f"{n_params / 1e6:.2f} M parameters on {note}")
    if is_first_process():
        claim(cfg.out_dir)
        save_config(cfg, cfg.out_dir, n_params=n_params, device_used=note)

    ar = cfg.objective == "ar"
    T = cfg.block_size

    def get_batch(generator):
        if ar:  # T inputs, and the target of the last one
            return data.batch(corpus.train, cfg.batch_size, T + 1, generator)
        length = T
        if cfg.random_length and torch.rand((), generator=generator) < cfg.random_length:
            length = int(torch.randint(1, T + 1, (), generator=generator))
        return data.batch(corpus.train, cfg.batch_size, length, generator)

    if ar:
        loss = ar_loss
        validate = validator(ar_loss, corpus, T + 1, cfg, device)
    else:
        loss = functools.partial(diffusion_loss, t_weight=cfg.t_weight)
        validate = validator(nelbo, corpus, T, cfg, device)
    on_eval, save = hooks(model, validate, cfg, corpus.meta)
    try:
        fit(model, loss, get_batch, cfg, on_eval, save, resume)
    finally:
        release(cfg.out_dir)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
