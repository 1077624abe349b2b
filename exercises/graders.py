"""
The graders of the exercises: each calls the functions of one exercise with inputs that depend on a student's name.

A grader yields Probes, and nothing that it does depends on what the functions answer. Where a Probe has no `expected`,
the right number is in expected.json, which make_student.py has written. Random functions are graded by their law: how
often what happens in thousands of draws, whatever the order in which they use their generator.
"""

import os
import sys
import types
import typing

import torch
import torch.nn.functional as F

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
)  # so that it runs from anywhere
import distill
import drafters
import metrics
import model
import speculative
from extras import soft_labels
from plumbing.randomness import seeded


class Probe(typing.NamedTuple):
    what: str
    got: typing.Any  # a number or a tensor
    within: float = 1e-4  # how far from the right number each value may be; 0: equal
    expected: typing.Any = None  # None: the number in expected.json


def grades(exercise, name):
    """An exercise of exercises.json, a student's name -> its Probes, one after the other."""
    rng, noise = (seeded(name, exercise["key"], use) for use in ("inputs", "noise"))
    yield from globals()["grade_" + exercise["key"]](rng, noise)


class Network(torch.nn.Module):
    """A stand-in for GPT whose every answer is known: a place's logits depend on its token and on its neighbours.

    They are its hidden state times `sharp`. wide=False: on its own token alone.
    """

    def __init__(self, V, rng, causal=False, sharp=1.0, wide=True):
        super().__init__()
        self.config = types.SimpleNamespace(vocab_size=V, n_embd=V, causal=causal, block_size=64)
        self.mask_id, self.sharp, self.seen = None if causal else V, sharp, []
        seen = torch.tensor(
            [1.0, wide, wide and not causal]
        )  # itself, the one before it, the one after it
        self.table = torch.nn.Parameter(
            torch.randn(3, V + 1, V, generator=rng) * seen[:, None, None]
        )

    def hidden(self, idx, cache=None):
        self.seen.append(idx)
        before, after = (F.pad(idx, pad, value=0) for pad in ((1, 0), (0, 1)))
        return (
            self.table[0][idx] + self.table[1][before[:, :-1]] + self.table[2][after[:, 1:]]
        )  # (B, T, V)

    def head(self, h):
        return h * self.sharp

    def frozen_head(self):
        return lambda h: h * self.sharp

    def forward(self, idx):
        return self.head(self.hidden(idx))

    def head_loss(self, h, loss_of, *rows):
        return loss_of(self.head(h), *rows).sum()

    def nll(self, h, targets, weights):
        shapes = [tuple(x.shape) for x in (h, targets, weights)]
        if (
            shapes[1:] != [shapes[0][:1]] * 2
        ):  # (N, 1) weights would fill the memory with N x N losses
            raise ValueError(
                "model.nll takes (N, C), (N), (N); here they are {}, {}, {}".format(*shapes)
            )
        return self.head_loss(h, model.weighted_nll, targets, weights)


class Counting(Network):
    """Its logits depend on nothing but the number of tokens that it sees in a text, 0 ... V."""

    def hidden(self, idx, cache=None):
        return self.table[0][(idx != self.mask_id).sum(1)][:, None].expand(
            *idx.shape, -1
        )  # (B, T, V)


def share(x):
    return x.float().mean()


def shares(x, V):
    """(N, n) int64 in 0 ... V - 1 -> (V^n): how often each combination occurs, the first token changing fastest."""
    number = (x * V ** torch.arange(x.size(1))).sum(1)
    return torch.bincount(number, minlength=V ** x.size(1)) / len(x)


def same_again(what, f):
    """f: generator -> tensor, called twice with one seed. -> a Probe that is wrong if it used other random numbers."""
    first, second = (f(seeded("again")) for _ in range(2))
    return Probe(
        f"{what}: numbers that differ though the generator is the same",
        (first != second).sum(),
        0,
        0,
    )


def integers(low, high, shape, rng):
    return torch.randint(low, high, shape, generator=rng)


# ----------------------------------------------------------------------------------------------------------------------
# lessons 1 and 2: the model and its loss


