"""
Self-Distillation Through Time: halve the sampling steps of a masked diffusion model, round after
round.
$ python distill.py config/sdtt_pydoc.py           (3 rounds, 2 minutes on 2 laptop cores)
$ torchrun --standalone --nproc_per_node=8 distill.py config/sdtt_openwebtext.py

Deschenaux & Gulcehre 2024, arXiv 2410.21035. Algorithm 1 is sdtt_targets and sdtt_loss; Algorithm 2
is the loop over rounds in sdtt.

And knowledge distillation of a small drafter for a GPT: kd_loss (DistillSpec, Zhou et al. 2023,
arXiv 2310.08461).
$ python distill.py config/kd_shakespeare_char.py --drafter=lstm --out_dir=out/drafters/lstm_kd
"""

import dataclasses
import functools
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
from configurator import UserError, configure, print_once, save_config
from drafters import fit_ngram, load_model, new_model
from loop import check_loop, fit, hooks, validator
from model import GPT, GPTConfig, ancestral_steps, draw_tokens, rank_in_row, stratified
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of
from plumbing.checks import check_distillation, check_teacher, check_text
from plumbing.hardware import dtype_of, frozen_dtype, pick_for_sampling
from plumbing.parallel import join_processes, leave_processes, on_first_process, wait_for_all
from plumbing.randomness import seeded, uniform
from plumbing.runs import (
    check_folder,
    check_origin,
    checkpoint_to_resume,
    claim,
    release,
    write_chunks,
)
from speculative import generate

# --------------------------------------------------------------------------------------------------
method = "sdtt"  # 'sdtt' | 'kd' (a drafter for a GPT: start from config/kd_*.py)
teacher = "out/pydoc/ckpt.pt"  # sdtt: a masked diffusion model; kd: a GPT, the drafter's target
dataset = ""  # a name under data/, or a folder that a prepare.py wrote; '': the teacher's
out_dir = "out/sdtt"  # sdtt writes round_1.pt, round_2.pt, ...; kd writes ckpt.pt or ngram.txt
init_from = "teacher"  # 'teacher' | 'resume' (out_dir, also within a round, also to add rounds)
divergence = "kl_bwd"  # 'kl_bwd' | 'kl_fwd' | 'tvd' | 'mse' | 'jsd' | 'nla', of student and teacher
# sdtt
teacher_steps = 2  # k: this many steps of the teacher become one of the student's
orig_steps = 1024  # sampling steps of the first teacher; each later teacher has k times fewer
rounds = 7
iters_per_round = 10000  # optimizer steps; kd is one round, and may be resumed with more
sampler = "ancestral"  # 'ancestral' (the paper's) | 'spread', the teacher's and the student's
reset_optimizer = True  # a new optimizer every round; False: moments carry over
ema_teacher = True  # the next teacher gets the averaged weights, if ema > 0; False: the final ones
# kd
drafter = "lstm"  # 'lstm' | 'cnn' | 'gpt' | 'ngram' (counts texts of the teacher) | a checkpoint
n_layer = 1  # of a new drafter
n_head = 4
n_embd = 128
ngram_n = 5  # of an n-gram, from 1 to 8
smoothing = "kneser_ney"  # 'kneser_ney' | 'laplace', of an n-gram
kd_data = "dataset"  # 'dataset' | 'teacher' (it writes pseudo_tokens) | 'student' (on-policy)
pseudo_tokens = 1_000_000  # written by the teacher to out_dir/pseudo.bin
kd_temp = 1.0  # softens both distributions; the loss is multiplied by kd_temp^2
ce_weight = 0.0  # of the cross-entropy with the text itself
# optimizer: AdamW, as in the paper
batch_size = 16  # sequences per forward pass, on each process
gradient_accumulation_steps = 8  # forward passes per step, over all processes
learning_rate = 6e-5
warmup_iters = 500  # steps, linear, up to learning_rate; of every round
min_lr = 1.0  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.0  # of matrices
beta2 = 0.999  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
dropout = 0.0  # of the model that is trained
ema = 0.9999  # decay of the averaged weights, which are validated and sampled; 0: off
# the run
eval_interval = 1000  # steps between validations, which save the checkpoint
eval_iters = 4  # validation batches
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


