"""
Distillation. Self-Distillation Through Time: halve the sampling steps of a masked diffusion model, round after round.
$ python distill.py config/sdtt_pydoc.py             (3 rounds, 2 minutes on 2 laptop cores; --help prints the knobs)
$ torchrun --standalone --nproc_per_node=8 distill.py config/sdtt_openwebtext.py

Deschenaux & Gulcehre 2024, arXiv 2410.21035. Algorithm 1 is sdtt_targets; Algorithm 2 is sdtt: loop.fit once a round.

To one step, by matching the distribution of whole texts (Di[M]O, Zhu et al. 2025, arXiv 2503.15457): dimo_loss.
$ python distill.py config/dimo_pydoc.py             (4 minutes)

Knowledge distillation of drafters for a GPT (DistillSpec, Zhou et al. 2023, arXiv 2310.08461): kd_loss.
$ python distill.py config/kd_shakespeare_char.py --drafter=lstm --out_dir=out/drafters/lstm_kd

And soft labels: learning from no more than the top k log-probabilities of a teacher: soft_cross_entropy.
$ python distill.py config/kd_shakespeare_char.py --method=soft --topk=8 --out_dir=out/drafters/lstm_soft
"""

import dataclasses
import functools
import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data
from config.common import *
from config.loop import *
from configurator import UserError, check, configure, print_once, save_config
from drafters import fit_ngram, load_model, new_model
from loop import check_loop, fit, validator
from model import (
    GPT,
    GPTConfig,
    add_noise,
    ar_loss,
    draw,
    half_random,
    in_chunks,
    ranks,
    reveal_order,
    stratified,
)
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of
from plumbing.head import SameOnRanks, slice_of_vocab, vocab_parallel_soft_cross_entropy
from plumbing.huggingface import context_of, written
from plumbing.parallel import (
    join_processes,
    leave_processes,
    on_first_process,
    rank_and_world,
    wait_for_all,
)
from plumbing.published import save_published
from plumbing.randomness import seeded, uniform
from plumbing.refusals import refuse_odd_distillation, refuse_other_kind, refuse_unfit
from plumbing.runs import claim, refuse_other_origin, refuse_wrong_folder, release, saved_of
from plumbing.soft_labels import label, load_soft
from speculative import generate, unseen

