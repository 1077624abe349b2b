"""
The training loop, the only one: batch, loss, backward, clip, step. Everything else here supports
it.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os

import torch
import torch.nn as nn
from tqdm import tqdm

import data
from configurator import UserError, check_at_least, choose
from plumbing.checkpoints import save_checkpoint
from plumbing.hardware import compile_as_asked, pick_device
from plumbing.parallel import (
    is_first_process,
    no_sync_until_last,
    parallel_loss,
    rank_and_world,
    whole_weights,
)
from plumbing.randomness import seeded
from plumbing.training import Progress, make_scaler, restore, training_state
from speculative import draw_samples, empty_templates, sampler_and_steps


def learning_rate_at(step, cfg):
    """Linear warm-up, then a cosine down to the fraction min_lr; min_lr = 1 is constant."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    progress = (step - cfg.warmup_iters) / max(1, cfg.max_iters - cfg.warmup_iters)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))  # 1 ... 0
    return cfg.learning_rate * (cfg.min_lr + (1 - cfg.min_lr) * cosine)


def set_learning_rate(optimizer, step, cfg):
    """Sets the learning rate of this step in the optimizer, and returns it."""
    lr = learning_rate_at(step, cfg)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def make_optimizer(model, cfg):
    """AdamW, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, cfg.beta2), fused=True)


def seed_dropout(model, generator):
    """Dropout can only use the global generator."""
    if model.config.dropout:
        torch.manual_seed(generator.initial_seed())


def fit(model, loss, get_batch, cfg, on_eval, save, resume=None, *, steps_before=0):
    """
    Trains model on loss(model, batch, generator), with batches from get_batch(generator), and
    returns the same model, with its averaged weights.

    Every eval_interval steps and at the end, on_eval(model, step) returns the validation loss with
    the averaged weights, and save(state, val_loss) writes a checkpoint, with what the caller adds.
    resume: a checkpoint whose weights the model already has. steps_before: the steps of earlier
    rounds; seeds and log continue from there. Raises UserError if a loss is not finite.
    """
    device, autocast, _ = pick_device(cfg.device, cfg.dtype)
    rank, world = rank_and_world()
    n_forwards = cfg.gradient_accumulation_steps  # in a step, over all processes

    # DDP or FSDP around model and loss; before the optimizer, because FSDP shards the weights
    batch_loss = parallel_loss(model, loss, device, world, cfg.fsdp)
    optimizer = make_optimizer(model, cfg)
    # name of a weight -> its exponential moving average
    averaged = copy_weights(model) if cfg.ema else {}
    # scales a float16 loss, whose small gradients would underflow; does nothing in other formats
    scaler = make_scaler(device, autocast)
    start = restore(resume, optimizer, averaged, scaler, cfg) if resume else 0
    compile_as_asked(model, device, cfg.compile)
    progress = Progress(cfg, start, steps_before)
    # a rank adds up n_forwards / world losses, and DDP averages over the ranks: with this factor
    # the result is the mean over all forward passes
    loss_scale = world / n_forwards

    for step in range(start, cfg.max_iters):
        model.train()
        lr = set_learning_rate(optimizer, step, cfg)

        # All random numbers of a step follow from (seed, step, i): a resumed run, or one on another
        # number of processes, continues with the same ones, and neither validation nor a sample in
        # between can disturb them.
        step_loss = 0.0
        for i in range(rank, n_forwards, world):
            key = (cfg.seed, steps_before + step, i)
            batch = get_batch(seeded(*key)).to(device, non_blocking=True)
            generator = seeded(*key, "noise", device=device)
            seed_dropout(model, generator)
            with no_sync_until_last(batch_loss, cfg.fsdp, world, last=i + world >= n_forwards):
                with autocast:
                    value = batch_loss(batch, generator) * loss_scale
                scaler.scale(value).backward()
            step_loss += value.detach()
        if cfg.grad_clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        scaler.step(optimizer)  # float16: no step if a scaled gradient overflowed
        scaler.update()  # float16: halves the scale after an overflow
        optimizer.zero_grad()
        update_averages(averaged, model, step, cfg.ema)

        last = step + 1 == cfg.max_iters or progress.interrupted  # by Ctrl-C
        evaluating = (step + 1) % cfg.eval_interval == 0 or last
        progress.add(step, step_loss, lr, batch.numel() * n_forwards, evaluating)
        if evaluating:
            with averaged_weights(model, averaged), whole_weights(batch_loss, cfg.fsdp):
                val_loss = on_eval(model.eval(), step + 1)
            progress.check_finite([val_loss], step, lr)
            save(training_state(model, optimizer, averaged, scaler, step + 1), val_loss)
            progress.validated(step, val_loss)
    progress.close()

    swap(model, averaged)  # the caller gets the averaged weights
    return model.eval()


# --------------------------------------------------------------------------------------------------
# averaged weights. (Not torch's AveragedModel, whose copy of the module FSDP does not shard.)


def copy_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def update_averages(averaged, model, step, ema):
    """
    average = decay * average + (1 - decay) * weight. decay is ema, but smaller in early steps, so
    that the average forgets the random initial weights.
    """
    if averaged:
        weights = [p.data for p in model.parameters()]
        decay = min(ema, (step + 1) / (step + 10))  # 0.1 at first, 0.5 in the ninth step ... ema
        torch._foreach_lerp_(list(averaged.values()), weights, 1 - decay)


def swap(model, averaged):
    """Exchanges the values of weights and averages: FSDP keeps using its own tensors."""
    if not averaged:
        return
    for weight, average in zip(model.parameters(), averaged.values(), strict=True):
        kept = weight.detach().clone()
        weight.data.copy_(average)
        average.copy_(kept)


@contextlib.contextmanager
def averaged_weights(model, averaged):
    """Inside the context the model has the averaged weights, if there are any."""
    swap(model, averaged)
    try:
        yield
    finally:
        swap(model, averaged)


# --------------------------------------------------------------------------------------------------
# validation, samples, checkpoints: what the callers of fit hand to it


def validator(loss, corpus, length, cfg, device):
    """-> f(model): the mean loss over the same blocks of validation text, with the same noise."""
    text = data.blocks(corpus.val, length, cfg.eval_iters * cfg.batch_size)
    batches = text.to(device).split(cfg.batch_size)

    def validate(model):
        generator = seeded(cfg.seed, "validation", device=device)
        total = sum(loss(model, batch, generator).item() * len(batch) for batch in batches)
        return total / len(text)

    return validate


def validate_and_show(model, step, *, validate, steps_before, cfg, meta, made_for=None):
    """-> the validation loss, in float32. Prints a sample every sample_interval steps."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # the shapes vary
        val_loss = validate(model)
        if cfg.sample_interval and step % cfg.sample_interval == 0:
            generator = seeded(cfg.seed, "show", device=model.wte.weight.device)
            text = show_sample(model, generator, meta, made_for)  # FSDP: needs all ranks
            if is_first_process():
                tqdm.write(f"--- step {steps_before + step}\n{text}\n---")
    return val_loss


