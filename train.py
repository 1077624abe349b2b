"""
Train a GPT or a masked diffusion language model.
$ python train.py config/train_pydoc.py           (4 minutes on 2 CPU cores; --help prints the knobs)
$ torchrun --standalone --nproc_per_node=8 train.py config/train_openwebtext.py    (--fsdp=True: in shards)

`fit` is the only training loop of the project. A diffusion model converts from a GPT: --init_from=out/gpt/ckpt.pt.
"""

import contextlib
import dataclasses
import functools
import glob
import importlib.util
import json
import math
import os
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

import data
from configurator import UserError, check_range, choose, configure, print_once, save_config
from model import (
    GPT,
    GPTConfig,
    NGram,
    ar_loss,
    diffusion_loss,
    generator,
    join_processes,
    load_checkpoint,
    nelbo,
    sample,
    save_checkpoint,
)
from plumbing.hardware import pick_device, say_forecast
from sample import start_token

# ----------------------------------------------------------------------------------------------------------------------
dataset = "pydoc"  # a name under data/, or a folder that a prepare.py wrote
objective = "diffusion"  # 'diffusion' | 'ar'
out_dir = "out/train"
init_from = "scratch"  # 'scratch' | 'resume' (out_dir) | a ckpt.pt or a published model such as gpt2 or mdlm-owt, also
# of the other objective: it is converted
# model
arch = "gpt"  # 'gpt' | for objective 'ar' also 'lstm' | 'cnn' | 'ngram', small ones to draft for a GPT
block_size = 256  # tokens
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.0
kernel_size = 5  # of arch 'cnn', in tokens
ngram_n = 5  # of arch 'ngram', which counts and needs none of the other knobs
smoothing = "kneser_ney"  # of arch 'ngram': 'kneser_ney' | 'laplace'
pos = "rope"  # 'rope' | 'learned'
tie_weights = True
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
# optimizer
learning_rate = 1e-3
max_iters = 2000  # optimizer steps
warmup_iters = 100
lr_schedule = "cosine"  # 'cosine' (down to min_lr) | 'constant', both after a linear warm-up
min_lr = 0.1  # fraction of learning_rate at the end
weight_decay = 0.1
beta2 = 0.99  # of AdamW; beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
ema = 0.0  # decay of the averaged weights, e.g. 0.999; they are validated and sampled; 0: off
batch_size = 16  # sequences per forward on each process
gradient_accumulation_steps = 1  # forwards per step, over all processes
t_weight = 1.0  # diffusion: noise level t weighs 1/t^t_weight; 1.0 is the likelihood bound, 0.5 learns faster
random_length = 0.0  # fraction of diffusion batches cut to a random length (LLaDA: 0.01)
# the run
eval_interval = 500  # steps between validations; each one saves ckpt.pt
eval_iters = 20  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
log_interval = 10  # steps between log lines
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'cuda:1' | 'mps' | 'cpu'
dtype = ""  # '' (bfloat16 where the hardware has it) | 'float32' | 'bfloat16'
compile = "auto"  # torch.compile the trunk for training: 'auto' (on cuda) | 'on' | 'off'
fsdp = False  # under torchrun: shard weights, gradients and optimizer over the processes (FSDP2); False: DDP
laptop_minutes = 0.0  # that the README says max_iters take on a laptop; 0: nothing
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


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


class Loss(nn.Module):
    """The loss as a module: DDP and FSDP take care of the weights that its forward uses and of their gradients."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch, generator):
        return self.loss(self.model, batch, generator)


def parallel(model, loss, device, world, fsdp):
    """-> f(batch, generator): the loss, for gradients that are the mean over the processes. fsdp: shards the model.

    FSDP gathers weights for a forward: a block gathers its own, and Loss all others (embeddings, ln_f, head), because
    hidden and head_loss are no forward. Every backward scatters its gradient: to keep it whole until the last of a
    step would save a third of the traffic and cost the memory that FSDP is there to save.
    """
    if fsdp:
        mesh = dist.init_device_mesh(device.type, (world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(Loss(model, loss), mesh=mesh)
    if world > 1:
        return nn.parallel.DistributedDataParallel(Loss(model, loss), [device] if device.type == "cuda" else None)
    return functools.partial(loss, model)


def shard_like(weight, x):
    """-> this process's part of x, a whole tensor, if the weight is in shards; a number stays whole."""
    if isinstance(weight, DTensor) and x.dim():
        return distribute_tensor(x, weight.device_mesh, weight.placements, src_data_rank=None)  # all have read the file
    return x.to(weight.device)