# ----------------------------------------------------------------------------------------------------------------------
method = "sdtt"  # 'sdtt' | 'dimo' (to one step, by two networks) | 'kd' (a drafter for a GPT) | 'soft' (from its top k)
teacher = "out/pydoc/ckpt.pt"  # sdtt, dimo: a masked diffusion checkpoint, also a round or a published model
# such as mdlm-owt or sdtt:kld:6; kd, soft: a GPT, also gpt2 or hf:NAME, any of Hugging Face (lessons/6_speculation.md)
out_dir = "out/sdtt"  # gets round_1.pt, round_2.pt, ...; the others ckpt.pt or ngram.txt
init_from = (
    "teacher"  # 'teacher' | 'resume' (out_dir, also in the middle of a round, also to add rounds)
)
divergence = "kl_bwd"  # 'kl_bwd' | 'kl_fwd' | 'tvd' | 'mse' | 'jsd' | 'nla', of student and teacher (dimo has its own)
# sdtt
teacher_steps = 2  # k: so many steps of the teacher become one of the student's, at least 2
orig_steps = 1024  # the first teacher's: round r takes steps of k^(r-1) / orig_steps, at least 1
rounds = 7  # at least 1
final_steps = 0  # instead of rounds: go on until the student aims at so many steps, at least 0
iters_per_round = 10000  # optimizer steps; a run of another kind is one round, and may be resumed with more, at least 1
sampler = "ancestral"  # 'ancestral' (the paper's) | 'analytic' (the same law) | 'spread', the teacher's and student's
reset_optimizer = True  # a new optimizer every round; False: moments carry over
ema_teacher = True  # the next teacher has the averaged weights, if ema > 0; False: the last ones
loss_dtype = "float32"  # 'float32' | 'float64' | 'bfloat16', of the divergence
# kd and soft
drafter = "lstm"  # 'lstm' | 'cnn' | 'gpt' | 'ngram' (counts the teacher's texts) | a checkpoint or hf:NAME
n_layer = 1  # shape of a new drafter, at least 1
n_head = 4  # at least 1
n_embd = 128  # at least 1
kd_data = "dataset"  # 'dataset' | 'teacher' (it writes pseudo_tokens) | 'student' (on-policy): the text to learn on
pseudo_tokens = (
    1_000_000  # written by the teacher to out_dir/pseudo.bin; for soft: labelled by it, at least 1
)
kd_temp = 1.0  # softens both distributions; the loss is multiplied by kd_temp^2, at least 1e-3
kd_weight = 1.0  # of the divergence, at least 0
ce_weight = 0.0  # of the cross-entropy with the text itself, at least 0
# soft
soft_data = (
    ""  # a folder of soft labels, or a .jsonl of an API teacher; '': the teacher's for the dataset
)
soft_length = 256  # tokens in a row, where a .jsonl is read, at least 2
topk = 16  # log-probabilities kept for each token, at least 1
vocab_parallel = (
    False  # under torchrun: split the head's vocabulary over the processes, not the batch
)
missing = "none"  # 'none' | 'renorm' (scale the rest up) | 'tail' (on all other tokens together): the mass they lack
# the loop's, as in the paper (config/loop.py says what they are)
learning_rate = 6e-5
warmup_iters = 500  # of every round
lr_schedule = "constant"
weight_decay = 0.0
beta2 = 0.999
ema = 0.9999
gradient_accumulation_steps = 8
eval_interval = 1000
eval_iters = 4
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sdtt_targets(teacher, xt, call, generator):
    """(B, T) int64, (B, T) int64: by which of its calls (1, 2, ...) the teacher reveals a token, 0: by none of them
    -> (N, C): the teacher's hidden state for each token that it reveals, as it was when it did.

    Algorithm 1. Equal in law to the literal version (tests/reference.py), and lean:
    - which step reveals which token does not depend on the network: all drawn first, by the sampler's own order;
    - a row in which a step reveals nothing is not forwarded again, and the tokens of its last step are never drawn;
    - the hidden state (C numbers) stands for the log-probabilities (V numbers).
    """
    wanted, last = call > 0, call.amax(1, keepdim=True)  # (B, T), N of them; (B, 1)
    z, targets = xt.clone(), torch.empty(int(wanted.sum()), teacher.config.n_embd, device=xt.device)
    for i in range(1, int(last.max()) + 1):
        reveal = call == i
        rows = reveal.any(1)
        h = teacher.hidden(z[rows])[reveal[rows]]  # (n, C)
        targets[reveal[wanted]] = (
            h.float()
        )  # reveal[wanted] (N,): which of the N targets this call fills
        needed = reveal & (i < last)  # another call will look at them
        h = h[needed[reveal]]  # needed[reveal] (n,): the hidden states of these
        z[needed] = in_chunks(
            lambda part: draw(teacher.head(part), generator), h, teacher.config.vocab_size
        )
    return targets


def ancestral_calls(masked, t, dt, k, generator, sampler="ancestral", eps=1e-5):
    """(B, T) bool, (B, 1) in (0, 1], float, int -> (B, T) int64 for sdtt_targets, of all masked tokens.

    The teacher takes k reverse steps t_i -> t_i - dt, t_i = max(t - i dt, eps). A token revealed in one of them has
    that step's prediction as its target, one that is still masked after the last has the last step's.
    """
    t = t.cpu().double()  # an Apple GPU has no float64
    times = [(t - i * dt).clamp(min=eps) for i in range(k)]
    # the last time is 0, not t - k dt: what is still masked then is treated as revealed by the last step
    times = torch.cat([*times, torch.zeros_like(t)], 1)  # (B, k + 1)
    return reveal_order(masked, times, sampler, generator)


