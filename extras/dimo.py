"""
Di[M]O: a masked diffusion model becomes a student that writes a whole text in one step, or in two,
by matching the distribution of its texts to the teacher's.
$ python -m extras.dimo config/dimo_pydoc.py                 (4 minutes on 2 AVX-512 cores)
$ python -m extras.dimo --task=sample --ckpt=out/dimo_pydoc/ckpt.pt --steps=2
$ python -m extras.dimo --task=sample --ckpt=out/dimo_pydoc/ckpt.pt --temperature=0.8 \
      --num_samples=64 --save=out/dimo/0.8.jsonl             (for eval.py --samples)

Zhu et al. 2025, arXiv 2503.15457. The start is half_random, the losses fake_loss and student_loss.
DIFFERS: stay_loss is ours. It keeps what the paper's student loses, the steps after the first.
"""

import dataclasses
import functools
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
from configurator import UserError, check_at_least, choose, configure, print_once, save_config
from distill import sdtt_loss
from drafters import load_model
from extras.save_samples import samples_header
from loop import check_loop, fit, hooks, validator
from model import (
    GPT,
    GPTConfig,
    close_gaps,
    draw_tokens,
    step_temperature,
    stratified,
    unmask_steps,
)
from plumbing.checkpoints import load_checkpoint, weights_of
from plumbing.checks import check_sampling_knobs, check_text
from plumbing.hardware import check_attention, pick_device
from plumbing.randomness import seeded, uniform
from plumbing.runs import check_folder, checkpoint_to_resume, claim, release

# --------------------------------------------------------------------------------------------------
task = "train"  # 'train' | 'sample'
# train
teacher = "out/pydoc/ckpt.pt"  # a masked diffusion model
dataset = ""  # a name under data/, or a folder that a prepare.py wrote; '': the teacher's
out_dir = "out/dimo"  # gets ckpt.pt
init_from = "teacher"  # 'teacher' | 'resume' (out_dir)
max_iters = 450  # optimizer steps, of the fake and of the student together
stay_weight = 1.0  # of stay_loss; 0: a student of a single step, as in the paper
# optimizer: AdamW
batch_size = 16  # sequences per forward pass
learning_rate = 5e-4
warmup_iters = 20  # steps, linear, up to learning_rate
min_lr = 1.0  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.0  # of matrices
beta2 = 0.99  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
ema = 0.98  # decay of the averaged weights, which are validated and sampled; 0: off
eval_interval = 150  # steps between validations, which save the checkpoint
eval_iters = 4  # validation batches
compile = "auto"  # 'auto' (on cuda) | 'on' | 'off': torch.compile
wandb = ""  # a project name: also log to Weights & Biases
# sample
ckpt = "out/dimo_pydoc/ckpt.pt"  # what --task=train has saved
num_samples = 4
steps = 1  # forward passes: it is made for 1 and 2; with 4 its teacher is as good
temperature = 1.0  # 0: always the most probable token
cooling = 1.0  # diffusion: the temperature of the last step over that of the first
top_p = 1.0  # keep the most probable tokens that hold this much probability
save = ""  # a .jsonl file: write the samples there, for eval.py --samples; '': print them
# both
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

SAMPLING_KNOBS = (
    "task",
    "ckpt",
    "num_samples",
    "steps",
    "temperature",
    "cooling",
    "top_p",
    "save",
)


# --------------------------------------------------------------------------------------------------
# the student, its fake, and the start


class Student(GPT):
    """
    A masked diffusion model that learns to write in one step, and what it needs to learn: a second
    network, the fake; how frequent each token is in the corpus; and turn, how many losses training
    has computed, which says whose turn it is. All of this is in its state_dict, so a resumed run
    continues where it was.
    """

    def __init__(self, config):
        super().__init__(config)
        self.fake = GPT(config)
        self.register_buffer("frequency", torch.zeros(config.vocab_size))  # (V), sums to 1
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))


def student_of(teacher, frequency):
    """-> a Student which is, as its fake is, a copy of the teacher. frequency: (V,)."""
    config = dataclasses.replace(teacher.config, dropout=0.0)
    student = Student(config).to(teacher.wte.weight.device)
    weights = teacher.state_dict()
    student.load_state_dict(student.state_dict() | weights)
    student.fake.load_state_dict(weights)
    student.frequency.copy_(frequency)
    return student


def frequencies(tokens, V):
    """(n,) memory-mapped token ids -> (V,) float32: the fraction of each token."""
    counts = np.zeros(V)
    for start in range(0, len(tokens), 2**24):  # not all of them at once in memory
        counts += np.bincount(tokens[start : start + 2**24], minlength=V)
    return torch.tensor(counts / counts.sum(), dtype=torch.float32)


def half_random(student, B, T, generator):
    """
    -> (B, T) int64: half of the positions, at random, show [MASK], the others a random token, as
    frequent as in the corpus.

    The start of the one-step student. It is only noise, and that is the point: every position sees
    the same noise, so by it they can agree on one text. Shown only masks they could not.
    """
    device = student.frequency.device
    u = uniform((B, T), generator, device)
    noise = torch.searchsorted(student.frequency.cumsum(0), u, right=True)  # (B, T) tokens
    noise = noise.clamp(max=student.config.vocab_size - 1)  # the sum is 1 only up to rounding
    masked = uniform((B, T), generator, device) < 0.5
    return noise.masked_fill(masked, student.mask_id)