def grade_attend(rng, noise):
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=rng)
    for attention in ("manual", "sdpa"):
        yield Probe(
            f"{attention}, every token sees every other", model.attend(q, k, v, False, attention)
        )
        yield Probe(f"{attention}, causal", model.attend(q, k, v, True, attention))
        late = model.attend(q[:, :, -2:], k, v, True, attention)
        yield Probe(f"{attention}, causal, the last 2 of 5 tokens ask (a KV cache)", late)
        mask = torch.rand(2, 1, 5, 5, generator=rng) < 0.5
        mask = mask | torch.eye(5, dtype=torch.bool)
        yield Probe(f"{attention}, with a mask", model.attend(q, k, v, True, attention, mask))


def grade_noise(rng, noise):
    u = model.stratified(8, noise, "cpu")
    yield Probe("stratified(8): its shape", u.shape, 0, (8, 1))
    yield Probe("stratified(8): how many in [0, 1)", ((u >= 0) & (u < 1)).sum(), 0, 8)
    yield Probe(
        "stratified(8): one of them in each eighth",
        (u * 8 % 8).long().sort(0).values,
        0,
        torch.arange(8),
    )
    offsets = torch.stack(
        [model.stratified(4, noise, "cpu").sort(0).values[0] for _ in range(2000)]
    )
    yield Probe(
        "stratified(4): the mean of the smallest, over 2000 calls", offsets.mean(), 0.015, 0.125
    )
    x0, t = integers(0, 5, (4, 60000), rng), torch.tensor([[0.0], [0.3], [0.8], [1.0]])
    xt = model.add_noise(x0, t, 5, noise)
    yield Probe(
        "add_noise: the share of masks at t = 0, 0.3, 0.8 and 1", (xt == 5).float().mean(1), 0.02, t
    )
    yield Probe(
        "add_noise: tokens changed that are not masked", ((xt != x0) & (xt != 5)).sum(), 0, 0
    )
    both = ((xt == 5)[:, 1:] & (xt == 5)[:, :-1]).float().mean(1)
    yield Probe("add_noise: the share of pairs masked together", both, 0.03, t**2)
    x0 = integers(0, 5, (30000, 4), rng)
    before, coins = (
        x0.clone(),
        torch.tensor([1, 4, 6, 4, 1]) / 16,
    )  # how often so many of 4 coins show heads
    masked = model.add_noise(x0, torch.full((30000, 1), 0.5), 5, noise) == 5
    alike = share(masked[1:, 0] == masked[:-1, 0])
    yield Probe(
        "add_noise at t = 0.5: how often a row's first place is as in the next row",
        alike,
        0.02,
        0.5,
    )
    counts = shares(masked.sum(1)[:, None], 5)
    yield Probe(
        "add_noise at t = 0.5: how often 0, 1, ... 4 of a row's 4 tokens", counts, 0.02, coins
    )
    yield Probe("add_noise: tokens of x0 that were overwritten", (x0 != before).sum(), 0, 0)
    yield same_again("stratified", lambda again: model.stratified(8, again, "cpu"))
    yield same_again(
        "add_noise", lambda again: model.add_noise(x0, torch.full((30000, 1), 0.5), 5, again)
    )


def grade_diffusion_loss(rng, noise):
    network, x0 = Network(3, rng), integers(0, 3, (1, 4), rng).expand(60000, 4)
    with torch.no_grad():
        yield Probe(
            "t_weight 0: a mean over 60000 texts",
            model.diffusion_loss(network, x0, noise, 0.0),
            0.03,
        )
        yield Probe("t_weight 0.5", model.diffusion_loss(network, x0, noise, 0.5), 0.04)
        yield Probe("t_weight 1, the bound", model.diffusion_loss(network, x0, noise), 0.1)
    loss = model.diffusion_loss(network, x0[:8], noise)
    yield Probe("whether the loss has a gradient", int(getattr(loss, "requires_grad", False)), 0, 1)


