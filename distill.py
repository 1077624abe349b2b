"""
Self-Distillation Through Time: halve the sampling steps of a masked diffusion model, round after round.
$ python distill.py config/sdtt_pydoc.py                   (3 rounds, 3 minutes on 2 CPU cores; --help prints the knobs)
$ torchrun --standalone --nproc_per_node=8 distill.py config/sdtt_openwebtext.py

Deschenaux & Gulcehre 2024, arXiv 2410.21035. Algorithm 1 is sdtt_targets; Algorithm 2 is main: train.fit once a round.
"""

import dataclasses
import functools
import math
import os

import torch
import torch.distributed as dist

import data
from configurator import UserError, check_range, choose, configure, print_once, save_config
from model import GPT, add_noise, draw, generator, in_chunks, load_checkpoint, load_model, reveal_order, stratified
from train import check_loop, fit, join_processes, mean_over, show_sample

# ----------------------------------------------------------------------------------------------------------------------
teacher = "out/pydoc/ckpt.pt"  # a masked diffusion checkpoint, also another run's round
dataset = ""  # a name under data/, or a folder; '': what the teacher was trained on
out_dir = "out/sdtt"  # gets round_1.pt, round_2.pt, ...
init_from = "teacher"  # 'teacher' | 'resume' (out_dir, also in the middle of a round, also to add rounds)
# SDTT
divergence = "kl_bwd"  # of student and teacher: 'kl_bwd' | 'kl_fwd' | 'tvd' | 'mse' | 'jsd'
teacher_steps = 2  # k: so many steps of the teacher become one of the student, in every round
orig_steps = 1024  # the first teacher's: round r takes steps of k^(r-1) / orig_steps
rounds = 7
final_steps = 0  # instead of rounds: go on until the student aims at so many steps
iters_per_round = 10000  # optimizer steps
sampler = "ancestral"  # in the teacher's steps: 'ancestral' | 'analytic' (the same law)
reset_optimizer = True  # a new optimizer every round; False: moments carry over
ema_teacher = True  # the next teacher has the averaged weights, if ema > 0; False: the last ones
loss_dtype = "float32"  # of the divergence: 'float32' | 'float64' | 'bfloat16'
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

DIVERGENCES = ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd")


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


# ----------------------------------------------------------------------------------------------------------------------
# the rounds


