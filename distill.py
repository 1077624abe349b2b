"""
Distillation. Self-Distillation Through Time: halve the sampling steps of a masked diffusion model, round after round.
$ python distill.py config/sdtt_pydoc.py                   (3 rounds, 3 minutes on 2 CPU cores; --help prints the knobs)
$ torchrun --standalone --nproc_per_node=8 distill.py config/sdtt_openwebtext.py

Deschenaux & Gulcehre 2024, arXiv 2410.21035. Algorithm 1 is sdtt_targets; Algorithm 2 is sdtt: train.fit once a round.

And knowledge distillation of drafters for a GPT (DistillSpec, Zhou et al. 2023, arXiv 2310.08461): kd_loss.
$ python distill.py --method=kd --teacher=out/pydoc_ar/ckpt.pt --drafter=lstm --n_embd=128 --out_dir=out/lstm
"""

import dataclasses
import functools
import glob
import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data
from configurator import UserError, check_range, choose, configure, print_once, save_config
from model import (
    GPT,
    GPTConfig,
    add_noise,
    draw,
    generator,
    in_chunks,
    load_checkpoint,
    load_model,
    reveal_order,
    stratified,
)
from sample import start_token
from train import check_loop, fit, fit_ngram, join_processes, mean_over, refuse_used, show_sample

# ----------------------------------------------------------------------------------------------------------------------
method = "sdtt"  # 'sdtt' | 'kd' (a drafter for an autoregressive teacher)
teacher = "out/pydoc/ckpt.pt"  # sdtt: a masked diffusion checkpoint, also another run's round; kd: a GPT
dataset = ""  # a name under data/, or a folder; '': what the teacher was trained on
out_dir = "out/sdtt"  # gets round_1.pt, round_2.pt, ...; from kd ckpt.pt or ngram.txt
init_from = "teacher"  # 'teacher' | 'resume' (out_dir, also in the middle of a round, also to add rounds)
divergence = "kl_bwd"  # of student and teacher: 'kl_bwd' | 'kl_fwd' | 'tvd' | 'mse' | 'jsd' | 'nla'
# sdtt
teacher_steps = 2  # k: so many steps of the teacher become one of the student, in every round
orig_steps = 1024  # the first teacher's: round r takes steps of k^(r-1) / orig_steps
rounds = 7
final_steps = 0  # instead of rounds: go on until the student aims at so many steps
iters_per_round = 10000  # optimizer steps; kd is one round
sampler = "ancestral"  # in the teacher's steps: 'ancestral' | 'analytic' (the same law)
reset_optimizer = True  # a new optimizer every round; False: moments carry over
ema_teacher = True  # the next teacher has the averaged weights, if ema > 0; False: the last ones
loss_dtype = "float32"  # of the divergence: 'float32' | 'float64' | 'bfloat16'
# kd
drafter = "lstm"  # 'lstm' | 'cnn' | 'gpt' | 'ngram' (counts the teacher's texts) | a checkpoint: the trained baseline
n_layer = 1  # shape of a new drafter
n_head = 4
n_embd = 128
kernel_size = 5  # of a cnn, in tokens
ngram_n = 5  # of an ngram
smoothing = "kneser_ney"  # of an ngram: 'kneser_ney' | 'laplace'
kd_data = "dataset"  # text to learn on: 'dataset' | 'teacher' (it writes pseudo_tokens of it) | 'student' (on-policy)
pseudo_tokens = 1_000_000  # written by the teacher, to out_dir/pseudo.bin
kd_temp = 1.0  # softens both distributions; the loss is multiplied by kd_temp^2
kd_weight = 1.0  # of the divergence
ce_weight = 0.0  # of the cross-entropy with the text itself
# optimizer
optimizer = "adamw"  # 'adamw' | 'muon'
learning_rate = 6e-5
warmup_iters = 500  # linear, at the start of every round
lr_schedule = "constant"  # 'constant' | 'cosine' (down to min_lr), in every round
min_lr = 0.1  # fraction of learning_rate at the end
weight_decay = 0.0
beta2 = 0.999
grad_clip = 1.0  # gradient norm; 0: off
ema = 0.9999  # decay of the averaged weights; 0: off
dropout = 0.0  # of the student
batch_size = 16  # sequences per forward on each process
gradient_accumulation_steps = 8  # forwards per step, over all processes
# the run
eval_interval = 1000  # steps between validations; each one saves round_r.pt
eval_iters = 4  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
log_interval = 10
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'cuda:1' | 'mps' | 'cpu'
dtype = ""  # '' (bfloat16 where the hardware has it) | 'float32' | 'bfloat16'
compile = "auto"  # torch.compile the student's trunk: 'auto' (on cuda) | 'on' | 'off'
attention = "sdpa"  # 'sdpa' | 'manual' | 'flash_attn'
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