def grade_nelbo(rng, noise):
    counting, network = Counting(4, rng, sharp=2.0), Network(4, rng)
    x0 = integers(0, 4, (1, 4), rng).expand(40000, 4)
    with torch.no_grad():
        loss = model.nelbo(counting, x0[:, :1].expand(-1, 4), noise)
        yield Probe("a network whose guess depends on how many tokens it sees", loss, 0.002)
        loss = model.nelbo(counting, x0[:4, :1].expand(-1, 4), noise)
        yield Probe("the same network, 4 texts of 4 tokens: every number of masks once", loss)
        yield Probe("a mean over 40000 texts", model.nelbo(network, x0, noise), 0.04)
        sets = len((torch.cat(network.seen) == 4).unique(dim=0))
        yield Probe("how many sets of masks it showed, of the 15 that 4 tokens have", sets, 0, 15)
        one = model.nelbo(network, x0[:1000, :1], noise)
        yield Probe("texts of one token, where nothing is random", one)


# ----------------------------------------------------------------------------------------------------------------------
# lesson 3: sampling


def grade_draw_from(rng, noise):
    p = torch.tensor([0.02, 0.5, 0, 0.3, 0.18, 0])[torch.randperm(6, generator=rng)]
    tokens = model.draw_from(p.expand(300, 400, 6), noise)
    yield Probe("its shape", tokens.shape, 0, (300, 400))
    yield Probe("how often each token is drawn", shares(tokens.reshape(-1, 1), 6), 0.01, p)
    yield Probe("tokens drawn that have probability 0", (p[tokens] == 0).sum(), 0, 0)
    q = torch.eye(6)[torch.randperm(6, generator=rng)]
    yield Probe("rows that leave no choice", model.draw_from(q, noise), 0, q.argmax(1))
    yield same_again("draw_from", lambda again: model.draw_from(p.expand(100, 6), again))


def grade_reveal_rate(rng, noise):
    t = torch.rand(6, generator=rng, dtype=torch.float64) * 0.8 + 0.1
    s = t * torch.rand(6, generator=rng, dtype=torch.float64)
    for sampler in ("ancestral", "analytic"):
        where = f"{sampler}, t = {t[0]:.4f} ..., s = {s[0]:.4f} ..."
        yield Probe(where, model.reveal_rate(t, s, sampler), 1e-8)
        yield Probe(
            f"{sampler}, t = 0.5, s = 0", model.reveal_rate(*torch.tensor([0.5, 0]), sampler), 1e-6
        )
        yield Probe(
            f"{sampler}, t = 1, s = 0.75",
            model.reveal_rate(*torch.tensor([1, 0.75]), sampler),
            1e-6,
        )


def grade_spread_order(rng, noise):
    call = model.spread_order(torch.ones(3000, 8, dtype=torch.bool), 4, noise)  # (3000, 8)
    yield Probe(
        "8 blanks, 4 steps: the calls of the first 4",
        call[:, :4].sort(1).values.unique(dim=0),
        0,
        (1, 2, 3, 4),
    )
    yield Probe(
        "8 blanks, 4 steps: a blank and the 4th after it", share(call[:, :4] == call[:, 4:]), 0, 1
    )
    firsts = [share(call[:, i] == 1) for i in range(4)]
    yield Probe(
        "8 blanks, 4 steps: how often each of 4 is in the first call",
        torch.tensor(firsts),
        0.05,
        [0.25] * 4,
    )
    pair = share((call[:, 0] == 1) & (call[:, 2] == 2))
    yield Probe("8 blanks, 4 steps: blank 0 first and blank 2 second", pair, 0.04, 1 / 12)
    blank = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0], [0] * 7]).bool()
    call = model.spread_order(blank, 2, noise)
    yield Probe("visible tokens", call[~blank].sum(), 0, 0)
    yield Probe(
        "blanks at 1, 2, 4, 5, 6 and 2 steps: 1, 4 and 6 together",
        call[0, [4, 6]] - call[0, 1],
        0,
        (0, 0),
    )
    yield Probe(
        "blanks at 1, 2, 4, 5, 6 and 2 steps: 1 and 2", call[0, [1, 2]].sort().values, 0, (1, 2)
    )
    yield Probe("one blank and 2 steps", call[1, 4], 0, 1)
    call = model.spread_order(blank, 50, noise)
    yield Probe("5 blanks and 50 steps", call[0].sort().values, 0, (0, 0, 1, 2, 3, 4, 5))


