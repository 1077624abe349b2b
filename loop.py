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
from configurator import UserError, print_once
from model import DEFAULTS, unmask
from plumbing.checkpoints import save_checkpoint
from plumbing.hardware import compile_trunk, pick_device, say_forecast
from plumbing.parallel import (
    gradients_stay_here,
    parallel,
    rank_and_world,
    shard_like,
    whole,
    whole_weights,
)
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
    return cfg.learning_rate * (
        cfg.min_lr + (1 - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def make_optimizer(model, cfg):
    """-> AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": 0.0},
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
    """The training loop: model is trained in place on loss(model, get_batch(generator), generator).

    Every random number of a step comes from a generator seeded by (seed, step, forward): a resumed run, or one on
    another number of processes, continues with the same numbers, and nothing else can disturb them. Each validation
    calls validate(model) -> float and writes out_dir/name. Returns the averaged model. Raises UserError at a loss that
    is not finite, with the path of the last good checkpoint. meta: the dataset's, saved with the model.
    made_for: the {"steps", "sampler"} of an SDTT student. first: the steps of earlier rounds, from which the seeds and
    the log count on.
    """
    device, autocast, _ = pick_device(cfg.device, cfg.dtype)  # again, for its autocast
    rank, world = rank_and_world()
    n_forwards = cfg.gradient_accumulation_steps  # of all processes together, before a step
    path = os.path.join(cfg.out_dir, name)
    batch_loss = parallel(
        model, loss, device, world, cfg.fsdp
    )  # before the optimizer: FSDP cuts weights into shards
    optimizer = make_optimizer(model, cfg)
    averaged = {n: p.detach().clone() for n, p in model.named_parameters()} if cfg.ema else {}
    start = restore(resume, optimizer, averaged, model, cfg, path) if resume else 0
    if cfg.compile == "on" or (cfg.compile, device.type) == ("auto", "cuda"):
        compile_trunk(model, device)
    progress = Progress(cfg, start, first, path, device)
    model.train()
    for step in range(start, cfg.max_iters):
        lr = learning_rate_at(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr
        step_loss, tokens = 0.0, 0
        for i in range(
            rank, n_forwards, world
        ):  # the forwards of this process: their gradients add up
            batch = get_batch(seeded(cfg.seed, first + step, i)).to(device, non_blocking=True)
            noise = seeded(
                cfg.seed, first + step, i, "noise", device=device
            )  # a generator, of the loss's noise
            if model.config.dropout:
                torch.manual_seed(
                    noise.initial_seed()
                )  # nn.Dropout knows only the global generator
            # DDP averages over the processes with the last backward; times world / n_forwards: over all forwards
            with gradients_stay_here(batch_loss, cfg, world, more=i + world < n_forwards):
                with autocast:
                    value = batch_loss(batch, noise) * (world / n_forwards)
                value.backward()
            step_loss, tokens = step_loss + value.detach(), tokens + batch.numel() * world
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        update(averaged, model, step, cfg)
        evaluating = (step + 1) % cfg.eval_interval == 0 or step + 1 == cfg.max_iters
        progress.add(step, step_loss, lr, tokens, evaluating)
        if evaluating:
            with averaged_weights(model, averaged), whole_weights(batch_loss, cfg.fsdp):
                val_loss = evaluate(model, validate, step + 1, first, autocast, cfg, meta, made_for)
            progress.refuse_nan([val_loss], step, lr)
            progress.save(
                checkpoint(model, optimizer, averaged, step + 1, val_loss, cfg, meta, made_for)
            )
    progress.bar.close()
    for n, average in averaged.items():
        model.get_parameter(n).data.copy_(average)
    return model.eval()


def restore(resume, optimizer, averaged, model, cfg, path):
    """Optimizer and averages get what the checkpoint `resume` holds -> its step. The model has its weights already."""
    if resume["config"].get("optimizer") == "muon":
        raise UserError(f"{path} was trained with Muon, which is gone. Train it anew, with AdamW.")
    if bool(resume["ema"]) != bool(cfg.ema):
        raise UserError(
            f"{path} was trained with --ema={resume['config']['ema']}; resume it with the same."
        )
    saved = (
        resume["optimizer"] if "optimizer" in resume else resume["optimizers"][0]
    )  # a list, in older runs
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {k: shard_like(ordered[i], x) for k, x in state.items()}
        for i, state in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
    for n, average in averaged.items():
        averaged[n] = shard_like(average, resume["ema"][n])
    if resume["step"] >= cfg.max_iters:
        print_once(f"{path} is already trained for {resume['step']} steps.")
    return resume["step"]


def checkpoint(model, optimizer, averaged, step, val_loss, cfg, meta, made_for):
    """-> the dict that is saved. Sharded tensors are gathered, so that any number of processes can go on from it."""
    saved = {
        "model_config": dataclasses.asdict(model.config),
        "model": model.state_dict(),
        "ema": averaged or None,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "val_loss": val_loss,
        "config": vars(cfg),
        "meta": meta,
        "made_for": made_for,
    }
    return whole(saved) if cfg.fsdp else saved


def update(averaged, model, step, cfg):
    """The averages move towards the weights: by 1 - ema, and further while the run is young, or they would remember
    its random start.
    """
    if averaged:
        weights = [p.data for p in model.parameters()]
        torch._foreach_lerp_(
            list(averaged.values()), weights, 1 - min(cfg.ema, (step + 1) / (step + 10))
        )


@contextlib.contextmanager
def averaged_weights(model, averaged):
    """Inside, the weights are their averages (if there are any); outside, what they were."""

    def swap():  # the numbers, not the tensors: FSDP gathers from the memory that it knows
        for p, average in zip(model.parameters(), averaged.values(), strict=bool(averaged)):
            kept = p.detach().clone()
            p.data.copy_(average)
            average.copy_(kept)

    swap()
    try:
        yield
    finally:
        swap()


def evaluate(model, validate, step, first, autocast, cfg, meta, made_for):
    """-> the validation loss; prints a sample where one is due. Not compiled: the shapes vary."""
    model.eval()
    with torch.no_grad(), autocast, torch.compiler.set_stance("force_eager"):
        val_loss = validate(model)
        if cfg.sample_interval and step % cfg.sample_interval == 0:
            noise = seeded(cfg.seed, "show", device=model.wte.weight.device)
            text = show_sample(model, noise, meta, made_for)  # by all: FSDP gathers blocks
            if rank_and_world()[0] == 0:
                tqdm.write(f"--- step {first + step}\n{text}\n---")
    model.train()
    return val_loss


class Progress:
    """What a run tells of itself: the bar, log.jsonl, how long it will take, and that a loss is no longer finite."""

    def __init__(self, cfg, start, first, path, device):
        self.cfg, self.start, self.first, self.path, self.device = cfg, start, first, path, device
        self.rank, self.world = rank_and_world()
        self.log = open_log(cfg, first + start) if self.rank == 0 else lambda record: None
        self.bar = tqdm(
            total=cfg.max_iters,
            initial=start,
            unit="step",
            disable=self.rank != 0,
            dynamic_ncols=True,
        )
        self.begin()

    def begin(self):
        self.losses, self.tokens, self.began = [], 0, time.perf_counter()

    def add(self, step, loss, lr, tokens, evaluating):
        """Counts a step; every log_interval of them, and before a validation, says how it goes."""
        self.losses.append(loss)
        self.tokens += tokens
        self.bar.update()
        if (step + 1) % self.cfg.log_interval and not evaluating:
            return
        losses = torch.stack(self.losses)
        if self.world > 1:
            dist.all_reduce(losses)
            losses /= self.world
        self.refuse_nan(losses.tolist(), step, lr)
        seconds, mean = time.perf_counter() - self.began, losses.mean().item()
        speed = self.tokens / seconds
        self.bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
        self.log(
            {
                "step": self.first + step + 1,
                "loss": round(mean, 4),
                "lr": lr,
                "tokens_per_s": round(speed),
            }
        )
        n, done = self.cfg.max_iters, step + 1 - self.start
        second = done - len(losses) < 2 * self.cfg.log_interval <= done  # the first steps are slow
        if second and step + 1 < n and self.rank == 0:
            say_forecast(
                n - step - 1, n, seconds / len(losses), self.cfg.laptop_minutes, self.device
            )
        self.begin()

    def save(self, saved):
        """Writes a checkpoint and says so. The time that validation took is not training's."""
        if self.rank == 0:
            save_checkpoint(self.path, saved)
            step, val_loss = self.first + saved["step"], saved["val_loss"]
            self.log({"step": step, "val_loss": round(val_loss, 4)})
            tqdm.write(f"step {step}: validation loss {val_loss:.4f}, saved to {self.path}")
        self.began = time.perf_counter()

    def refuse_nan(self, losses, step, lr):
        """losses: those since the last log, the last one of them step's."""
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)]
        if not bad:
            return
        self.bar.close()
        at, good = self.first + step + 1 - len(losses) + bad[0] + 1, files_of_run(self.cfg.out_dir)
        mend = "No checkpoint was saved yet: start again with a lower --learning_rate."
        if good:
            mend = f"The last good one is {good[-1]}: continue with --init_from=resume and a lower --learning_rate."
        raise UserError(
            f"The loss became {losses[bad[0]]} at step {at} with learning rate {lr:.2e}. {mend}"
        )