DIVERGENCES = ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd", "nla")


@torch.no_grad()
def sdtt_targets(teacher, xt, t, dt, k, generator, sampler="ancestral", eps=1e-5):
    """(B, T) int64, (B, 1) in (0, 1], float, int -> (N, C): the teacher's hidden state for each masked token of xt.

    Algorithm 1: the teacher takes k reverse steps t_i -> t_i - dt, t_i = max(t - i dt, eps). A token revealed in one of
    them has that step's prediction as its target, one that is still masked after the last has the last step's. Equal in
    law to the literal version (tests/reference.py), and lean:
    - which step reveals which token does not depend on the network: all drawn first, by sample's own reveal_order;
    - a row in which a step reveals nothing is not forwarded again, and the tokens of its last step are never drawn;
    - the hidden state (C numbers) stands for the log-probabilities (V numbers).
    """
    masked = xt == teacher.mask_id  # (B, T), N of them
    t = t.cpu().double()
    times = [(t - i * dt).clamp(min=eps) for i in range(k)]
    times = torch.cat([*times, 0 * t], 1)  # (B, k + 1): what is still masked is treated as revealed by the last step
    call = reveal_order(masked, times, sampler, generator)  # (B, T): 1, 2, ... at masked tokens
    last = call.amax(1, keepdim=True)  # (B, 1)
    z, targets = xt.clone(), torch.empty(int(masked.sum()), teacher.config.n_embd, device=xt.device)
    for i in range(1, int(last.max()) + 1):
        reveal = call == i
        rows = reveal.any(1)
        h = teacher.hidden(z[rows])[reveal[rows]]  # (n, C)
        targets[reveal[masked]] = h.float()
        needed = reveal & (i < last)  # another step will look at them
        h = h[needed[reveal]]
        z[needed] = in_chunks(lambda part: draw(teacher.head(part), generator), h, teacher.config.vocab_size)
    return targets