def divergence_between(log_student, log_teacher, divergence):
    """
    (..., V) log-probabilities of both -> (...): a sum over V, never a mean; nats, except tvd and
    mse. Raises UserError for another name.

        kl_bwd  KL(student || teacher) = sum student * (log student - log teacher)   mode-seeking
        kl_fwd  KL(teacher || student) = sum teacher * (log teacher - log student)   mode-covering
        tvd     sum |student - teacher| / 2, from 0 to 1
        mse     sum (log student - log teacher)^2 (eq. 11)
        nla     -log sum min(student, teacher) = -log(1 - tvd): -log P(a draft is accepted)
        jsd     (KL(student || m) + KL(teacher || m)) / 2 with m = (student + teacher) / 2

    nla and jsd stay finite where a probability underflows to 0 in float32.
    """
    if divergence == "kl_bwd":
        return (log_student.exp() * (log_student - log_teacher)).sum(-1)
    if divergence == "kl_fwd":
        return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    if divergence == "tvd":  # DIFFERS: the released code has a difference of log-probabilities here
        return (log_student.exp() - log_teacher.exp()).abs().sum(-1) / 2
    if divergence == "mse":  # DIFFERS: the released code has a mean over V
        return (log_student - log_teacher).square().sum(-1)
    if divergence == "nla":
        return -torch.minimum(log_student, log_teacher).logsumexp(-1)
    if divergence == "jsd":
        log_m = torch.logaddexp(log_student, log_teacher) - math.log(2)
        kl_student = log_student.exp() * (log_student - log_m)
        kl_teacher = log_teacher.exp() * (log_teacher - log_m)
        return (kl_student + kl_teacher).sum(-1) / 2
    raise UserError(f"divergence is {divergence!r}; choose kl_bwd, kl_fwd, tvd, mse, jsd or nla.")


# --------------------------------------------------------------------------------------------------
# SDTT: a noisy batch, and which of the teacher's k steps unmasks which of its positions


def ancestral_state(x0, dt, k, mask_id, generator):
    """
    (B, T) int64 -> xt (B, T) int64, step_of (B, T) int64: which of the teacher's steps, 1 ... k,
    unmasks each position (k also if it stays masked after them); 0: xt shows the token.

    A row's time t is uniform in (0, 1], stratified over the batch; a token is masked if its own
    time is before t. dt: the length of a step of the teacher; a step of the student is k dt.
    """
    # any time, not only those of the sampler's grid (Algorithm 1)
    t = 1 - stratified(len(x0), generator, x0.device)  # (B, 1) in (0, 1]
    u = uniform(x0.shape, generator, x0.device)  # (B, T): when each token becomes masked
    step_of = ancestral_steps(u, t, dt, k)
    return x0.masked_fill(step_of > 0, mask_id), step_of


def spread_state(x0, dt, k, mask_id, generator):
    """
    Like ancestral_state, for a student that will sample with `spread` in K = 1 / (k dt) steps. In
    step_of, 0 means not supervised: shown, or masked until a later step of the student.

    DIFFERS from the paper, whose sampler is ancestral. Position i is in class i mod K. Each student
    step unmasks one class, in random order. Each row draws one student step, `present`, stratified
    over the batch: classes of earlier steps are shown, only the class of this step is supervised,
    as in sampling. The teacher unmasks that class in k parts, dealt from left to right; the parts
    come in random order. Example, K = 8 and k = 2: a student step has positions 4, 12, 20, 28 ...;
    the two teacher steps have 4, 20 ... and 12, 28 ... (`spread` has the same classes if the whole
    text is masked.)
    """
    B, T = x0.shape
    n_steps = round(1 / (k * dt))  # K
    position = torch.arange(T, device=x0.device)
    order = rank_in_row(uniform((B, n_steps), generator, x0.device))  # (B, K)
    student_step = order[:, position % n_steps]  # (B, T) in 0 ... K - 1
    part_order = rank_in_row(uniform((B, k), generator, x0.device))  # (B, k)
    member = position // n_steps  # its number within its class, from 0
    part = 1 + part_order[:, member % k]  # (B, T) in 1 ... k
    present = (stratified(B, generator, x0.device) * n_steps).long()  # (B, 1) in 0 ... K - 1
    xt = torch.where(student_step < present, x0, mask_id)
    return xt, torch.where(student_step == present, part, 0)