def plan_rounds(cfg):
    """-> [(dt, steps that the student aims at), ...], a pair a round. Raises UserError unless the steps divide."""
    k, steps, plan = cfg.teacher_steps, cfg.orig_steps, []
    goal = f"final_steps {cfg.final_steps}" if cfg.final_steps else f"{cfg.rounds} rounds"
    while steps > cfg.final_steps if cfg.final_steps else len(plan) < cfg.rounds:
        if steps % k:
            lowest = f"Choose at most {len(plan)} rounds" if plan else "Choose another --orig_steps"
            raise UserError(
                f"{goal}: teacher_steps {k} does not divide the {steps} steps that are left after "
                f"{len(plan)} of them (orig_steps {cfg.orig_steps}). {lowest}."
            )
        plan.append((1 / steps, steps // k))
        steps //= k
    if not plan or (cfg.final_steps and steps != cfg.final_steps):
        raise UserError(f"{goal} is not reached from orig_steps {cfg.orig_steps} by dividing by {k}.")
    return plan


def refuse_other_knobs(cfg, was, path):
    """A resumed run keeps the knobs that its rounds depend on."""
    free = {"rounds", "final_steps", "out_dir", "init_from", "device", "dtype", "compile", "attention", "wandb"}
    free |= {"eval_interval", "eval_iters", "sample_interval", "log_interval"}
    for key in sorted((vars(cfg).keys() & was.keys()) - free):
        if getattr(cfg, key) != was[key]:
            raise UserError(
                f"{path} was distilled with --{key}={was[key]}, not {getattr(cfg, key)!r}. "
                "Resume it with the same, or choose another --out_dir."
            )


def check(cfg):
    choose("divergence", cfg.divergence, DIVERGENCES)
    choose("sampler", cfg.sampler, ("ancestral", "analytic"))
    choose("loss_dtype", cfg.loss_dtype, ("float32", "float64", "bfloat16"))
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    check_range(cfg, ("teacher_steps",), 2)
    check_range(cfg, ("orig_steps", "rounds", "iters_per_round"), 1)
    check_range(cfg, ("final_steps",), 0)
    cfg.max_iters = cfg.iters_per_round  # fit's name for it
    check_loop(cfg)
    first = os.path.join(cfg.out_dir, "round_1.pt")
    if cfg.init_from == "teacher" and os.path.exists(first):
        raise UserError(
            f"{cfg.out_dir} already holds a run. Continue it with --init_from=resume, "
            "choose another --out_dir, or delete it."
        )
    if cfg.init_from == "resume" and not os.path.exists(first):
        raise UserError(f"There is nothing to resume in {cfg.out_dir}: leave --init_from=resume out.")


def main(cfg):
    check(cfg)
    plan = plan_rounds(cfg)
    teacher, first = load_model(cfg.teacher, attention=cfg.attention)
    if teacher.config.causal:
        raise UserError(f"The teacher {cfg.teacher} is autoregressive; SDTT needs a masked diffusion checkpoint.")
    cfg.dataset = cfg.dataset or first["config"]["dataset"]
    corpus = data.load(cfg.dataset)
    if not data.same_vocabulary(corpus.meta, first["meta"]):
        raise UserError(f"The teacher {cfg.teacher} has another vocabulary than the dataset {cfg.dataset}.")
    device, note = join_processes(cfg)
    teacher.to(device).requires_grad_(False)
    T = teacher.config.block_size
    val = data.blocks(corpus.val, T, cfg.eval_iters * cfg.batch_size).to(device).split(cfg.batch_size)
    if int(os.environ.get("RANK", 0)) == 0:
        os.makedirs(cfg.out_dir, exist_ok=True)
        save_config(cfg, cfg.out_dir, device_used=note)

    carried = None
    for r, (dt, steps) in enumerate(plan, 1):
        name = f"round_{r}.pt"
        path = os.path.join(cfg.out_dir, name)
        saved = load_checkpoint(path, device) if os.path.exists(path) else None
        if saved:
            refuse_other_knobs(cfg, saved["config"], path)
        if not saved or saved["step"] < cfg.iters_per_round:
            print_once(
                f"round {r} of {len(plan)}, on {note}: {cfg.teacher_steps} teacher steps of 1/{round(1 / dt)} "
                f"become one; the student aims at {steps} steps"
            )
            loss = functools.partial(
                sdtt_loss,
                teacher=teacher,
                dt=dt,
                k=cfg.teacher_steps,
                kind=cfg.divergence,
                sampler=cfg.sampler,
                dtype=getattr(torch, cfg.loss_dtype),
            )
            student = GPT(dataclasses.replace(teacher.config, dropout=cfg.dropout)).to(device)
            student.load_state_dict(saved["model"] if saved else teacher.state_dict())

            def validate(student, loss=loss):
                """The same blocks and the same noise at every call -> the loss, per masked token."""
                noise = generator(cfg.seed, "validation", device=device)
                return mean_over(val, lambda b: loss(student, b, noise))

            show = functools.partial(show_sample, meta=corpus.meta, steps=steps)
            get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
            first_step = (r - 1) * cfg.iters_per_round
            fit(student, loss, get_batch, validate, cfg, saved or carried, corpus.meta, show, name, first_step)
            if dist.is_initialized():
                dist.barrier()  # the first process has written it
            saved = load_checkpoint(path, device)
        weights = saved["ema"] if cfg.ema_teacher and saved["ema"] else saved["model"]
        teacher.load_state_dict(weights)
        if not cfg.reset_optimizer:
            carried = {**saved, "step": 0, "ema": weights if cfg.ema else None}
    print_once(f"Rounds done: {cfg.out_dir}/round_{len(plan)}.pt samples in {plan[-1][1]} steps.")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(cfg)