def ancestral_states(x0, dt, k, mask_id, generator, sampler="ancestral"):
    """(B, T) int64 -> xt (B, T), call (B, T) for sdtt_targets: a noisy batch, all of whose masked tokens are learnt."""
    t = 1 - stratified(x0.size(0), generator, x0.device)  # (B, 1) in (0, 1]
    xt = add_noise(x0, t, mask_id, generator)
    return xt, ancestral_calls(xt == mask_id, t, dt, k, generator, sampler)


def spread_states(x0, dt, k, mask_id, generator):
    """(B, T) int64 -> xt (B, T), call (B, T) for sdtt_targets: a state that the student's sampler comes by.

    DIFFERS from the paper, whose sampler is ancestral. In K = 1 / (k dt) steps of spread the student reveals the places
    i mod K, class after class in random order. So j classes of a row are shown, 0 <= j < K, and it learns what it will
    be asked there: the next class, which the teacher reveals in k parts. K = 8, k = 2: class 4 is the places 4, 12, 20,
    28, ..., its parts are 4, 20, ... and 12, 28, ...
    """
    B, K = x0.size(0), round(1 / (k * dt))  # K: the student's steps
    place = torch.arange(x0.size(1), device=x0.device)
    when = ranks(uniform((B, K), generator, x0.device))[
        :, place % K
    ]  # (B, T) in 0 ... K - 1: the student's step
    j = (stratified(B, generator, x0.device) * K).long()  # (B, 1) in 0 ... K - 1
    part = ranks(uniform((B, k), generator, x0.device))[:, place // K % k]  # (B, T) in 0 ... k - 1
    return torch.where(when < j, x0, mask_id), torch.where(when == j, part + 1, 0)


def divergence_between(divergence, log_p, log_q):
    """(n, V), (n, V) log-probabilities of student p and teacher q -> (n): nats; tvd in [0, 1]; mse: eq. 11.

    The paper's letters; in speculative.py, as in its paper, p is the target and q the drafter.
    """
    if divergence == "kl_bwd":
        return (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(p || q)
    if divergence == "kl_fwd":
        return (log_q.exp() * (log_q - log_p)).sum(-1)  # KL(q || p)
    if divergence == "tvd":
        return (log_p.exp() - log_q.exp()).abs().sum(
            -1
        ) / 2  # DIFFERS: the released code has log_p - log_q here
    if divergence == "mse":
        return (log_p - log_q).square().sum(-1)
    if (
        divergence == "nla"
    ):  # negative log acceptance: sum min(p, q) = 1 - tvd is the chance that a draft is accepted
        return -torch.minimum(log_p, log_q).logsumexp(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)  # jsd, against the mixture m
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2


def sdtt_loss(
    student,
    x0,
    generator,
    teacher,
    dt,
    k=2,
    divergence="kl_bwd",
    sampler="ancestral",
    dtype=torch.float32,
):
    """(B, T) int64 -> divergence of student from targets, the mean over the tokens learnt: no 1/t weight (Algorithm 1).

    A step of the student is k steps of the teacher, each of which reveals dt of the tokens.
    """
    given = x0, dt, k, student.mask_id, generator
    # (B, T) both; N places with call > 0 are learnt
    xt, call = spread_states(*given) if sampler == "spread" else ancestral_states(*given, sampler)
    targets = sdtt_targets(teacher, xt, call, generator)  # (N, C)
    h = student.hidden(xt)[call > 0]  # (N, C)
    head = teacher.frozen_head()

    def loss_of(logits, h_teacher):
        """(n, V), (n, C) -> (n): both distributions exist for a few positions at a time only."""
        log_p, log_q = (z.to(dtype).log_softmax(-1) for z in (logits, head(h_teacher)))
        return divergence_between(divergence, log_p, log_q)

    return student.head_loss(h, loss_of, targets) / max(len(h), 1)


def dimo_loss(student, x0, generator, teacher, fake_first=60, fake_turns=2):
    """(B, T) int64, of which only the shape counts -> nats, a mean over masked tokens. Di[M]O (Zhu et al. 2025,
    arXiv 2503.15457): a student of one step, by matching the distribution of its texts y to the teacher's.

    Two networks guess masked tokens of y: the teacher, as real text goes on, and student.fake, which learns on nothing
    but y, as the student's goes on. Where the fake finds a token likelier than the teacher does, the student writes it
    too often. They take turns: the fake `fake_first` times, then `fake_turns` for each of the student's. A fake that
    lags behind leads nowhere.
    """
    # turn counts the training steps, in a buffer, so that a resumed run goes on; a validation takes the student's turn
    fake, mask_id = student.fake, student.mask_id
    fake.turn += student.training
    fakes_turn = student.training and bool(fake.turn <= fake_first or fake.turn % (1 + fake_turns))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not fakes_turn):
        h = student.hidden(half_random(torch.full_like(x0, mask_id), student, generator)).flatten(
            0, 1
        )  # (B T, C)
    with torch.no_grad():
        y = in_chunks(
            lambda part: draw(student.head(part), generator), h, student.config.vocab_size
        ).view_as(x0)
        yt = add_noise(y, 1 - stratified(len(y), generator, y.device), mask_id, generator)
    masked = yt == mask_id  # (B, T), N of them
    n = max(int(masked.sum()), 1)
    if fakes_turn:
        return fake.nll(fake.hidden(yt)[masked], y[masked], torch.ones_like(y[masked]) / n)
    with torch.no_grad():
        h_fake, h_teacher = fake.hidden(yt)[masked], teacher.hidden(yt)[masked]  # (N, C)
    heads = fake.frozen_head(), teacher.frozen_head()

    def loss_of(logits, *h_of_both):
        """(n, V), (n, C), (n, C) -> (n): sum over v of p(v) log(fake(v) / teacher(v)); only p has a gradient.

        If its gradient is 0 for all y and masks, the student's texts have the teacher's law.
        """
        log_fake, log_teacher = (
            head(h).log_softmax(-1) for head, h in zip(heads, h_of_both, strict=True)
        )
        return (logits.softmax(-1) * (log_fake - log_teacher)).sum(-1)

    return student.head_loss(h[masked.flatten()], loss_of, h_fake, h_teacher) / n


def kd_loss(
    drafter, batch, generator, target, divergence="kl_fwd", temp=1.0, kd_weight=1.0, ce_weight=0.0
):
    """(B, T + 1) int64 -> a mean over tokens: divergence of drafter from target, and cross-entropy beside it."""
    x, y = batch[:, :-1], batch[:, 1:]  # (B, T) both
    learnt = written(target, y)  # (B, T), N of them: all tokens but those that an encoder reads
    skip = unseen(target, drafter)  # so many tokens of a row the drafter does not read: 0 of a GPT
    with torch.no_grad():
        h_target = target.hidden(x)[learnt]  # (N, C of the target)
    h = drafter.hidden(x[:, skip:])[learnt[:, skip:]]  # (N, C)
    y, head = y[learnt], target.frozen_head()

    def loss_of(logits, h_target, y):
        """(n, V), (n, C), (n) -> (n)."""
        z_drafter, z_target = logits / temp, head(h_target) / temp
        if (
            divergence == "mse"
        ):  # DIFFERS from sdtt: of logits, and a mean; on log-probabilities it hardly learns here
            loss = (z_drafter - z_target).square().mean(-1)
        else:
            loss = divergence_between(
                divergence, z_drafter.log_softmax(-1), z_target.log_softmax(-1)
            )
        loss = kd_weight * temp**2 * loss
        return (
            loss + ce_weight * F.cross_entropy(logits, y, reduction="none") if ce_weight else loss
        )

    return drafter.head_loss(h, loss_of, h_target, y) / max(len(y), 1)


def soft_cross_entropy(logits, ids, logp, missing="none"):
    """(n, V), (n, K) int64, (n, K) log-probabilities of a teacher -> (n) nats: -sum_k w_k log p(id_k), w = exp(logp).

    Its gradient by the logits is W softmax(z) - scatter(w) with W = sum w: with W < 1, forgetting W pushes named tokens
    the wrong way. missing: what to do about 1 - W. Ids may repeat; entries with logp -inf weigh nothing.
    """
    lse, w = logits.logsumexp(-1), logp.exp()  # (n), (n, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":  # everything not named, as one more token
        others = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)
        gone = 1 - w.sum(-1)
        loss = loss + torch.where(gone > 1e-6, gone, 0) * (lse - others)  # below is rounding
    return loss