def grade_reveal_order(rng, noise):
    blank = torch.tensor([[True, False, True]]).expand(3000, 3)

    def calls(sampler, *times):
        return model.reveal_order(blank, torch.tensor(times, dtype=torch.float64), sampler, noise)[
            :, [0, 2]
        ]

    yield Probe("one step", calls("ancestral", 1, 0), 0, torch.ones(3000, 2))
    for what, times in (
        ("2 steps", (1, 0.5, 0)),
        ("3 uneven steps", (1, 0.9, 0.1, 0)),
        ("2 uneven", (0.5, 0.4, 0)),
    ):
        call = calls("ancestral", *times)
        yield Probe(
            f"{what}, 2 blanks: how often (1,1), (2,1), (1,2), (2,2)", shares(call - 1, 2), 0.08
        )
    times = torch.linspace(1, 0, 1001, dtype=torch.float64)
    call = model.reveal_order(blank[:100], times, "ancestral", noise)
    yield Probe("1000 steps, 2 blanks: the highest number", call.max(), 0, 2)
    call = calls("first_hitting", 1, 0)
    yield Probe(
        "first_hitting: how often (1,1), (2,1), (1,2), (2,2)",
        shares(call - 1, 2),
        0.08,
        (0, 0.5, 0.5, 0),
    )
    own = torch.tensor([[1, 0.5, 0], [1, 0.9, 0]], dtype=torch.float64).repeat(
        1500, 1
    )  # each row has its own times
    call = model.reveal_order(blank, own, "ancestral", noise)
    yield Probe("visible tokens", call[:, 1].sum(), 0, 0)
    yield Probe("times by row: how often both at once", share(call[1::2, 0] == call[1::2, 2]), 0.08)
    call = model.reveal_order(
        torch.ones(9, 6).bool(), torch.tensor([1, 0.6, 0.3, 0]), "spread", noise
    )
    yield Probe(
        "spread, 6 blanks, 3 steps: a blank and the 3rd after it",
        share(call[:, :3] == call[:, 3:]),
        0,
        1,
    )


@torch.no_grad()
def grade_fill_at_random(rng, noise):
    network, start = Network(3, rng), torch.tensor([[3, 3, 1]])
    for sampler, steps in (("ancestral", 1), ("ancestral", 2), ("spread", 2)):
        xt, seen = start.repeat(20000, 1), []
        model.fill_at_random(network, xt, steps, sampler, 1.0, 1.0, noise, lambda: seen.append(1))  # noqa: B023
        what = f"{sampler}, {steps} steps"
        yield Probe(f"{what}: masks that are left", (xt == 3).sum(), 0, 0)
        yield Probe(f"{what}: the token that was given", xt[:, 2].unique(), 0, [1])
        yield Probe(f"{what}: how often watch() is called", len(seen), 0, steps)
        yield Probe(f"{what}: how often which two tokens", shares(xt[:, :2].clamp(max=2), 3), 0.03)
    xt = start.repeat(5, 1)
    model.fill_at_random(network, xt, 1, "spread", 0.0, 1.0, noise, None)
    yield Probe("temperature 0, one step", xt, 0)
    xt = start.repeat(20000, 1)
    model.fill_at_random(network, xt, 1, "spread", 0.5, 0.7, noise, None)
    yield Probe(
        "temperature 0.5, top_p 0.7: how often which two tokens",
        shares(xt[:, :2].clamp(max=2), 3),
        0.03,
    )


# ----------------------------------------------------------------------------------------------------------------------
# lesson 4: SDTT


def grade_divergence_between(rng, noise):
    log_p, log_q = torch.randn(2, 3, 5, generator=rng).log_softmax(-1)
    for divergence in ("kl_bwd", "kl_fwd", "tvd", "mse", "nla", "jsd"):
        yield Probe(divergence, distill.divergence_between(divergence, log_p, log_q))
    yield Probe(
        "jsd of equal distributions", distill.divergence_between("jsd", log_p, log_p), 1e-5, [0] * 3
    )