@torch.no_grad()
def sdtt_targets(teacher, xt, step_of, k, generator):
    """
    (B, T) int64 each -> (B, T, C): the teacher's hidden state at each supervised position, in the
    step that unmasks it. Zeros where step_of is 0 (possibly everywhere). The tokens of a step are
    drawn from the teacher, and later steps see them. xt itself is not changed.

    To save memory it returns hidden states (C numbers), not log-probabilities (V numbers): the loss
    computes those.
    """
    z = xt.clone()
    targets = teacher.wte.weight.new_zeros(*xt.shape, teacher.config.n_embd)
    for step in range(1, k + 1):
        now = step_of == step  # (B, T)
        rows = now.any(dim=1)
        if not rows.any():
            continue
        h = teacher.hidden(z[rows])[now[rows]]  # (N, C)
        targets[now] = h.to(targets.dtype)
        if step < k:  # no step follows that would see the draws of the last
            z[now] = draw_tokens(teacher, h, generator)
    return targets


def sdtt_loss(student, x0, generator, teacher, dt, sampler, *, k=2, divergence="kl_bwd"):
    """
    (B, T) int64 -> nats: divergence_between student and teacher, the mean over all supervised
    positions of the batch; 0 if there are none.

    The teacher, already in eval mode, takes k steps of length dt; the student learns to do the same
    in one step of length k dt. The paper has no weight 1/t either: this is not a likelihood bound.
    sampler: the one that both will sample with. 'spread' takes spread_state, any other
    ancestral_state.
    """
    state = spread_state if sampler == "spread" else ancestral_state
    xt, step_of = state(x0, dt, k, student.mask_id, generator)  # (B, T) each
    targets = sdtt_targets(teacher, xt, step_of, k, generator)  # (B, T, C)
    supervised = step_of > 0  # (B, T), N of them
    h = student.hidden(xt)[supervised]  # (N, C)
    log_student = student.head(h).float().log_softmax(-1)  # (N, V)
    with torch.no_grad():
        log_teacher = teacher.head(targets[supervised]).float().log_softmax(-1)  # (N, V)
    losses = divergence_between(log_student, log_teacher, divergence)  # (N)
    return losses.sum() / max(len(losses), 1)  # a batch in which nothing is masked has loss 0


# --------------------------------------------------------------------------------------------------
# drafters


def kd_loss(
    drafter, batch, generator, teacher, divergence="kl_fwd", temperature=1.0, ce_weight=0.0
):
    """
    (B, T + 1) int64 -> nats: temperature^2 times divergence_between drafter and teacher, plus
    ce_weight times the cross-entropy with the text itself, both a mean over all T positions.

    Both networks are causal and read the first T tokens. The temperature divides the logits of both
    in the divergence, none in the cross-entropy. The teacher gets no gradient. Neither changes its
    mode, train or eval.
    """
    x = batch[:, :-1]  # (B, T)
    y = batch[:, 1:]  # (B, T)
    logits = drafter(x).float()  # (B, T, V)
    log_drafter = (logits / temperature).log_softmax(-1)
    with torch.no_grad():
        log_teacher = (teacher(x).float() / temperature).log_softmax(-1)
    # gradients scale with 1 / temperature^2, which this undoes (Hinton et al. 2015)
    loss = temperature**2 * divergence_between(log_drafter, log_teacher, divergence).mean()
    if ce_weight:
        loss = loss + ce_weight * F.cross_entropy(logits.flatten(0, 1), y.flatten())
    return loss


# --------------------------------------------------------------------------------------------------
# the run: sdtt


def set_up(cfg, causal, pattern):
    """
    -> teacher, corpus, device, a note on the device; makes out_dir. Raises UserError if they do not
    fit.

    pattern: of the names of this run's checkpoints. All processes read them back, so on several
    nodes out_dir must be on a shared disk.
    """
    frozen = frozen_dtype(cfg.device, cfg.dtype)
    teacher, checkpoint = load_model(cfg.teacher, attention=cfg.attention, dtype=frozen)
    check_teacher(cfg.teacher, teacher, causal)
    cfg.dataset = cfg.dataset or checkpoint["config"]["dataset"]
    cfg.teacher_step = checkpoint["step"]  # so that a resumed run notices another teacher
    cfg.teacher_loss = checkpoint["val_loss"]
    corpus = data.load(cfg.dataset)
    check_text(cfg, corpus, teacher.config.block_size, checkpoint["meta"])
    free = ()
    if causal:  # kd has no rounds: it may be resumed with more steps
        free = ("iters_per_round", "max_iters")
    check_folder(cfg, pattern, free)
    device, note = join_processes(cfg)
    on_first_process(lambda: start_folder(cfg, note))
    return teacher.to(device).requires_grad_(False), corpus, device, note


def start_folder(cfg, note):
    claim(cfg.out_dir)
    save_config(cfg, cfg.out_dir, device_used=note)