def whole(saved):
    """Dicts and lists of tensors, the sharded ones gathered into the first process's memory. All have to call it."""

    def gather(x):
        if isinstance(x, DTensor):
            x = x.full_tensor()  # on every GPU, one at a time
            x = x.cpu() if dist.get_rank() == 0 else None
        return x

    return tree_map(gather, saved)


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
                    text = show(model, generator(cfg.seed, "show", device=device))  # all do: blocks are gathered by all
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
            batch = get_batch(generator(cfg.seed, first + step, i)).to(device, non_blocking=True)
            noise = generator(cfg.seed, first + step, i, "noise", device=device)
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


def open_log(cfg, start):
    """-> f(dict): appends a line to out_dir/log.jsonl (and to wandb). Lines after step `start` are redone: cut."""
    path = os.path.join(cfg.out_dir, "log.jsonl")
    lines = []
    if start and os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            lines = [line for line in f if line.endswith("\n") and json.loads(line)["step"] <= start]
    with open(f"{path}.tmp", "w", encoding="utf-8") as f:
        f.writelines(lines)
    os.replace(f"{path}.tmp", path)  # a kill in between loses no line
    file = open(path, "a", encoding="utf-8")
    run = None
    if cfg.wandb:
        import wandb

        run = wandb.init(project=cfg.wandb, name=cfg.out_dir, config=vars(cfg), resume="allow")

    def log(record):
        file.write(json.dumps(record) + "\n")
        file.flush()
        if run:
            run.log(record, step=record["step"])

    return log


def files_of_run(out_dir, names=("ckpt.pt", "round_*.pt", "ngram.txt")):
    """-> the paths of what a run of any kind, or of the kind that writes such names, has left in out_dir."""
    return [path for name in names for path in glob.glob(os.path.join(glob.escape(out_dir), name))]


def to_resume(out_dir, name):
    """-> the checkpoints of that name in out_dir, at least one."""
    if not (found := files_of_run(out_dir, [name])):
        mend = "It is the folder of another kind of run" if files_of_run(out_dir) else "Leave --init_from=resume out"
        raise UserError(f"There is nothing to resume in {out_dir}: it holds no {name}. {mend}.")
    return found


def refuse_used(out_dir):
    """A new run never writes into the folder of another."""
    if files_of_run(out_dir):
        raise UserError(
            f"{out_dir} already holds a run. Take another --out_dir, delete it, or (unless it is an n-gram, which is "
            "counted at once) continue it with --init_from=resume."
        )


CLAIMED = {}  # folder -> its open lock file


def claim(out_dir):
    """Makes the folder and refuses it if another process is writing there: a lock that dies with its process."""
    os.makedirs(out_dir, exist_ok=True)
    if fcntl is None or out_dir in CLAIMED:
        return
    file = open(os.path.join(out_dir, "lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another run is writing to {out_dir}. Wait for it, or take another --out_dir.") from None
    except OSError:  # some network disks lock nothing
        return
    CLAIMED[out_dir] = file


def release(out_dir):
    """Undoes claim. (So does the end of the process.)"""
    if out_dir in CLAIMED:
        CLAIMED.pop(out_dir).close()


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


def make_model(cfg, vocab_size, device):
    """-> GPT on device, and the checkpoint to resume from or None. Builds from scratch, resumes or converts."""
    choose("objective", cfg.objective, ("diffusion", "ar"))
    check_range(cfg, ("block_size",), 2)
    check_range(cfg, ("n_layer", "n_head", "n_embd", "kernel_size"), 1)
    check_range(cfg, ("random_length", "t_weight"), 0, 1)
    check_loop(cfg)
    device = "cpu" if cfg.fsdp else device  # fit moves it to the GPUs, block by block
    causal = cfg.objective == "ar"
    choose("arch", cfg.arch, ("gpt", "lstm", "cnn", "ngram"))
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "tie_weights", "attention", "arch", "kernel_size")
    names += ("pos",) if cfg.arch == "gpt" else ()
    torch.manual_seed(cfg.seed)
    if cfg.init_from != "resume":
        refuse_used(cfg.out_dir)
    if cfg.init_from == "scratch":
        config = GPTConfig(vocab_size=vocab_size, causal=causal, **{k: getattr(cfg, k) for k in names})
        return GPT(config).to(device), None
    (path,) = to_resume(cfg.out_dir, "ckpt.pt") if cfg.init_from == "resume" else (cfg.init_from,)
    saved = load_checkpoint(path)  # on the CPU: beside the weights, averages and optimizer it may not fit the GPU
    was = GPTConfig(**{**saved["model_config"], "attention": cfg.attention})
    if was.vocab_size != vocab_size:
        raise UserError(f"{path} has a vocabulary of {was.vocab_size}, but {cfg.dataset} one of {vocab_size}.")
    config = dataclasses.replace(was, dropout=cfg.dropout)  # the shape is the checkpoint's
    if cfg.init_from == "resume":
        if was.causal != causal:
            raise UserError(
                f"{path} was trained with another objective than {cfg.objective!r}; use --init_from={path}."
            )
        weights, resume = saved["model"], saved
    else:  # conversion: this run's context and direction
        config = dataclasses.replace(config, causal=causal, block_size=cfg.block_size)
        weights, resume = saved["ema"] or saved["model"], None
    taken = {k: getattr(config, k) for k in names if getattr(cfg, k) != getattr(config, k)}
    if taken:
        print_once(f"the shape is that of {path}: " + ", ".join(f"{k} {v}" for k, v in taken.items()))
        vars(cfg).update(taken)  # so that config.json tells what was used
    model = GPT(config).to(device)
    model.load_weights(weights)
    return model, resume


