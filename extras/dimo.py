"""
Di[M]O: a masked diffusion model becomes a student that writes a whole text in one step, by matching
the distribution of its texts to the teacher's.

$ python -m extras.dimo config/dimo_pydoc.py                 (4 minutes on 2 AVX-512 cores)
$ python -m extras.dimo --task=sample --ckpt=out/dimo_pydoc/ckpt.pt
$ python -m extras.dimo --task=sample --ckpt=out/dimo_pydoc/ckpt.pt --temperature=0.8 \
      --num_samples=64 --save=out/dimo/0.8.jsonl             (for eval.py --samples)

Zhu et al. 2025, arXiv 2503.15457. The start is half_random, the losses fake_loss and student_loss.
"""

import dataclasses
import functools
import json
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
from configurator import UserError, choose, configure, print_once, save_config
from model import GPT, draw_tokens, stratified

# --------------------------------------------------------------------------------------------------
# the student, its fake, and the start


class Student(GPT):
    """
    A masked diffusion model that learns to write in one step, and what it needs to learn: a second
    network, the fake; how frequent each token is in the corpus; and turn, the training steps so
    far. All of this is in its state_dict, so a resumed run continues where it was.
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


def write(student, B, T, generator, *, temperature=1.0, top_p=1.0):
    """-> (B, T, C) hidden states of a random start, (B, T) int64: the texts drawn from them."""
    h = student.hidden(half_random(student, B, T, generator))  # (B, T, C)
    with torch.no_grad():
        y = draw_tokens(student, h.flatten(0, 1), generator, temperature, top_p)  # (B T)
    return h, y.view(B, T)


# --------------------------------------------------------------------------------------------------
# the losses


def masked_at_random(y, generator):
    """(B, T) -> (B, T) bool: masked with probability t, which is uniform in (0, 1] over the rows."""
    t = 1 - stratified(len(y), generator, y.device)  # (B, 1)
    return uniform(y.shape, generator, y.device) < t


def fake_loss(student, B, T, generator):
    """-> nats: the fake learns to predict masked tokens of what the student writes."""
    with torch.no_grad():
        _, y = write(student, B, T, generator)
    masked = masked_at_random(y, generator)  # (B, T), N of them
    yt = y.masked_fill(masked, student.mask_id)
    logits = student.fake.head(student.fake.hidden(yt)[masked])  # (N, V)
    losses = F.cross_entropy(logits, y[masked], reduction="none")  # (N)
    return losses.sum() / max(len(losses), 1)


def student_loss(student, B, T, generator, teacher):
    """
    -> nats: at masked positions of a text y that the student wrote, the mean of

        sum over v of p(v) (log fake(v) - log teacher(v)),    p the student's own predictions for y.

    Only p has a gradient: a token that the fake finds likelier than the teacher does is one that the
    student writes too often. If the gradient is 0 for all y and all masks, the student's texts have
    the teacher's distribution.
    """
    h, y = write(student, B, T, generator)  # (B, T, C), (B, T)
    masked = masked_at_random(y, generator)  # (B, T), N of them
    yt = y.masked_fill(masked, student.mask_id)
    with torch.no_grad():
        log_fake = student.fake.head(student.fake.hidden(yt)[masked]).float().log_softmax(-1)
        log_teacher = teacher.head(teacher.hidden(yt)[masked]).float().log_softmax(-1)  # (N, V)
    p = student.head(h[masked]).float().softmax(-1)  # (N, V)
    losses = (p * (log_fake - log_teacher)).sum(-1)  # (N)
    return losses.sum() / max(len(losses), 1)


def dimo_loss(student, x0, generator, teacher, fake_first=60, fake_turns=2):
    """
    (B, T) int64, of which only the shape counts -> nats, a mean over masked tokens.

    The networks take turns: the fake `fake_first` times, then `fake_turns` times for each turn of
    the student. A fake that lags behind the student sends it nowhere. A validation is nobody's turn
    and tells the student's loss.
    """
    B, T = x0.shape
    if not student.training:
        return student_loss(student, B, T, generator, teacher)
    student.turn += 1
    if student.turn <= fake_first or student.turn % (1 + fake_turns) != 0:
        return fake_loss(student, B, T, generator)
    return student_loss(student, B, T, generator, teacher)