def plan_rounds(orig_steps, k, rounds):
    """-> [(length dt of a teacher step, sampling steps of the student), ...], one per round."""
    plan = []
    steps = orig_steps
    for _ in range(rounds):
        if steps % k:
            way = [orig_steps, *(fewer for _, fewer in plan)]
            raise UserError(
                f"{rounds} rounds: teacher_steps {k} divides orig_steps only {len(plan)} times "
                f"({' -> '.join(map(str, way))})."
            )
        plan.append((1 / steps, steps // k))
        steps = steps // k  # 1024, 512, ...
    return plan


def make_student(teacher, saved, dropout):
    """-> a copy of the teacher to train, with the saved weights of an interrupted round, if any."""
    config = dataclasses.replace(teacher.config, dropout=dropout)
    student = GPT(config).to(teacher.wte.weight.device)
    load_weights(student, saved["model"] if saved else teacher.state_dict())
    return student


def round_parts(student, teacher, corpus, device, cfg, *, dt, steps, name, steps_before):
    """-> loss, on_eval, save of a round: dt and steps as in plan_rounds."""
    loss = functools.partial(
        sdtt_loss,
        teacher=teacher,
        dt=dt,
        sampler=cfg.sampler,
        k=cfg.teacher_steps,
        divergence=cfg.divergence,
    )
    validate = validator(loss, corpus, teacher.config.block_size, cfg, device)
    on_eval, save = hooks(
        student,
        validate,
        cfg,
        corpus.meta,
        name=name,
        made_for={"steps": steps, "sampler": cfg.sampler},
        steps_before=steps_before,
    )
    return loss, on_eval, save


def sdtt(cfg):
    """Algorithm 2: round after round, the student becomes the teacher."""
    plan = plan_rounds(cfg.orig_steps, cfg.teacher_steps, cfg.rounds)
    teacher, corpus, device, note = set_up(cfg, causal=False, pattern="round_*.pt")
    T = teacher.config.block_size
    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    carried = None  # the optimizer of the last round, if it is kept

    for r, (dt, steps) in enumerate(plan, 1):
        name = f"round_{r}.pt"
        path = os.path.join(cfg.out_dir, name)
        saved = load_checkpoint(path) if os.path.exists(path) else None
        if not saved or saved["step"] < cfg.iters_per_round:
            print_once(
                f"round {r} of {len(plan)}, on {note}: {cfg.teacher_steps} teacher steps of "
                f"1/{round(1 / dt)} become one; the student aims at {steps} steps"
            )
            student = make_student(teacher, saved, cfg.dropout)
            before = (r - 1) * cfg.iters_per_round
            about = {"dt": dt, "steps": steps, "name": name, "steps_before": before}
            loss, on_eval, save = round_parts(student, teacher, corpus, device, cfg, **about)
            resume = saved or carried
            fit(student, loss, get_batch, cfg, on_eval, save, resume, steps_before=before)
            wait_for_all()  # until the first process has written the round
            saved = load_checkpoint(path)

        weights = weights_of(saved) if cfg.ema_teacher else saved["model"]
        teacher.load_state_dict(weights)  # the student becomes the teacher
        if not cfg.reset_optimizer:
            # resume from it at step 0: only moments and averages are used
            carried = {**saved, "step": 0, "ema": weights if cfg.ema else None}

    last = f"{cfg.out_dir}/round_{len(plan)}.pt"
    print_once(f"Rounds done: {last} is made for {plan[-1][1]} sampling steps.")


# --------------------------------------------------------------------------------------------------
# the run: kd, a drafter learns from an autoregressive teacher, its target


def write_pseudo_data(target, corpus, cfg, device, rows_at_once=64):
    """
    -> (n, T) memory-mapped texts of the target, pseudo_tokens in all, in out_dir/pseudo.bin. If it
    is interrupted, the next call goes on.
    """
    T = target.config.block_size
    start = torch.full((rows_at_once, 1), data.start_token(corpus.meta), device=device)
    autocast, _ = pick_for_sampling(True, cfg.device, cfg.dtype)

    def texts(i):
        generator = seeded(cfg.seed, "pseudo", i, device=device)
        with autocast:
            return generate(target, start, T - 1, generator=generator)

    path = os.path.join(cfg.out_dir, "pseudo.bin")
    n_chunks = math.ceil(cfg.pseudo_tokens / (rows_at_once * T))
    dtype = data.token_dtype(corpus.meta["vocab_size"])
    return write_chunks(path, n_chunks, (rows_at_once, T), dtype, texts)


def pseudo_texts(target, corpus, cfg, device):
    """-> (n, T) memory-mapped texts of the target. The first process writes them, all open them."""
    names = ("teacher", "teacher_step", "teacher_loss", "dataset", "seed")
    origin = {"T": target.config.block_size} | {name: getattr(cfg, name) for name in names}
    origin["computed in"] = str(dtype_of(pick_for_sampling(True, cfg.device, cfg.dtype)[0]))
    on_first_process(lambda: check_origin(os.path.join(cfg.out_dir, "pseudo.json"), origin))
    on_first_process(lambda: write_pseudo_data(target, corpus, cfg, device))
    return write_pseudo_data(target, corpus, cfg, device)  # it is complete: this only opens it


def make_drafter(cfg, meta, T, device, note):
    """-> the model to train, new, resumed or from a checkpoint, and what to resume from or None."""
    saved = checkpoint_to_resume(cfg)
    torch.manual_seed(cfg.seed)  # nn.init knows only the global generator
    if cfg.drafter in ("lstm", "cnn", "gpt"):
        config = GPTConfig(
            arch=cfg.drafter,
            causal=True,
            block_size=T,
            vocab_size=meta["vocab_size"],
            n_layer=cfg.n_layer,
            n_head=cfg.n_head,
            n_embd=cfg.n_embd,
            dropout=cfg.dropout,
            attention=cfg.attention,
        )
        drafter = new_model(config).to(device)
    else:
        try:
            drafter, baseline = load_model(cfg.drafter, device, cfg.attention)
        except UserError as error:
            raise UserError(f"drafter is not lstm, cnn, gpt or ngram: {error}") from None
        if not data.same_vocabulary(meta, baseline["meta"]):
            raise UserError(f"The drafter {cfg.drafter} has another vocabulary than the text.")
        if not drafter.config.causal or drafter.config.block_size < T:
            raise UserError(
                f"The drafter {cfg.drafter} is not a GPT with a context of {T} or more."
            )
    if saved:
        drafter.load_state_dict(saved["model"])
    n_params = sum(p.numel() for p in drafter.parameters())
    print_once(f"{n_params / 1e6:.2f} M parameters on {note}")
    return drafter, saved


def kd(cfg):
    target, corpus, device, note = set_up(cfg, causal=True, pattern="ckpt.pt")
    if cfg.drafter == "ngram":
        pseudo = pseudo_texts(target, corpus, cfg, device)
        on_first_process(lambda: fit_ngram(pseudo, corpus, cfg.ngram_n, cfg.smoothing, cfg.out_dir))
        return

    T = target.config.block_size
    # first, so that a bad drafter fails before the target writes for hours
    drafter, saved = make_drafter(cfg, corpus.meta, T, device, note)
    pseudo = None
    if cfg.kd_data == "teacher":
        pseudo = pseudo_texts(target, corpus, cfg, device)
    start = data.start_token(corpus.meta)
    autocast, _ = pick_for_sampling(True, cfg.device, cfg.dtype)

    def get_batch(generator):
        """-> (B, T + 1) of the dataset, (B, T) of what a model wrote: its context is T."""
        if cfg.kd_data == "dataset":
            return data.batch(corpus.train, cfg.batch_size, T + 1, generator)
        if cfg.kd_data == "teacher":
            rows = torch.randint(len(pseudo), (cfg.batch_size,), generator=generator)
            return torch.from_numpy(pseudo[rows.numpy()].astype(np.int64))
        idx = torch.full((cfg.batch_size, 1), start, device=device)
        with torch.compiler.set_stance("force_eager"), autocast:  # its shapes vary here
            idx = generate(drafter.eval(), idx, T - 1, generator=generator)
        drafter.train()
        return idx

    loss = functools.partial(
        kd_loss,
        teacher=target,
        divergence=cfg.divergence,
        temperature=cfg.kd_temp,
        ce_weight=cfg.ce_weight,
    )
    validate = validator(loss, corpus, T + 1, cfg, device)
    on_eval, save = hooks(drafter, validate, cfg, corpus.meta)
    fit(drafter, loss, get_batch, cfg, on_eval, save, saved)


def main(cfg):
    check_distillation(cfg)
    cfg.max_iters = cfg.iters_per_round  # fit's name for it
    check_loop(cfg)
    try:
        if cfg.method == "sdtt":
            sdtt(cfg)
        else:
            kd(cfg)
    finally:
        release(cfg.out_dir)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