def show_sample(model, generator, meta, made_for=None):
    """-> the text of one sample; a student samples with the sampler and steps it was made for."""
    template = empty_templates(model, meta, 1, model.config.block_size)
    template = template.to(model.wte.weight.device)
    sampler, n_steps = sampler_and_steps("", 0, made_for)
    tokens = draw_samples(model, template, n_steps, sampler, generator=generator)
    return data.encoder(meta)[1](tokens[0].tolist())


def save_run(state, val_loss, *, path, steps_before, cfg, model, meta, made_for=None):
    """Writes a checkpoint to path: the training state, and what load_model needs."""
    checkpoint = {
        **state,
        "model_config": dataclasses.asdict(model.config),
        "val_loss": val_loss,
        "config": vars(cfg),
        "meta": meta,
        "made_for": made_for,
    }
    if is_first_process():
        save_checkpoint(path, checkpoint)
        step = steps_before + state["step"]
        tqdm.write(f"step {step}: validation loss {val_loss:.4f}, saved to {path}")


def hooks(model, validate, cfg, meta, *, name="ckpt.pt", made_for=None, steps_before=0):
    """
    -> on_eval, save for fit: validates, prints samples, and writes out_dir/name.

    made_for: the {"steps", "sampler"} of an SDTT student.
    """
    shared = {"steps_before": steps_before, "cfg": cfg, "meta": meta, "made_for": made_for}
    path = os.path.join(cfg.out_dir, name)
    on_eval = functools.partial(validate_and_show, validate=validate, **shared)
    save = functools.partial(save_run, path=path, model=model, **shared)
    return on_eval, save


def check_loop(cfg):
    """Raises UserError for knobs that do not go together or make no sense, before any work."""
    check_at_least(cfg, batch_size=1, gradient_accumulation_steps=1, eval_interval=1, eval_iters=1)
    choose("compile", cfg.compile, ("auto", "on", "off"))
    if cfg.max_iters < 1:
        raise UserError(f"The run has {cfg.max_iters} steps; it must have at least 1.")
    for name in ("ema", "beta2", "dropout"):
        if not 0 <= getattr(cfg, name) < 1:
            raise UserError(f"{name} is {getattr(cfg, name)}; it must be from 0 to below 1.")
    n = cfg.gradient_accumulation_steps
    world = int(os.environ.get("WORLD_SIZE", 1))
    if n % world:
        fitting = world * max(1, n // world)
        raise UserError(
            f"gradient_accumulation_steps {n} does not divide into {world} processes. "
            f"Use --gradient_accumulation_steps={fitting}."
        )
    if cfg.fsdp and "WORLD_SIZE" not in os.environ:
        raise UserError("fsdp needs torchrun: torchrun --standalone --nproc_per_node=2 ...")
    if cfg.wandb and not importlib.util.find_spec("wandb"):
        raise UserError(f"wandb is {cfg.wandb!r}, but it is missing: pip install wandb")
    if cfg.sample_interval % cfg.eval_interval:
        raise UserError(
            f"sample_interval {cfg.sample_interval} is no multiple of eval_interval "
            f"{cfg.eval_interval}."
        )