def divergence(kind, log_p, log_q):  # noqa: F811 (the knob of this name is in cfg by now)
    """(n, V), (n, V) log-probabilities of student p and teacher q -> (n): nats; tvd in [0, 1]; mse: eq. 11."""
    if kind == "kl_bwd":
        return (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(p || q)
    if kind == "kl_fwd":
        return (log_q.exp() * (log_q - log_p)).sum(-1)  # KL(q || p)
    if kind == "tvd":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2  # DIFFERS: the released code has log_p - log_q here
    if kind == "mse":
        return (log_p - log_q).square().sum(-1)
    if kind == "nla":  # negative log acceptance: sum min(p, q) = 1 - tvd is the chance that a draft is accepted
        return -torch.minimum(log_p, log_q).logsumexp(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)  # jsd, against the mixture m
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2


def sdtt_loss(student, x0, generator, teacher, dt, k=2, kind="kl_bwd", sampler="ancestral", dtype=torch.float32):
    """(B, T) int64 -> divergence of student from targets, the mean over masked tokens: no 1/t weight (Algorithm 1)."""
    t = 1 - stratified(x0.size(0), generator, x0.device)  # (B, 1) in (0, 1]
    xt = add_noise(x0, t, student.mask_id, generator)
    masked = xt == student.mask_id  # (B, T), N of them
    targets = sdtt_targets(teacher, xt, t, dt, k, generator, sampler)  # (N, C)
    h = student.hidden(xt)[masked]  # (N, C)
    head = teacher.frozen_head()

    def loss_of(logits, h_teacher):
        """(n, V), (n, C) -> (n): both distributions exist for a few positions at a time only."""
        return divergence(kind, logits.to(dtype).log_softmax(-1), head(h_teacher).to(dtype).log_softmax(-1))

    return student.head_loss(h, loss_of, targets) / max(len(h), 1)


def kd_loss(drafter, batch, generator, target, kind="kl_fwd", temp=1.0, kd_weight=1.0, ce_weight=0.0):
    """(B, T + 1) int64 -> a mean over tokens: divergence of drafter from target, and cross-entropy beside it."""
    x, y = batch[:, :-1], batch[:, 1:].flatten()
    with torch.no_grad():
        h_target = target.hidden(x).flatten(0, 1)  # (B T, C)
    head = target.frozen_head()

    def loss_of(logits, h_target, y):
        """(n, V), (n, C), (n) -> (n)."""
        log_p, log_q = (logits / temp).log_softmax(-1), (head(h_target) / temp).log_softmax(-1)
        loss = kd_weight * temp**2 * divergence(kind, log_p, log_q)
        return loss + ce_weight * F.cross_entropy(logits, y, reduction="none") if ce_weight else loss

    return drafter.head_loss(drafter.hidden(x).flatten(0, 1), loss_of, h_target, y) / len(y)


# ----------------------------------------------------------------------------------------------------------------------
# sdtt: the rounds


def plan_rounds(cfg):
    """-> [(dt, steps that the student aims at), ...], a pair a round. Raises UserError unless the steps divide."""
    k, steps = cfg.teacher_steps, [cfg.orig_steps]
    while steps[-1] % k == 0:
        steps.append(steps[-1] // k)  # 1024, 512, ...
    way = " -> ".join(map(str, steps))
    if cfg.final_steps and cfg.final_steps not in steps[1:]:
        raise UserError(f"final_steps {cfg.final_steps} is not on the way {way} (orig_steps over teacher_steps {k}).")
    n = steps.index(cfg.final_steps) if cfg.final_steps else cfg.rounds
    if n >= len(steps):
        raise UserError(f"{n} rounds: teacher_steps {k} divides orig_steps only {len(steps) - 1} times, {way}.")
    return [(1 / steps[r], steps[r + 1]) for r in range(n)]


def refuse_other_knobs(cfg, path):
    """A resumed run keeps the knobs that what it has written depends on."""
    free = {"rounds", "final_steps", "out_dir", "init_from", "device", "dtype", "compile", "attention", "wandb"}
    free |= {"eval_interval", "eval_iters", "sample_interval", "log_interval", "learning_rate"}
    was = load_checkpoint(path)["config"]
    for key in sorted((vars(cfg).keys() & was.keys()) - free):
        if getattr(cfg, key) != was[key]:
            raise UserError(
                f"{path} was distilled with --{key}={was[key]}, not {getattr(cfg, key)!r}. "
                "Resume it with the same, or choose another --out_dir."
            )


def check(cfg):
    """Refuses bad values before any work."""
    choose("divergence", cfg.divergence, DIVERGENCES)
    choose("sampler", cfg.sampler, ("ancestral", "analytic"))
    choose("loss_dtype", cfg.loss_dtype, ("float32", "float64", "bfloat16"))
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    choose("kd_data", cfg.kd_data, ("dataset", "teacher", "student"))
    check_range(cfg, ("teacher_steps",), 2)
    check_range(cfg, ("orig_steps", "rounds", "iters_per_round", "pseudo_tokens", "n_layer", "n_embd", "n_head"), 1)
    check_range(cfg, ("final_steps", "kd_weight", "ce_weight"), 0)
    check_range(cfg, ("kd_temp",), 1e-3)
    cfg.max_iters = cfg.iters_per_round  # fit's name for it
    check_loop(cfg)


def prepare(cfg, causal, writes):
    """-> teacher, corpus, device, a note on it; out_dir is made. Raises UserError if something does not fit.

    writes: the pattern of the checkpoints of such a run. They are read back from out_dir, so processes on several nodes
    need one that all of them see.
    """
    teacher, first = load_model(cfg.teacher, attention=cfg.attention)
    if teacher.config.causal != causal:
        kinds = ("a masked diffusion model", "autoregressive")
        raise UserError(
            f"The teacher {cfg.teacher} is {kinds[not causal]}; method {cfg.method!r} needs the other kind."
        )
    cfg.dataset = cfg.dataset or first["config"]["dataset"]
    corpus, T = data.load(cfg.dataset), teacher.config.block_size
    if not data.same_vocabulary(corpus.meta, first["meta"]):
        raise UserError(f"The teacher {cfg.teacher} has another vocabulary than the dataset {cfg.dataset}.")
    if min(len(corpus.train), len(corpus.val)) <= T:
        raise UserError(f"{cfg.dataset} has parts shorter than the teacher's context of {T}. Use a longer text.")
    cfg.teacher_step, cfg.teacher_loss = first["step"], first["val_loss"]  # a resumed run notices another teacher
    written = glob.glob(os.path.join(cfg.out_dir, writes))
    if cfg.init_from == "teacher":
        refuse_used(cfg.out_dir)
    elif not written:
        raise UserError(f"There is nothing to resume in {cfg.out_dir}: leave --init_from=resume out.")
    for path in written:
        refuse_other_knobs(cfg, path)
    device, note = join_processes(cfg)
    if device.type == "mps" and cfg.loss_dtype == "float64":
        raise UserError("loss_dtype is 'float64', which an Apple GPU does not have. Use --device=cpu.")
    if int(os.environ.get("RANK", 0)) == 0:
        os.makedirs(cfg.out_dir, exist_ok=True)
        save_config(cfg, cfg.out_dir, device_used=note)
    return teacher.to(device).requires_grad_(False), corpus, device, note


def load_round(cfg, r, device):
    """-> what round r has saved so far, or None."""
    path = os.path.join(cfg.out_dir, f"round_{r}.pt")
    return load_checkpoint(path, device) if os.path.exists(path) else None


def distill_round(cfg, r, loss, teacher, corpus, steps, saved, carried):
    """Trains the student of round r, a copy of the teacher, and writes round_r.pt; goes on from saved."""
    device, T = teacher.wte.weight.device, teacher.config.block_size
    student = GPT(dataclasses.replace(teacher.config, dropout=cfg.dropout)).to(device)
    student.load_state_dict(saved["model"] if saved else teacher.state_dict())
    val = data.blocks(corpus.val, T, cfg.eval_iters * cfg.batch_size).to(device).split(cfg.batch_size)

    def validate(student):
        """The same blocks and the same noise at every call."""
        noise = generator(cfg.seed, "validation", device=device)
        return mean_over(val, lambda b: loss(student, b, noise))

    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    show = functools.partial(show_sample, meta=corpus.meta, steps=steps)
    name, first = f"round_{r}.pt", (r - 1) * cfg.iters_per_round
    fit(student, loss, get_batch, validate, cfg, saved or carried, corpus.meta, show, name, first)
    if dist.is_initialized():
        dist.barrier()  # the first process has written it


def sdtt(cfg):
    plan = plan_rounds(cfg)
    teacher, corpus, device, note = prepare(cfg, causal=False, writes="round_*.pt")
    loss_of = functools.partial(sdtt_loss, teacher=teacher, k=cfg.teacher_steps, kind=cfg.divergence)
    loss_of = functools.partial(loss_of, sampler=cfg.sampler, dtype=getattr(torch, cfg.loss_dtype))
    carried = None  # the optimizer of the last round, if it lives on
    for r, (dt, steps) in enumerate(plan, 1):
        saved = load_round(cfg, r, device)
        if not saved or saved["step"] < cfg.iters_per_round:
            print_once(
                f"round {r} of {len(plan)}, on {note}: {cfg.teacher_steps} teacher steps of 1/{round(1 / dt)} "
                f"become one; the student aims at {steps} steps"
            )
            distill_round(cfg, r, functools.partial(loss_of, dt=dt), teacher, corpus, steps, saved, carried)
            saved = load_round(cfg, r, device)
        weights = saved["ema"] if cfg.ema_teacher and saved["ema"] else saved["model"]
        teacher.load_state_dict(weights)  # Algorithm 2: the student becomes the teacher
        if not cfg.reset_optimizer:
            carried = {**saved, "step": 0, "ema": weights if cfg.ema else None}
    print_once(f"Rounds done: {cfg.out_dir}/round_{len(plan)}.pt samples in {plan[-1][1]} steps.")


# ----------------------------------------------------------------------------------------------------------------------
# kd: a drafter learns from an autoregressive teacher, its target


def pseudo_data(target, meta, cfg, device, rows_at_once=64):
    """-> (n, T) memory-mapped texts of the target, pseudo_tokens in all, in out_dir/pseudo.bin; goes on if cut off."""
    T, path = target.config.block_size, os.path.join(cfg.out_dir, "pseudo.bin")
    chunk = rows_at_once * T
    n_chunks = math.ceil(cfg.pseudo_tokens / chunk)
    kind = data.token_dtype(meta["vocab_size"])
    done = os.path.getsize(path) // (chunk * np.dtype(kind).itemsize) if os.path.exists(path) else 0
    with open(path, "ab") as f:
        f.truncate(done * chunk * np.dtype(kind).itemsize)  # a chunk that was cut off is written again
        for i in tqdm(range(done, n_chunks), initial=done, total=n_chunks, desc="pseudo-data", unit="chunk"):
            start = torch.full((rows_at_once, 1), start_token(meta), device=device)
            text = target.generate(start, T - 1, generator=generator(cfg.seed, "pseudo", i, device=device))
            f.write(text.cpu().numpy().astype(kind).tobytes())
            f.flush()
    return np.memmap(path, dtype=kind, mode="r").reshape(-1, T)[: n_chunks * rows_at_once]


def kd(cfg):
    target, corpus, device, note = prepare(cfg, causal=True, writes="ckpt.pt")
    T = target.config.block_size
    pseudo = None
    if cfg.kd_data == "teacher" or cfg.drafter == "ngram":
        if int(os.environ.get("RANK", 0)) == 0:
            pseudo_data(target, corpus.meta, cfg, device)
        if dist.is_initialized():
            dist.barrier()
        pseudo = pseudo_data(target, corpus.meta, cfg, device)
    if cfg.drafter == "ngram":
        return fit_ngram(cfg, pseudo.reshape(-1), corpus)
    saved = load_checkpoint(os.path.join(cfg.out_dir, "ckpt.pt"), device) if cfg.init_from == "resume" else None
    torch.manual_seed(cfg.seed)
    if cfg.drafter in ("lstm", "cnn", "gpt"):
        shape = {k: getattr(cfg, k) for k in ("n_layer", "n_head", "n_embd", "dropout", "kernel_size")}
        config = GPTConfig(arch=cfg.drafter, causal=True, block_size=T, vocab_size=target.config.vocab_size, **shape)
        drafter = GPT(config).to(device)
    else:
        drafter, baseline = load_model(cfg.drafter, device, cfg.attention)
        if not data.same_vocabulary(corpus.meta, baseline["meta"]):
            raise UserError(f"The drafter {cfg.drafter} has another vocabulary than the teacher.")
    if saved:
        drafter.load_state_dict(saved["model"])
    print_once(f"{sum(p.numel() for p in drafter.parameters()) / 1e6:.2f} M parameters on {note}")

    def get_batch(generator):
        """-> (B, T + 1) of the dataset, (B, T) of what a model wrote."""
        if cfg.kd_data == "dataset":
            return data.batch(corpus.train, cfg.batch_size, T + 1, generator)
        if cfg.kd_data == "teacher":
            rows = torch.randint(len(pseudo), (cfg.batch_size,), generator=generator)
            return torch.from_numpy(pseudo[rows.numpy()].astype(np.int64))
        start = torch.full((cfg.batch_size, 1), start_token(corpus.meta), device=device)
        drafter.eval()
        text = drafter.generate(start, T - 1, generator=generator)
        drafter.train()
        return text

    loss = functools.partial(kd_loss, target=target, kind=cfg.divergence, temp=cfg.kd_temp)
    loss = functools.partial(loss, kd_weight=cfg.kd_weight, ce_weight=cfg.ce_weight)
    val = data.blocks(corpus.val, T + 1, cfg.eval_iters * cfg.batch_size).to(device).split(cfg.batch_size)
    show = functools.partial(show_sample, meta=corpus.meta, steps=T)
    fit(drafter, loss, get_batch, lambda d: mean_over(val, lambda b: loss(d, b, None)), cfg, saved, corpus.meta, show)


def main(cfg):
    choose("method", cfg.method, ("sdtt", "kd"))
    check(cfg)
    {"sdtt": sdtt, "kd": kd}[cfg.method](cfg)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(cfg)
