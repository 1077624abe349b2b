"""
The training loop, the only one: batch, loss, backward, clip, step. What else is in this file stands
around it.
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
from configurator import UserError, print_once
from model import DEFAULTS, unmask
from plumbing.checkpoints import save_checkpoint
from plumbing.hardware import compile_trunk, pick_device
from plumbing.parallel import (
    gradients_stay_here,
    parallel,
    rank_and_world,
    shard_like,
    whole,
    whole_weights,
)
from plumbing.randomness import seeded
from plumbing.runs import Log, files_of_run
from speculative import generate


def learning_rate_at(step, cfg):
    """Linear warm-up, then a cosine down to the fraction min_lr; min_lr = 1 is constant."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    progress = (step - cfg.warmup_iters) / max(1, cfg.max_iters - cfg.warmup_iters)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))  # 1 ... 0
    return cfg.learning_rate * (cfg.min_lr + (1 - cfg.min_lr) * cosine)


def make_optimizer(model, cfg):
    """AdamW, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, cfg.beta2), fused=True)


def fit(
    model,
    loss,
    get_batch,
    validate,
    cfg,
    resume=None,
    meta=None,
    made_for=None,
    name="ckpt.pt",
    first=0,
):
    """
    Trains model in place on loss(model, get_batch(generator), generator) and returns it with its
    averaged weights. Each validation calls validate(model) -> float and writes out_dir/name.

    All random numbers of a step follow from (seed, step, forward pass): a resumed run, or one on
    another number of processes, continues with the same ones, and neither validation nor a sample
    can disturb them. Raises UserError at a loss that is not finite.

    resume: the checkpoint to go on from; the model has its weights. meta: the dataset's, saved with
    the model. made_for: the {"steps", "sampler"} of an SDTT student. first: the steps of earlier
    rounds, from which seeds and log count on.
    """
    device, autocast, _ = pick_device(cfg.device, cfg.dtype)
    rank, world = rank_and_world()
    path = os.path.join(cfg.out_dir, name)
    n_forwards = cfg.gradient_accumulation_steps  # a step, of all processes together
    # before the optimizer: FSDP cuts the weights into shards
    batch_loss = parallel(model, loss, device, world, cfg.fsdp)
    optimizer = make_optimizer(model, cfg)
    averaged = {}  # name -> the average of that weight over the last steps
    if cfg.ema:
        averaged = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = restore(resume, optimizer, averaged, cfg, path) if resume else 0
    if cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda"):
        compile_trunk(model, device)
    progress = Progress(cfg, start, first, path)

    model.train()
    for step in range(start, cfg.max_iters):
        lr = learning_rate_at(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # each process takes every world-th forward pass of the step; gradients add up
        step_loss = 0.0
        tokens = 0
        for i in range(rank, n_forwards, world):
            batch = get_batch(seeded(cfg.seed, first + step, i)).to(device, non_blocking=True)
            generator = seeded(cfg.seed, first + step, i, "noise", device=device)
            if model.config.dropout:
                torch.manual_seed(generator.initial_seed())  # it knows only the global generator
            # DDP averages over processes with the last backward: world / n_forwards makes that the
            # mean over all forward passes
            with gradients_stay_here(batch_loss, cfg.fsdp, world, more=i + world < n_forwards):
                with autocast:
                    value = batch_loss(batch, generator) * (world / n_forwards)
                value.backward()
            step_loss += value.detach()
            tokens += batch.numel() * world
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        update(averaged, model, step, cfg.ema)

        evaluating = (step + 1) % cfg.eval_interval == 0 or step + 1 == cfg.max_iters
        progress.add(step, step_loss, lr, tokens, evaluating)
        if evaluating:
            with averaged_weights(model, averaged), whole_weights(batch_loss, cfg.fsdp):
                val_loss = evaluate(model, validate, step + 1, first, cfg, meta, made_for)
            progress.check_finite([val_loss], step, lr)
            saved = {
                **training_state(model, optimizer, averaged, step + 1),
                "model_config": dataclasses.asdict(model.config),
                "val_loss": val_loss,
                "config": vars(cfg),
                "meta": meta,
                "made_for": made_for,
            }
            progress.save(whole(saved) if cfg.fsdp else saved)
    progress.bar.close()

    for n, average in averaged.items():
        model.get_parameter(n).data.copy_(average)
    return model.eval()


# --------------------------------------------------------------------------------------------------
# what is saved, and how a run goes on from it


def training_state(model, optimizer, averaged, step):
    return {
        "model": model.state_dict(),
        "ema": averaged or None,
        "optimizer": optimizer.state_dict(),
        "step": step,
    }


def restore(resume, optimizer, averaged, cfg, path):
    """Optimizer and averages get what the checkpoint `resume` holds -> its step."""
    if bool(resume["ema"]) != bool(cfg.ema):
        ema = resume["config"]["ema"]
        raise UserError(f"{path} was trained with --ema={ema}; resume it with the same.")
    saved = resume["optimizer"]
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for i, of_weight in saved["state"].items():
        state[i] = {key: shard_like(ordered[i], x) for key, x in of_weight.items()}
    optimizer.load_state_dict({**saved, "state": state})
    for n, average in averaged.items():
        averaged[n] = shard_like(average, resume["ema"][n])
    if resume["step"] >= cfg.max_iters:
        print_once(f"{path} is already trained for {resume['step']} steps.")
    return resume["step"]


# --------------------------------------------------------------------------------------------------
# averaged weights. (Not torch's AveragedModel, whose copy of the module FSDP does not shard.)


def update(averaged, model, step, ema):
    """
    The averages move towards the weights by 1 - ema, and by more while the run is young, or they
    would remember its random start.
    """
    if averaged:
        weights = [p.data for p in model.parameters()]
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(averaged.values()), weights, 1 - decay)


def swap(model, averaged):
    # the numbers, not the tensors: FSDP gathers from the memory that it knows
    for weight, average in zip(model.parameters(), averaged.values(), strict=bool(averaged)):
        kept = weight.detach().clone()
        weight.data.copy_(average)
        average.copy_(kept)


@contextlib.contextmanager
def averaged_weights(model, averaged):
    """Inside, the weights are their averages (if there are any); outside, what they were."""
    swap(model, averaged)
    try:
        yield
    finally:
        swap(model, averaged)


# --------------------------------------------------------------------------------------------------
# validation, samples, and what a run says


def validator(loss, corpus, length, cfg, device):
    """-> f(model): the mean loss over the same blocks of validation text, with the same noise."""
    text = data.blocks(corpus.val, length, cfg.eval_iters * cfg.batch_size)
    batches = text.to(device).split(cfg.batch_size)

    def validate(model):
        generator = seeded(cfg.seed, "validation", device=device)
        total = sum(loss(model, batch, generator).item() * len(batch) for batch in batches)
        return total / len(text)

    return validate


def evaluate(model, validate, step, first, cfg, meta, made_for):
    """-> the validation loss, in float32; prints a sample where one is due."""
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # the shapes vary
        val_loss = validate(model)
        if cfg.sample_interval and step % cfg.sample_interval == 0:
            generator = seeded(cfg.seed, "show", device=model.wte.weight.device)
            text = show_sample(model, generator, meta, made_for)  # by all: FSDP gathers blocks
            if rank_and_world()[0] == 0:
                tqdm.write(f"--- step {first + step}\n{text}\n---")
    model.train()
    return val_loss


def show_sample(model, generator, meta, made_for=None):
    """-> the text of one sample; a student samples in the way that it was made for."""
    T = model.config.block_size
    device = model.wte.weight.device
    if model.config.causal:
        start = torch.full((1, 1), data.start_token(meta), device=device)
        tokens = generate(model, start, T - 1, generator=generator)
    else:
        blank = torch.full((1, T), model.mask_id, device=device)
        way = made_for or DEFAULTS
        tokens = unmask(model, blank, way["steps"], way["sampler"], generator=generator)
    return data.encoder(meta)[1](tokens[0].tolist())


LOG_INTERVAL = 10  # steps


class Progress:
    """The bar and log.jsonl, the checkpoint's file, and an end where a loss is no longer finite."""

    def __init__(self, cfg, start, first, path):
        self.out_dir = cfg.out_dir
        self.first = first
        self.path = path
        self.rank, self.world = rank_and_world()
        self.log = None
        if self.rank == 0:
            self.log = Log(cfg.out_dir, first + start, cfg.wandb, vars(cfg))
        self.bar = tqdm(
            total=cfg.max_iters,
            initial=start,
            unit="step",
            disable=self.rank != 0,
            dynamic_ncols=True,
        )
        self.begin()

    def begin(self):
        self.losses = []
        self.tokens = 0
        self.began = time.perf_counter()

    def write(self, record):
        if self.log:
            self.log.write(record)

    def add(self, step, loss, lr, tokens, evaluating):
        """Counts a step; every LOG_INTERVAL of them, and before a validation, says how it goes."""
        self.losses.append(loss)
        self.tokens += tokens
        self.bar.update()
        if (step + 1) % LOG_INTERVAL and not evaluating:
            return
        losses = torch.stack(self.losses)
        if self.world > 1:
            dist.all_reduce(losses)
            losses /= self.world
        self.check_finite(losses.tolist(), step, lr)
        mean = losses.mean().item()
        speed = self.tokens / (time.perf_counter() - self.began)
        self.bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
        record = {"step": self.first + step + 1, "loss": round(mean, 4), "lr": lr}
        self.write({**record, "tokens_per_s": round(speed)})
        self.begin()

    def save(self, saved):
        """Writes a checkpoint and says so. The time that validation took is not training's."""
        if self.rank == 0:
            save_checkpoint(self.path, saved)
            step = self.first + saved["step"]
            val_loss = saved["val_loss"]
            self.write({"step": step, "val_loss": round(val_loss, 4)})
            tqdm.write(f"step {step}: validation loss {val_loss:.4f}, saved to {self.path}")
        self.began = time.perf_counter()

    def check_finite(self, losses, step, lr):
        """losses: those since the last log, the last one of them step's."""
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)]
        if not bad:
            return
        self.bar.close()
        at = self.first + step + 2 - len(losses) + bad[0]
        good = files_of_run(self.out_dir)
        hint = "No checkpoint was saved yet: start again with a lower --learning_rate."
        if good:
            hint = f"The last good one is {good[-1]}: --init_from=resume, a lower --learning_rate."
        value = losses[bad[0]]
        raise UserError(f"The loss became {value} at step {at}, learning rate {lr:.2e}. {hint}")


def check_loop(cfg):
    """Raises UserError for knobs that do not go together or make no sense, before any work."""
    for name in ("batch_size", "gradient_accumulation_steps", "eval_interval", "eval_iters"):
        if getattr(cfg, name) < 1:
            raise UserError(f"{name} is {getattr(cfg, name)}; it must be at least 1.")
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
        raise UserError("fsdp shards over processes: torchrun --standalone --nproc_per_node=2 ...")
    if cfg.wandb and not importlib.util.find_spec("wandb"):
        raise UserError(f"wandb is {cfg.wandb!r}, but it is missing: pip install wandb")
    if cfg.sample_interval % cfg.eval_interval:
        raise UserError(
            f"sample_interval {cfg.sample_interval} is no multiple of eval_interval "
            f"{cfg.eval_interval}."
        )