def soft_loss(student, batch, generator, soft, missing="none", ce_weight=0.0, vocab_parallel=False):
    """(B, L + 1) int64, tokens and the number of their row in `soft` -> a mean over the labelled tokens.

    vocab_parallel: all processes have the same batch, and each the logits of its own slice of the vocabulary.
    """
    x, number = batch[:, :-1], batch[:, -1].cpu().numpy()  # (B, L) tokens, (B) their row in `soft`
    # the label of place i is of token i, having read those before it: place 0 has none
    ids, logp = (
        torch.from_numpy(a[number, 1:]).to(x.device) for a in (soft.ids, soft.logp)
    )  # (B, L - 1, K)
    labelled = logp.amax(-1) > -math.inf  # (B, L - 1), N of them
    h = student.hidden(x[:, :-1])[labelled]  # (N, C)
    labels = ids[labelled].long(), logp[labelled], x[:, 1:][labelled]  # (N, K), (N, K), (N)
    rank, world, cross_entropy = 0, 1, soft_cross_entropy
    if vocab_parallel:
        rank, world, h = dist.get_rank(), dist.get_world_size(), SameOnRanks.apply(h)
        first = slice_of_vocab(student.config.vocab_size, rank, world)[0]
        cross_entropy = functools.partial(vocab_parallel_soft_cross_entropy, first=first)

    def loss_of(logits, ids, logp, y):
        """(n, V), (n, K), (n, K), (n) -> (n)."""
        loss = cross_entropy(logits, ids, logp, missing=missing)
        if ce_weight:  # the text itself is one candidate of probability 1
            loss = loss + ce_weight * cross_entropy(
                logits, y[:, None], torch.zeros_like(logp[:, :1])
            )
        return loss

    return student.head_loss(h, loss_of, *labels, part=rank, parts=world) / max(len(h), 1)