def grade_sdtt_targets(rng, noise):
    teacher = Network(6, rng, sharp=1e5)  # so sharp that its draws are its best tokens
    call = integers(0, 4, (5, 8), rng)
    call[4] = 0  # a row of which nothing is wanted
    xt = torch.where(call > 0, 6, integers(0, 6, (5, 8), rng))
    before = xt.clone()
    targets = distill.sdtt_targets(teacher, xt, call, noise)
    yield Probe("the shape of the targets", targets.shape, 0)
    yield Probe("the targets", targets)
    yield Probe("whether xt is as it was", share(xt == before), 0, 1)
    yield Probe("whether the targets ask for a gradient", int(targets.requires_grad), 0, 0)
    teacher, xt, call = (
        Network(3, rng),
        torch.full((20000, 2), 3),
        torch.tensor([[1, 2]]).expand(20000, 2),
    )
    second = distill.sdtt_targets(teacher, xt, call, noise)[1::2]  # (20000, C)
    yield Probe(
        "the second call's targets, a mean over 20000 draws of the first", second.mean(0), 0.05
    )


def grade_sdtt_loss(rng, noise):
    student, teacher = Network(4, rng, wide=False), Network(4, rng, wide=False)
    x0 = integers(0, 4, (16, 8), rng)
    for divergence in ("kl_bwd", "kl_fwd", "tvd"):
        for sampler, dt in (("ancestral", 1 / 16), ("spread", 1 / 4)):
            loss = distill.sdtt_loss(student, x0, noise, teacher, dt, 2, divergence, sampler)
            yield Probe(f"{divergence}, {sampler}, networks that see one token", loss)
    student, teacher, x0 = Network(4, rng), Network(4, rng), x0.repeat(500, 1)
    loss = distill.sdtt_loss(
        student, x0, noise, teacher.requires_grad_(False), 0.125, 4, sampler="spread"
    )
    yield Probe("four steps of the teacher in one: a mean over 8000 texts", loss, 0.1)
    loss.backward()
    yield Probe("its gradient by the student's table", student.table.grad, 0.05)


# ----------------------------------------------------------------------------------------------------------------------
# lessons 5 to 8: drafters, speculation, soft labels, measuring


def grade_ngram(rng, noise):
    corpus, contexts = (
        integers(0, 5, (80,), rng),
        torch.cat([integers(0, 6, (12, 2), rng), torch.tensor([[-1, 0]])]),
    )
    contexts[:4, 0], idx = -1, integers(0, 6, (2, 7), rng)
    for smoothing in ("laplace", "kneser_ney"):
        ngram = drafters.NGram(3, 6, smoothing).fit(corpus.numpy())
        yield Probe(f"log_probs, {smoothing}", ngram.log_probs(contexts.numpy()))
        yield Probe(f"of every place of a text, {smoothing}", ngram(idx))
    changed = torch.cat([idx[:, :4], (idx[:, 4:] + 1) % 6], 1)
    yield Probe(
        "a later token changes an earlier prediction",
        (ngram(idx) - ngram(changed))[:, :4].abs().max(),
        0,
        0,
    )


KD_SETTINGS = ("divergence", "temp", "kd_weight", "ce_weight")


def grade_kd_loss(rng, noise):
    target, drafter, batch = (
        Network(5, rng, True),
        Network(5, rng, True),
        integers(0, 5, (3, 9), rng),
    )
    for settings in (
        ("kl_fwd",),
        ("tvd", 1.0),
        ("kl_fwd", 2.0),
        ("mse", 2.0),
        ("kl_bwd", 1.0, 0.7, 0.3),
    ):
        said = ", ".join(f"{k} {v}" for k, v in zip(KD_SETTINGS, settings, strict=False))
        yield Probe(said, distill.kd_loss(drafter, batch, noise, target, *settings))
    distill.kd_loss(drafter, batch, noise, target).backward()
    yield Probe("the gradient by the drafter's table", drafter.table.grad)
    yield Probe("whether the target gets a gradient", int(target.table.grad is not None), 0, 0)