def write(student, B, T, generator):
    """-> (B, T, C) hidden states of a random start, (B, T) int64: the texts drawn from them."""
    h = student.hidden(half_random(student, B, T, generator))  # (B, T, C)
    with torch.no_grad():
        y = draw_tokens(student, h.flatten(0, 1), generator)  # (B T)
    return h, y.view(B, T)


@torch.no_grad()
def write_in_steps(student, B, T, n_steps, generator, *, temperature=1.0, cooling=1.0, top_p=1.0):
    """
    -> (B, T) int64. The first step sees a random start and writes some positions, every n_steps-th;
    the later ones see these and masks. They need no noise: the text itself says what to agree on.
    """
    x = torch.full((B, T), student.mask_id, device=student.frequency.device)
    step_of = close_gaps(unmask_steps(x == student.mask_id, n_steps, "spread", generator))
    n_steps = int(step_of.max())  # at most T
    for step in range(1, n_steps + 1):
        now = step_of == step  # (B, T), N of them
        shown = half_random(student, B, T, generator) if step == 1 else x
        h = student.hidden(shown)[now]  # (N, C)
        temp = step_temperature(step, n_steps, temperature, cooling)
        x[now] = draw_tokens(student, h, generator, temp, top_p)
    return x


# --------------------------------------------------------------------------------------------------
# the losses


def masked_at_random(y, generator):
    """(B, T) -> (B, T) bool: masked with probability t, each row with another t in (0, 1]."""
    t = 1 - stratified(len(y), generator, y.device)  # (B, 1)
    return uniform(y.shape, generator, y.device) < t


def fake_loss(student, B, T, generator):
    """-> nats: the fake learns to predict masked tokens of what the student writes."""
    with torch.no_grad():
        _, y = write(student, B, T, generator)
    masked = masked_at_random(y, generator)  # (B, T), N of them
    yt = y.masked_fill(masked, student.mask_id)
    logits = student.fake.head(student.fake.hidden(yt)[masked]).float()  # (N, V)
    losses = F.cross_entropy(logits, y[masked], reduction="none")  # (N)
    return losses.sum() / max(len(losses), 1)


def student_loss(student, B, T, generator, teacher):
    """
    -> nats: at masked positions of a text y that the student wrote, the mean of

        sum over v of student(v) (log fake(v) - log teacher(v)),

    student(v): the distribution that y was drawn from, given the random start. Only it has a
    gradient. A token that the fake finds likelier than the teacher does is one that the student
    writes too often. Where fake and teacher agree at every yt, the student's texts have the
    teacher's distribution, and the gradient is 0.
    """
    h, y = write(student, B, T, generator)  # (B, T, C), (B, T)
    masked = masked_at_random(y, generator)  # (B, T), N of them
    yt = y.masked_fill(masked, student.mask_id)
    with torch.no_grad():
        log_fake = student.fake.head(student.fake.hidden(yt)[masked]).float().log_softmax(-1)
        log_teacher = teacher.head(teacher.hidden(yt)[masked]).float().log_softmax(-1)  # (N, V)
    student_probs = student.head(h[masked]).float().softmax(-1)  # (N, V)
    losses = (student_probs * (log_fake - log_teacher)).sum(-1)  # (N)
    return losses.sum() / max(len(losses), 1)


def stay_loss(student, x0, generator, teacher):
    """
    (B, T) int64, real texts -> nats: where a text without noise is partly shown, the student stays
    the teacher. These are the states that `spread` visits in 4 steps (the first of them, all masks,
    is never sampled from; there the loss does no harm).

    Only the first step needs to agree on one text among many. The later ones see it, and there the
    teacher is right already; without this loss the student forgets it.
    """
    return sdtt_loss(student, x0, generator, teacher, dt=1 / 4, sampler="spread", k=1)


def dimo_loss(student, x0, generator, teacher, stay_weight=1.0, *, fake_first=60, fake_turns=2):
    """
    (B, T) int64, real texts -> nats, a mean over masked tokens.

    The networks take turns: the fake `fake_first` times, then `fake_turns` times for each turn of
    the student. A fake that lags behind misleads the student. In validation it is the student's
    loss, and no turn is counted. The real texts are used by stay_loss only.
    """
    B, T = x0.shape
    if not student.training:
        return student_loss(student, B, T, generator, teacher)
    student.turn += 1
    if student.turn <= fake_first or student.turn % (1 + fake_turns) != 0:
        return fake_loss(student, B, T, generator)
    matching = student_loss(student, B, T, generator, teacher)
    if stay_weight == 0:
        return matching
    return matching + stay_weight * stay_loss(student, x0, generator, teacher)


# --------------------------------------------------------------------------------------------------
# train