# ----------------------------------------------------------------------------------------------------------------------
# sdtt: the rounds


def plan_rounds(cfg):
    """-> [(dt, steps that the student aims at), ...], a pair a round. Raises UserError unless the steps divide."""
    k, steps = cfg.teacher_steps, [cfg.orig_steps]
    while steps[-1] % k == 0:
        steps.append(steps[-1] // k)  # 1024, 512, ...
    way = " -> ".join(map(str, steps))
    if cfg.final_steps and cfg.final_steps not in steps[1:]:
        raise UserError(
            f"final_steps {cfg.final_steps} is not on the way {way} (orig_steps over teacher_steps {k})."
        )
    n = steps.index(cfg.final_steps) if cfg.final_steps else cfg.rounds
    if n >= len(steps):
        raise UserError(
            f"{n} rounds: teacher_steps {k} divides orig_steps only {len(steps) - 1} times, {way}."
        )
    return [(1 / steps[r], steps[r + 1]) for r in range(n)]


def set_up(cfg, causal, writes):
    """-> teacher, corpus, device, a note on it; out_dir is made. Raises UserError if something does not fit.

    writes: the pattern of the checkpoints of such a run. They are read back from out_dir, so processes on several nodes
    need one that all of them see.
    """
    teacher = None
    if not (cfg.method == "soft" and cfg.soft_data):  # soft labels that are there need no teacher
        teacher, checkpoint = load_model(cfg.teacher, attention=cfg.attention)
        refuse_other_kind(cfg, teacher, causal)
        cfg.dataset = cfg.dataset or checkpoint["config"]["dataset"]
        # a resumed run notices another teacher
        cfg.teacher_step, cfg.teacher_loss = checkpoint["step"], checkpoint["val_loss"]
    corpus = data.load(cfg.dataset)
    T = context_of(teacher, corpus.meta) if teacher else cfg.soft_length
    refuse_unfit(cfg, corpus, T, checkpoint["meta"] if teacher else corpus.meta)
    refuse_wrong_folder(cfg, writes)
    device, note = join_processes(cfg)
    if rank_and_world()[0] == 0:
        claim(cfg.out_dir)
        save_config(cfg, cfg.out_dir, device_used=note)
    return teacher and teacher.to(device).requires_grad_(False), corpus, device, note


def student_of(teacher, saved, cfg):
    """-> a copy of the teacher to train, or what the round has saved of it."""
    student = GPT(dataclasses.replace(teacher.config, dropout=cfg.dropout)).to(
        teacher.wte.weight.device
    )
    load_weights(student, saved["model"] if saved else teacher.state_dict())
    return student


def sdtt(cfg):
    """Algorithm 2: round after round, the student becomes the teacher."""
    plan = plan_rounds(cfg)
    teacher, corpus, device, note = set_up(cfg, causal=False, writes="round_*.pt")
    T, carried = (
        teacher.config.block_size,
        None,
    )  # carried: the optimizer of the last round, if it lives on
    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    how = {
        "teacher": teacher,
        "k": cfg.teacher_steps,
        "divergence": cfg.divergence,
        "sampler": cfg.sampler,
    }
    how["dtype"] = getattr(torch, cfg.loss_dtype)
    for r, (dt, steps) in enumerate(plan, 1):
        name, first = f"round_{r}.pt", (r - 1) * cfg.iters_per_round
        path = os.path.join(cfg.out_dir, name)
        saved = load_checkpoint(path) if os.path.exists(path) else None
        if not saved or saved["step"] < cfg.iters_per_round:
            way = f"{cfg.teacher_steps} teacher steps of 1/{round(1 / dt)} become one"
            print_once(
                f"round {r} of {len(plan)}, on {note}: {way}; the student aims at {steps} steps"
            )
            student, loss = (
                student_of(teacher, saved, cfg),
                functools.partial(sdtt_loss, dt=dt, **how),
            )
            validate, made_for = (
                validator(loss, corpus, T, cfg, device),
                {"steps": steps, "sampler": cfg.sampler},
            )
            fit(
                student,
                loss,
                get_batch,
                validate,
                cfg,
                saved or carried,
                corpus.meta,
                made_for,
                name,
                first,
            )
            wait_for_all()  # until the first one has written the round
            saved = load_checkpoint(path)
        weights = weights_of(saved) if cfg.ema_teacher else saved["model"]
        teacher.load_state_dict(weights)  # the student becomes the teacher
        if not cfg.reset_optimizer:
            carried = {**saved, "step": 0, "ema": weights if cfg.ema else None}
    print_once(f"Rounds done: {cfg.out_dir}/round_{len(plan)}.pt samples in {plan[-1][1]} steps.")


def dimo(cfg):
    """One run, to a student of one step. The fake is saved with it, to resume, and dropped by whatever loads it."""
    teacher, corpus, device, note = set_up(cfg, causal=False, writes="ckpt.pt")
    T, saved = teacher.config.block_size, saved_of(cfg)
    # The fake is a part of the student, so one optimizer has both: whose turn it is not has no gradient and stays.
    student, student.fake = student_of(teacher, None, cfg), student_of(teacher, None, cfg)
    student.fake.register_buffer("turn", torch.zeros((), dtype=torch.int64, device=device))
    parts = np.array_split(corpus.train, 1 + len(corpus.train) // 2**24)
    counts = sum(np.bincount(part, minlength=teacher.config.vocab_size) for part in parts)  # (V)
    student.frequency = torch.tensor(counts / counts.sum(), dtype=torch.float32, device=device)
    if saved:
        student.load_state_dict(saved["model"])
    print_once(
        f"on {note}: a student writes in one step, a fake learns its texts, the teacher compares"
    )
    loss, made_for = functools.partial(dimo_loss, teacher=teacher), {"steps": 1, "sampler": "dimo"}
    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    fit(
        student,
        loss,
        get_batch,
        validator(loss, corpus, T, cfg, device),
        cfg,
        saved,
        corpus.meta,
        made_for,
    )


# ----------------------------------------------------------------------------------------------------------------------
# kd: a drafter learns from an autoregressive teacher, its target


def pseudo_data(target, corpus, cfg, device, rows_at_once=64):
    """-> (n, T) memory-mapped texts of the target, pseudo_tokens in all, in out_dir/pseudo.bin; goes on if cut off."""
    T, path, meta = target.config.block_size, os.path.join(cfg.out_dir, "pseudo.bin"), corpus.meta
    kind, eos = (
        np.dtype(data.token_dtype(meta["vocab_size"])),
        meta["eot"] if "row" in meta else None,
    )
    chunk = rows_at_once * T * kind.itemsize  # bytes
    n_chunks = math.ceil(cfg.pseudo_tokens / (rows_at_once * T))
    done = os.path.getsize(path) // chunk if os.path.exists(path) else 0
    with open(path, "ab") as f:
        f.truncate(done * chunk)  # a chunk that was cut off is written again
        for i in tqdm(
            range(done, n_chunks), initial=done, total=n_chunks, desc="pseudo-data", unit="chunk"
        ):
            start = data.beginnings(corpus, rows_at_once, seeded(cfg.seed, "start", i)).to(device)
            noise = seeded(cfg.seed, "pseudo", i, device=device)
            text = generate(target, start, T - start.size(1), generator=noise, eos=eos)
            f.write(text.cpu().numpy().astype(kind).tobytes())
            f.flush()
    return np.memmap(path, dtype=kind, mode="r").reshape(-1, T)[: n_chunks * rows_at_once]


def make_drafter(cfg, meta, T, device, note):
    """-> the model to train, new, resumed or from a checkpoint, and what to resume from or None."""
    saved = saved_of(cfg)
    torch.manual_seed(cfg.seed)
    if cfg.drafter in ("lstm", "cnn", "gpt"):
        shape = {
            k: getattr(cfg, k) for k in ("n_layer", "n_head", "n_embd", "dropout", "kernel_size")
        }
        config = GPTConfig(
            arch=cfg.drafter, causal=True, block_size=T, vocab_size=meta["vocab_size"], **shape
        )
        drafter = new_model(config).to(device)
    else:
        drafter, baseline = load_model(cfg.drafter, device, cfg.attention)
        if not data.same_vocabulary(meta, baseline["meta"]):
            raise UserError(f"The drafter {cfg.drafter} has another vocabulary than the text.")
        if not drafter.config.causal or drafter.config.block_size < T:
            raise UserError(
                f"The drafter {cfg.drafter} is no autoregressive model with a context of at least {T}."
            )
    if saved:
        drafter.load_state_dict(saved["model"])
    print_once(f"{sum(p.numel() for p in drafter.parameters()) / 1e6:.2f} M parameters on {note}")
    return drafter, saved


def kd(cfg):
    target, corpus, device, note = set_up(cfg, causal=True, writes="ckpt.pt")
    T = target.config.block_size
    if cfg.drafter != "ngram":
        drafter, saved = make_drafter(cfg, corpus.meta, T, device, note)
    if cfg.kd_data == "teacher" or cfg.drafter == "ngram":
        on_first_process(
            lambda: refuse_other_origin(os.path.join(cfg.out_dir, "pseudo.json"), cfg, T)
        )
        on_first_process(lambda: pseudo_data(target, corpus, cfg, device))
        pseudo = pseudo_data(target, corpus, cfg, device)  # all is written: this only opens it
    if cfg.drafter == "ngram":
        return on_first_process(
            lambda: fit_ngram(cfg, pseudo[:, unseen(target) :], data.without_sources(corpus))
        )

    def get_batch(generator):
        """-> (B, T + 1) of the dataset, (B, T) of what a model wrote."""
        if cfg.kd_data == "dataset":
            return data.batch(corpus.train, cfg.batch_size, T + 1, generator)
        if cfg.kd_data == "teacher":
            rows = torch.randint(len(pseudo), (cfg.batch_size,), generator=generator)
            return torch.from_numpy(pseudo[rows.numpy()].astype(np.int64))
        start, skip = (
            data.beginnings(corpus, cfg.batch_size, generator).to(device),
            unseen(target, drafter),
        )
        with torch.compiler.set_stance("force_eager"):  # its shapes vary here
            text = generate(drafter.eval(), start[:, skip:], T - start.size(1), generator=generator)
        drafter.train()
        return torch.cat([start[:, :skip], text], 1)

    weights = {"divergence": cfg.divergence, "kd_weight": cfg.kd_weight, "ce_weight": cfg.ce_weight}
    loss = functools.partial(kd_loss, target=target, temp=cfg.kd_temp, **weights)
    fit(
        drafter,
        loss,
        get_batch,
        validator(loss, corpus, T + 1, cfg, device),
        cfg,
        saved,
        corpus.meta,
    )


# ----------------------------------------------------------------------------------------------------------------------
# soft: a student learns from stored top-k log-probabilities


def soft(cfg):
    teacher, corpus, device, note = set_up(cfg, causal=True, writes="ckpt.pt")
    folder, T = (
        os.path.join(cfg.out_dir, "soft"),
        teacher.config.block_size if teacher else cfg.soft_length,
    )
    if cfg.soft_data and not cfg.soft_data.endswith(".jsonl"):
        folder, T = cfg.soft_data, load_soft(cfg.soft_data).meta["length"]
    student, saved = make_drafter(cfg, corpus.meta, T - unseen(teacher), device, note)
    if folder != cfg.soft_data:
        on_first_process(lambda: label(teacher, corpus, folder, T, cfg))
    labels = load_soft(folder)
    if not data.same_vocabulary(corpus.meta, labels.meta):
        raise UserError(
            f"The soft labels in {folder} have another vocabulary than the dataset {cfg.dataset}."
        )

    def get_batch(generator):
        rows = torch.randint(len(labels.tokens), (cfg.batch_size,), generator=generator)
        batch = torch.cat(
            [torch.from_numpy(labels.tokens[rows.numpy()]).long(), rows[:, None]], 1
        ).to(device)
        if cfg.vocab_parallel:
            dist.broadcast(batch, 0)  # all have the first one's
        return batch

    how = {"missing": cfg.missing, "ce_weight": cfg.ce_weight, "vocab_parallel": cfg.vocab_parallel}
    validate = validator(
        ar_loss, data.without_sources(corpus), T - unseen(teacher) + 1, cfg, device
    )
    fit(
        student,
        functools.partial(soft_loss, soft=labels, **how),
        get_batch,
        validate,
        cfg,
        saved,
        corpus.meta,
    )


def main(cfg):
    check(cfg, __file__)
    refuse_odd_distillation(cfg)
    cfg.max_iters = cfg.iters_per_round  # fit's name for it
    check_loop(cfg)
    try:
        {"sdtt": sdtt, "dimo": dimo, "kd": kd, "soft": soft}[cfg.method](cfg)
    finally:
        release(cfg.out_dir)
    if cfg.export:
        last = f"round_{len(plan_rounds(cfg))}.pt" if cfg.method == "sdtt" else "ckpt.pt"
        on_first_process(
            lambda: save_published(cfg.export, *load_model(os.path.join(cfg.out_dir, last)))
        )
    leave_processes()


if __name__ == "__main__":
    main(cfg)
