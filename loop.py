"""
The training loop, the only one: batch, loss, backward, clip, step. Everything else in this file is around it.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import time

import torch
import torch.distributed as dist
import torch.nn as nn
from tqdm import tqdm

import data
from configurator import UserError, check_range, choose
from model import unmask
from plumbing.checkpoints import save_checkpoint
from plumbing.hardware import pick_device, say_forecast
from plumbing.parallel import parallel, shard_like, whole
from plumbing.randomness import seeded
from plumbing.runs import files_of_run, open_log
from speculative import generate


def learning_rate_at(step, cfg):
    """step 0 ... max_iters - 1 -> the learning rate of that step."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    if cfg.lr_schedule == "constant":
        return cfg.learning_rate
    progress = (step - cfg.warmup_iters) / max(1, cfg.max_iters - cfg.warmup_iters)
    return cfg.learning_rate * (cfg.min_lr + (1 - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model, cfg):
    """-> AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, cfg.beta2), fused=True)


def fit(model, loss, get_batch, validate, cfg, resume=None, meta=None, show=None, name="ckpt.pt", first=0):
    """The training loop: model is trained in place on loss(model, get_batch(generator), generator).

    Every random number of a step comes from a generator seeded by (seed, step, forward): a resumed run, or one on
    another number of processes, continues with the same numbers, and nothing else can disturb them. Each validation
    calls validate(model) -> float and writes out_dir/name. Returns the averaged model. Raises UserError
    at a loss that is not finite, with the path of the last good checkpoint. first: the steps of earlier rounds, which
    the seeds and the log count on from.
    """
    device, autocast, _ = pick_device(cfg.device, cfg.dtype)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    n_forwards = cfg.gradient_accumulation_steps
    if n_forwards % world:
        raise UserError(
            f"gradient_accumulation_steps {n_forwards} does not divide into {world} processes. "
            f"Use --gradient_accumulation_steps={world * max(1, n_forwards // world)}."
        )
    path = os.path.join(cfg.out_dir, name)
    loss_of = parallel(model, loss, device, world, cfg.fsdp)  # first: FSDP replaces the weights by their shards
    optimizer = make_optimizer(model, cfg)
    weights = list(model.parameters())
    averaged = [p.detach().clone() for p in weights] if cfg.ema else None
    start = 0
    if resume:
        start = resume["step"]
        was = resume["config"]
        if was.get("optimizer") == "muon":
            raise UserError(f"{path} was trained with Muon, which is gone. Train it anew, with AdamW.")
        if bool(resume["ema"]) != bool(cfg.ema):
            raise UserError(f"{path} was trained with --ema={was['ema']}; resume it with the same.")
        saved = resume["optimizer"] if "optimizer" in resume else resume["optimizers"][0]  # a list, in older runs
        ordered = [p for group in optimizer.param_groups for p in group["params"]]
        state = {i: {k: shard_like(ordered[i], x) for k, x in state.items()} for i, state in saved["state"].items()}
        optimizer.load_state_dict({**saved, "state": state})
        if averaged:
            averaged = [shard_like(p, resume["ema"][n]) for n, p in model.named_parameters()]
    log = open_log(cfg, first + start) if rank == 0 else None
    compiled = (
        torch.compile(model.hidden) if cfg.compile == "on" or (cfg.compile, device.type) == ("auto", "cuda") else None
    )
    if compiled:
        model.hidden = compiled

    def checkpoint(step, val_loss):
        names = [n for n, _ in model.named_parameters()]
        return {
            "model_config": dataclasses.asdict(model.config),
            "model": model.state_dict(),
            "ema": dict(zip(names, averaged, strict=True)) if averaged else None,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "val_loss": val_loss,
            "config": vars(cfg),
            "meta": meta,
        }

    def evaluate(step):
        """Validates, samples and saves with the averaged weights in place."""
        vars(model).pop("hidden", None)  # not compiled: its shapes vary
        with averaged_weights(weights, averaged):
            if cfg.fsdp:
                loss_of.unshard()  # what its forward would gather
            model.eval()
            with torch.no_grad(), autocast:
                val_loss = validate(model)
                if show and cfg.sample_interval and step % cfg.sample_interval == 0:
                    text = show(model, seeded(cfg.seed, "show", device=device))  # all do: blocks are gathered by all
                    if rank == 0:
                        tqdm.write(f"--- step {first + step}\n{text}\n---")
            model.train()
            if cfg.fsdp:
                loss_of.reshard()
        if compiled:
            model.hidden = compiled
        refuse_nan([val_loss], first + step - 1, lr, path, bar)
        saved = whole(checkpoint(step, val_loss)) if cfg.fsdp else checkpoint(step, val_loss)
        if rank == 0:
            save_checkpoint(path, saved)
            log({"step": first + step, "val_loss": round(val_loss, 4)})
            tqdm.write(f"step {first + step}: validation loss {val_loss:.4f}, saved to {path}")

    model.train()
    bar = tqdm(total=cfg.max_iters, initial=start, unit="step", disable=rank != 0, dynamic_ncols=True)
    losses, began, tokens = [], time.perf_counter(), 0
    for step in range(start, cfg.max_iters):
        lr = learning_rate_at(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr
        step_loss = 0.0
        for i in range(rank, n_forwards, world):
            batch = get_batch(seeded(cfg.seed, first + step, i)).to(device, non_blocking=True)
            noise = seeded(cfg.seed, first + step, i, "noise", device=device)
            if model.config.dropout:
                torch.manual_seed(noise.initial_seed())  # nn.Dropout knows only the global generator
            more = world > 1 and not cfg.fsdp and i + world < n_forwards
            with loss_of.no_sync() if more else contextlib.nullcontext():
                with autocast:
                    value = loss_of(batch, noise) * (world / n_forwards)
                value.backward()
            step_loss += value.detach()
            tokens += batch.numel() * world
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(weights, cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if averaged:  # the average of a young run forgets faster, or it would remember the random start
            torch._foreach_lerp_(averaged, [p.data for p in weights], 1 - min(cfg.ema, (step + 1) / (step + 10)))

        losses.append(step_loss)
        bar.update()
        evaluating = (step + 1) % cfg.eval_interval == 0 or step + 1 == cfg.max_iters
        if (step + 1) % cfg.log_interval == 0 or evaluating:
            losses = torch.stack(losses)
            if world > 1:
                dist.all_reduce(losses)
                losses /= world
            refuse_nan(losses.tolist(), first + step, lr, path, bar)
            seconds = time.perf_counter() - began
            speed = tokens / seconds
            if step + 1 == start + 2 * cfg.log_interval and rank == 0:  # the first steps of a run are slow
                say_forecast(cfg.max_iters - step - 1, cfg.max_iters, seconds / len(losses), cfg.laptop_minutes, device)
            bar.set_postfix_str(f"loss {losses.mean():.3f}, {speed:,.0f} tokens/s")
            if rank == 0:
                log(
                    {
                        "step": first + step + 1,
                        "loss": round(losses.mean().item(), 4),
                        "lr": lr,
                        "tokens_per_s": round(speed),
                    }
                )
            losses, began, tokens = [], time.perf_counter(), 0
        if evaluating:
            evaluate(step + 1)
            began = time.perf_counter()
    bar.close()
    vars(model).pop("hidden", None)
    if averaged:
        for p, average in zip(weights, averaged, strict=True):
            p.data.copy_(average)
    return model.eval()


@contextlib.contextmanager
def averaged_weights(weights, averaged):
    """Inside, the weights are their averages (if there are any); outside, what they were."""
    pairs = list(zip(weights, averaged, strict=True)) if averaged else []

    def swap():  # the numbers, not the tensors: FSDP gathers from the memory that it knows
        for p, average in pairs:
            kept = p.detach().clone()
            p.data.copy_(average)
            average.copy_(kept)

    swap()
    try:
        yield
    finally:
        swap()


def refuse_nan(losses, step, lr, path, bar):
    """losses: those since the last log, the last one of them step's."""
    for i, value in enumerate(losses):
        if not math.isfinite(value):
            bar.close()
            mend = f"The last good checkpoint is {path}: continue from it with --init_from=resume and a lower"
            if not os.path.exists(path):
                mend = "No checkpoint was saved yet: start again with a lower"
                if files_of_run(os.path.dirname(path)):
                    mend = "Continue after the last round with --init_from=resume and a lower"
            at = step + 1 - len(losses) + i + 1
            raise UserError(
                f"The loss became {value} at step {at} with learning rate {lr:.2e}. {mend} --learning_rate."
            )


def check_loop(cfg):
    """Refuses values of the knobs that fit reads, before any work."""
    choose("lr_schedule", cfg.lr_schedule, ("cosine", "constant"))
    choose("compile", cfg.compile, ("auto", "on", "off"))
    counts = ("max_iters", "batch_size", "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval")
    check_range(cfg, counts, 1)
    check_range(cfg, ("learning_rate", "weight_decay", "grad_clip", "warmup_iters", "sample_interval"), 0)
    check_range(cfg, ("dropout", "ema", "beta2"), 0, 0.999999)
    check_range(cfg, ("min_lr",), 0, 1)
    if cfg.fsdp and "WORLD_SIZE" not in os.environ:
        raise UserError("fsdp shards over processes: start them with torchrun --standalone --nproc_per_node=2 ...")
    if cfg.sample_interval % cfg.eval_interval:
        raise UserError(
            f"sample_interval {cfg.sample_interval} is not a multiple of eval_interval {cfg.eval_interval}."
        )
    if cfg.wandb and not importlib.util.find_spec("wandb"):
        raise UserError(f"wandb is {cfg.wandb!r}, but the package is missing. Install it with: pip install wandb")


def validation_batches(corpus, length, cfg, device):
    """-> eval_iters batches of blocks of validation text, on device."""
    return data.blocks(corpus.val, length, cfg.eval_iters * cfg.batch_size).to(device).split(cfg.batch_size)


def mean_over(batches, f):
    """Batches and f(batch) -> scalar tensor: the mean of f, each batch weighed by its sequences."""
    return sum(f(b).item() * len(b) for b in batches) / sum(map(len, batches))


def show_sample(model, noise, meta, steps):
    """-> the text of one sample; a diffusion model takes that many steps."""
    T, device = model.config.block_size, model.wte.weight.device
    if model.config.causal:
        tokens = generate(model, torch.full((1, 1), data.start_token(meta), device=device), T - 1, generator=noise)
    else:
        tokens = unmask(model, torch.full((1, T), model.mask_id, device=device), steps, generator=noise)
    return data.encoder(meta)[1](tokens[0].tolist())