def check_training(cfg):
    """Raises UserError for a run that cannot be."""
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    check_at_least(cfg, stay_weight=0)
    if "WORLD_SIZE" in os.environ:
        raise UserError("The networks take turns, in one process: leave torchrun out.")
    check_loop(cfg)


def load_teacher(cfg):
    """-> teacher, corpus. Raises UserError if they or out_dir do not fit."""
    teacher, checkpoint = load_model(cfg.teacher, attention=cfg.attention)
    if teacher.config.causal:
        raise UserError(f"The teacher {cfg.teacher} is a GPT; Di[M]O needs a diffusion model.")
    cfg.dataset = cfg.dataset or checkpoint["config"]["dataset"]
    cfg.teacher_step = checkpoint["step"]  # so that a resumed run notices another teacher
    cfg.teacher_loss = checkpoint["val_loss"]
    corpus = data.load(cfg.dataset)
    check_text(cfg, corpus, teacher.config.block_size, checkpoint["meta"])
    check_folder(cfg, "ckpt.pt", free=("max_iters", *SAMPLING_KNOBS))
    return teacher.requires_grad_(False), corpus


def train_student(cfg):
    # what else the training loop asks for, and what is no choice here
    cfg.method = "dimo"
    cfg.gradient_accumulation_steps = 1  # the turns are counted in forward passes
    cfg.dropout = 0.0
    cfg.sample_interval = 0  # the loop would sample it as a diffusion model
    cfg.fsdp = False
    check_training(cfg)
    device, _, note = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    teacher, corpus = load_teacher(cfg)
    claim(cfg.out_dir)
    save_config(cfg, cfg.out_dir, device_used=note)

    T = teacher.config.block_size
    frequency = frequencies(corpus.train, teacher.config.vocab_size)
    student = student_of(teacher.to(device), frequency)
    saved = checkpoint_to_resume(cfg)
    if saved:
        student.load_state_dict(saved["model"])
    print_once(f"on {note}: the student learns to write in one step, the fake what it writes")
    # The fake is a part of the student, so one optimizer has both. The network whose turn it is not
    # has no gradient, so the optimizer leaves it as it is.
    loss = functools.partial(dimo_loss, teacher=teacher, stay_weight=cfg.stay_weight)
    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    validate = validator(loss, corpus, T, cfg, device)
    on_eval, save = hooks(student, validate, cfg, corpus.meta)
    fit(student, loss, get_batch, cfg, on_eval, save, saved)
    print_once(f"Sample it: python -m extras.dimo --task=sample --ckpt={cfg.out_dir}/ckpt.pt")


# --------------------------------------------------------------------------------------------------
# sample


def load_student(path, device, attention="sdpa"):
    """-> Student in eval mode with averaged weights, its checkpoint. Raises UserError."""
    fix = "Make one with: python -m extras.dimo config/dimo_pydoc.py"
    if not os.path.exists(path):
        raise UserError(f"There is no checkpoint {path}. {fix}")
    saved = load_checkpoint(path)
    if "turn" not in saved["model"]:
        raise UserError(f"{path} is not a student of Di[M]O. {fix}")
    config = GPTConfig(**{**saved["model_config"], "attention": attention})
    student = Student(config)
    student.load_state_dict(weights_of(saved))
    return student.to(device).eval(), saved


@torch.no_grad()
def samples_of(student, cfg):
    """-> (num_samples, T) int64, batch after batch, each with random numbers of its own."""
    parts = []
    for start in range(0, cfg.num_samples, cfg.batch_size):
        n = min(cfg.batch_size, cfg.num_samples - start)
        T = student.config.block_size
        generator = seeded(cfg.seed, "samples", start, device=student.wte.weight.device)
        options = {"temperature": cfg.temperature, "cooling": cfg.cooling, "top_p": cfg.top_p}
        y = write_in_steps(student, n, T, cfg.steps, generator, **options)
        parts.append(y.cpu())
    return torch.cat(parts)


def sample_student(cfg):
    """Prints samples, or saves them: one JSON object a line, the first says what they are."""
    check_sampling_knobs(cfg)
    check_at_least(cfg, steps=1)
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    student, saved = load_student(cfg.ckpt, device, cfg.attention)
    meta = saved["meta"]
    decode = data.encoder(meta)[1]
    with autocast:
        rows = samples_of(student, cfg).tolist()
    if not cfg.save:
        for i, row in enumerate(rows, 1):
            print(f"{'-' * 40} sample {i}\n{decode(row)}")
        return
    dataset = saved["config"]["dataset"]
    about = {"sampler": "dimo", "steps": cfg.steps, "note": note, "dataset": dataset}
    header = samples_header(cfg, causal=False, meta=meta, **about)
    lines = [{"tokens": row, "text": decode(row)} for row in rows]
    data.write_jsonl(cfg.save, [header, *lines])
    print(f"{len(rows)} samples saved in {cfg.save}")


def main(cfg):
    choose("task", cfg.task, ("train", "sample"))
    if cfg.task == "sample":
        sample_student(cfg)
        return
    try:
        train_student(cfg)
    finally:
        release(cfg.out_dir)


if __name__ == "__main__":
    main(cfg)