def check_loop(cfg):
    """Refuses knobs that do not go together, before any work."""
    n, world = cfg.gradient_accumulation_steps, int(os.environ.get("WORLD_SIZE", 1))
    if n % world:
        mend = f"Use --gradient_accumulation_steps={world * max(1, n // world)}."
        raise UserError(
            f"gradient_accumulation_steps {n} does not divide into {world} processes. {mend}"
        )
    if cfg.fsdp and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "fsdp shards over processes: start them with torchrun --standalone --nproc_per_node=2 ..."
        )
    if cfg.wandb and not importlib.util.find_spec("wandb"):
        raise UserError(
            f"wandb is {cfg.wandb!r}, but the package is missing. Install it with: pip install wandb"
        )
    if cfg.sample_interval % cfg.eval_interval:
        raise UserError(
            f"sample_interval {cfg.sample_interval} is no multiple of eval_interval {cfg.eval_interval}."
        )


def validator(loss, corpus, length, cfg, device):
    """-> f(model): the mean loss over the same blocks of validation text, with the same noise at every call."""
    batches = (
        data.blocks(corpus.val, length, cfg.eval_iters * cfg.batch_size)
        .to(device)
        .split(cfg.batch_size)
    )

    def validate(model):
        noise = seeded(cfg.seed, "validation", device=device)
        return sum(loss(model, b, noise).item() * len(b) for b in batches) / sum(map(len, batches))

    return validate


def show_sample(model, noise, meta, made_for=None):
    """-> the text of one sample; a student samples in the way that it was made for."""
    T, device = model.config.block_size, model.wte.weight.device
    if model.config.causal:
        tokens = generate(
            model, torch.full((1, 1), data.start_token(meta), device=device), T - 1, generator=noise
        )
    else:
        blank = torch.full((1, T), model.mask_id, device=device)
        tokens = unmask(model, blank, **(made_for or DEFAULTS), generator=noise)
    return data.encoder(meta)[1](tokens[0].tolist())