def grade_verify(rng, noise):
    far = torch.tensor([[0.5, 0.3, 0.2, 0, 0], [0, 0.3, 0.2, 0.2, 0.3]])[
        :, None, torch.randperm(5, generator=rng)
    ]
    p, q = 0.7 * far + 0.3 * torch.randn(2, 3, 5, generator=rng).softmax(-1)
    yield Probe("residual", speculative.residual(p, q))
    yield Probe("residual of equal distributions", speculative.residual(p, p), 1e-6, p)
    B, V = 20000, 5
    drafts = torch.multinomial(q[:2], B, replacement=True, generator=rng).T  # (B, 2)
    n, token = speculative.verify(drafts, p.expand(B, 3, V), q[:2].expand(B, 2, V), noise)
    yield Probe("how often 0, 1 and 2 drafts are accepted", shares(n[:, None], 3), 0.03)
    x = torch.cat([drafts, token[:, None]], 1).scatter(
        1, n[:, None], token[:, None]
    )  # what is written
    for place, what in enumerate(
        ("the first token", "the second, if one draft is accepted", "the third, if both are")
    ):
        got = shares(x[n >= place][:, place : place + 1], V)
        yield Probe(f"the law of {what}, which must be the target's", got, 0.05, p[place])
    n, token = speculative.verify(drafts[:, :0], p[:1].expand(B, 1, V), None, noise)
    yield Probe("no drafts: how many are accepted", n.sum(), 0, 0)
    yield Probe("no drafts: the law of the token", shares(token[:, None], V), 0.03, p[0])


def grade_speed(rng, noise):
    tested = torch.tensor([100, 0, 0, 0])
    accepted = tested.clone()
    for j in range(4):  # as many as were accepted at one place are tested at the next
        tested[j] = tested[0] if j == 0 else accepted[j - 1]
        accepted[j] = (tested[j] * torch.empty(()).uniform_(0.6, 0.9, generator=rng)).long()
    counts = types.SimpleNamespace(tested=tested, accepted=accepted)
    yield Probe(
        f"acceptance, {accepted.tolist()} of {tested.tolist()}", speculative.acceptance(counts)
    )
    yield Probe(
        f"tokens_per_call, {accepted.tolist()} of {tested.tolist()}",
        speculative.tokens_per_call(counts),
    )
    yield Probe("the same, of drafts of 2 tokens", speculative.tokens_per_call(counts, 2))
    for alpha, c, gamma, call in ((0.5, 0.1, 1, 1.0), (0.8, 0.05, 4, 1.5), (1, 0.1, 3, 1.0)):
        said = f"predicted_speedup({alpha}, {c}, {gamma}, {call})"
        yield Probe(said, speculative.predicted_speedup(alpha, c, gamma, call))


def grade_soft_cross_entropy(rng, noise):
    logits = torch.randn(3, 7, generator=rng).requires_grad_()
    logp, ids = torch.randn(3, 7, generator=rng).log_softmax(-1).topk(3)
    logp[2, 2] = -torch.inf
    for missing in ("none", "renorm", "tail"):
        loss = soft_labels.soft_cross_entropy(logits, ids, logp, missing)
        yield Probe(f"missing={missing}", loss)
        yield Probe(
            f"missing={missing}: the gradient by the logits",
            torch.autograd.grad(loss.sum(), logits)[0],
        )


def grade_entropies(rng, noise):
    x = integers(0, 4, (3, 12), rng)
    yield Probe("entropies of three texts", metrics.entropies(x))
    yield Probe(
        "entropies, in nats, of one token twelve times and of twelve tokens",
        metrics.entropies(torch.stack([torch.zeros(12).long(), torch.arange(12)])),
        1e-5,
        (0, 2.484907),
    )
    yield Probe("repeated, n = 2", metrics.repeated(x, 2))
    yield Probe("repeated, n = 4", metrics.repeated(x.repeat(1, 2)))
