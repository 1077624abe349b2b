"""
Train a GPT or a masked diffusion language model.
$ python train.py config/train_pydoc.py           (4 minutes on 2 laptop cores; --help prints the knobs)
$ torchrun --standalone --nproc_per_node=8 train.py config/train_openwebtext.py    (--fsdp=True: in shards)

`fit` is the only training loop of the project. A diffusion model converts from a GPT: --init_from=out/gpt/ckpt.pt.
"""

import dataclasses
import functools
import os

import torch

import data
from config.common import *
from config.loop import *
from configurator import UserError, check, configure, print_once, save_config
from drafters import fit_ngram, load_model, new_model
from loop import check_loop, fit, validator
from model import GPTConfig, ar_loss, config_of, diffusion_loss, nelbo
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of
from plumbing.parallel import join_processes, leave_processes, on_first_process, rank_and_world
from plumbing.published import refuse_used_export, save_published
from plumbing.runs import claim, refuse_used, release, to_resume

# ----------------------------------------------------------------------------------------------------------------------
dataset = "pydoc"
objective = "diffusion"  # 'diffusion' | 'ar'
out_dir = "out/train"
init_from = "scratch"  # 'scratch' | 'resume' (out_dir) | a ckpt.pt or a published model such as gpt2 or mdlm-owt, also
# of the other objective: it is converted
# model
arch = (
    "gpt"  # 'gpt' | 'lstm' | 'cnn' | 'ngram': small ones that draft for a GPT, for objective 'ar'
)
block_size = 256  # tokens, at least 2
n_layer = 6  # at least 1
n_head = 6  # at least 1
n_embd = 384  # at least 1
pos = "rope"  # 'rope' | 'learned'
tie_weights = True
max_iters = 2000  # optimizer steps, at least 1
t_weight = (
    1.0  # diffusion: noise t weighs 1/t^t_weight; 1 is the bound, 0.5 learns faster, from 0 to 1
)
random_length = (
    0.0  # fraction of diffusion batches cut to a random length (LLaDA: 0.01), from 0 to 1
)
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def make_model(cfg, meta, device):
    """-> GPT on device, and the checkpoint to resume from or None. Builds from scratch, resumes or converts."""
    device = "cpu" if cfg.fsdp else device  # fit moves it to the GPUs, block by block
    causal = cfg.objective == "ar"
    # the fields of GPTConfig that are knobs
    names = (
        "block_size",
        "n_layer",
        "n_head",
        "n_embd",
        "dropout",
        "tie_weights",
        "attention",
        "arch",
        "kernel_size",
    )
    names += ("pos",) if cfg.arch == "gpt" else ()
    torch.manual_seed(cfg.seed)  # nn.init knows only the global generator
    if cfg.init_from != "resume":
        refuse_used(cfg.out_dir)
    if cfg.init_from == "scratch":
        config = GPTConfig(
            vocab_size=meta["vocab_size"], causal=causal, **{k: getattr(cfg, k) for k in names}
        )
        return new_model(config).to(device), None
    (path,) = to_resume(cfg.out_dir, "ckpt.pt") if cfg.init_from == "resume" else (cfg.init_from,)
    saved = load_checkpoint(
        path
    )  # on the CPU: beside the weights, averages and optimizer it may not fit the GPU
    was = config_of(saved, path, attention=cfg.attention)
    if not data.same_vocabulary(saved["meta"], meta):
        sizes = f"{was.vocab_size} tokens, {cfg.dataset} has {meta['vocab_size']}"
        raise UserError(
            f"{path} has another vocabulary ({sizes}): data/text/prepare.py --tokenizer={path} takes it."
        )
    if cfg.init_from == "resume" and saved["meta"].get("sha256") != meta.get("sha256"):
        raise UserError(
            f"{cfg.dataset} is another text than {path} was trained on. Take another --out_dir."
        )
    if cfg.init_from == "resume" and was.causal != causal:
        raise UserError(
            f"{path} was trained with another objective than {cfg.objective!r}; use --init_from={path}."
        )
    config = dataclasses.replace(was, dropout=cfg.dropout)  # the shape is the checkpoint's
    if cfg.init_from == "resume":
        weights, resume = saved["model"], saved
    else:  # conversion: this run's context and direction
        config = dataclasses.replace(config, causal=causal, block_size=cfg.block_size)
        weights, resume = weights_of(saved), None
    taken = {k: getattr(config, k) for k in names if getattr(cfg, k) != getattr(config, k)}
    if taken:
        print_once(
            f"the shape is that of {path}: " + ", ".join(f"{k} {v}" for k, v in taken.items())
        )
        vars(cfg).update(taken)  # so that config.json tells what was used
    model = new_model(config).to(device)
    load_weights(model, weights)
    return model, resume


def main(cfg):
    check(cfg, __file__)
    check_loop(cfg)
    refuse_used_export(cfg.export, cfg.arch)
    device, note = join_processes(cfg)
    corpus = data.load(cfg.dataset)
    if cfg.arch == "ngram":
        return on_first_process(lambda: fit_ngram(cfg, corpus.train, corpus))
    model, resume = make_model(cfg, corpus.meta, device)
    n_params = sum(p.numel() for p in model.parameters())
    print_once(f"{n_params / 1e6:.2f} M parameters on {note}")
    if rank_and_world()[0] == 0:
        claim(cfg.out_dir)
        save_config(cfg, cfg.out_dir, n_params=n_params, device_used=note)
    ar = cfg.objective == "ar"
    T = cfg.block_size

    def get_batch(generator):
        length = T
        if not ar and cfg.random_length and torch.rand((), generator=generator) < cfg.random_length:
            length = int(torch.randint(1, T + 1, (), generator=generator))
        return data.batch(
            corpus.train, cfg.batch_size, length + ar, generator
        )  # a GPT's last target is one token more

    validate = validator(ar_loss if ar else nelbo, corpus, T + ar, cfg, device)
    loss = ar_loss if ar else functools.partial(diffusion_loss, t_weight=cfg.t_weight)
    try:
        fit(model, loss, get_batch, validate, cfg, resume, corpus.meta)
    finally:
        release(cfg.out_dir)
    if cfg.export:
        on_first_process(
            lambda: save_published(cfg.export, *load_model(os.path.join(cfg.out_dir, "ckpt.pt")))
        )
    leave_processes()


if __name__ == "__main__":
    main(cfg)