def fit_ngram(cfg, tokens, corpus):
    """Counts the tokens and writes out_dir/ngram.txt."""
    refuse_used(cfg.out_dir)
    path = os.path.join(cfg.out_dir, "ngram.txt")
    model = NGram(cfg.ngram_n, corpus.meta["vocab_size"], cfg.smoothing).fit(tokens)
    x = data.blocks(corpus.val, 129, 200)
    nats = mean_over(x.split(8), lambda b: -model(b[:, :-1]).gather(2, b[:, 1:, None]).mean())
    os.makedirs(cfg.out_dir, exist_ok=True)
    save_config(cfg, cfg.out_dir)
    model.save(path, corpus.meta)
    print_once(f"validation {nats:.4f} nats per token, {sum(map(len, model.keys)):,} n-grams saved to {path}")


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
        tokens = model.generate(torch.full((1, 1), start_token(meta), device=device), T - 1, generator=noise)
    else:
        tokens = sample(model, torch.full((1, T), model.mask_id, device=device), steps, generator=noise)
    return data.encoder(meta)[1](tokens[0].tolist())


def main(cfg):
    device, note = join_processes(cfg)
    corpus = data.load(cfg.dataset)
    if cfg.arch == "ngram":
        return fit_ngram(cfg, corpus.train, corpus) if int(os.environ.get("RANK", 0)) == 0 else None
    model, resume = make_model(cfg, corpus.meta["vocab_size"], device)
    n_params = sum(p.numel() for p in model.parameters())
    print_once(f"{n_params / 1e6:.2f} M parameters on {note}")
    if resume and resume["step"] >= cfg.max_iters:
        return print_once(f"{cfg.out_dir} is already trained for {resume['step']} steps.")
    if int(os.environ.get("RANK", 0)) == 0:
        claim(cfg.out_dir)
        save_config(cfg, cfg.out_dir, n_params=n_params, device_used=note)
    ar = cfg.objective == "ar"
    T = cfg.block_size

    def get_batch(generator):
        length = T
        if not ar and cfg.random_length and torch.rand((), generator=generator) < cfg.random_length:
            length = int(torch.randint(1, T + 1, (), generator=generator))
        return data.batch(corpus.train, cfg.batch_size, length + ar, generator)

    val = validation_batches(corpus, T + ar, cfg, device)

    def validate(model):
        """The same blocks and the same noise at every call."""
        noise = generator(cfg.seed, "validation", device=device)
        return mean_over(val, lambda b: ar_loss(model, b) if ar else nelbo(model, b, noise))

    show = functools.partial(show_sample, meta=corpus.meta, steps=T)
    loss = ar_loss if ar else functools.partial(diffusion_loss, t_weight=cfg.t_weight)
    try:
        fit(model, loss, get_batch, validate, cfg, resume, corpus.meta, show)
    finally:
        release(cfg.out_dir)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(cfg)
