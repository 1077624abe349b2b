"""
The graders of the exercises: each calls the functions of one exercise with inputs that depend on a
student's name.

A grader yields Probes, the plain case first, and nothing that it does depends on what the functions
answer. Where a Probe has no `expected`, the right numbers are in expected.json, which
make_student.py has written. Random functions are graded by their distribution: how often what
happens in thousands of draws, whatever the order in which they use their generator.
"""

import os
import sys
import types
import typing

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import distill
import drafters
import metrics
import model
import speculative
from configurator import UserError
from extras import soft_labels
from plumbing.randomness import seeded


class Probe(typing.NamedTuple):
    what: str
    got: typing.Any  # a number or a tensor
    within: float = 1e-4  # how far from the right number each value may be; 0: equal
    expected: typing.Any = None  # None: the numbers in expected.json


def grades(exercise, name):
    """An exercise of exercises.json, a student's name -> its Probes, one after the other."""
    rng = seeded(name, exercise["key"], "inputs")
    noise = seeded(name, exercise["key"], "noise")
    yield from globals()["grade_" + exercise["key"]](rng, noise)


# --------------------------------------------------------------------------------------------------
# networks whose every answer is known


class Network(torch.nn.Module):
    """
    A stand-in for GPT: a position's hidden state depends on its token and on its neighbors. It has
    a head of its own, and V + 3 channels.

    wide=False: on its own token alone. sharp: a factor of its logits.
    """

    def __init__(self, V, rng, causal=False, sharp=1.0, wide=True):
        super().__init__()
        C = V + 3
        self.config = types.SimpleNamespace(
            vocab_size=V, n_embd=C, n_layer=1, n_head=1, causal=causal, block_size=64, arch="gpt"
        )
        self.mask_id = None if causal else V
        self.seen = []  # every batch that it was shown
        self.modes = set()  # train (True) or eval (False), whenever it was called
        self.wte = torch.nn.Embedding(V + 1, C)
        self.wte.weight.data = torch.randn(V + 1, C, generator=rng)
        self.before = torch.nn.Parameter(wide * torch.randn(V + 1, C, generator=rng))
        self.after = torch.nn.Parameter(
            (wide and not causal) * torch.randn(V + 1, C, generator=rng)
        )
        self.W = torch.nn.Parameter(sharp * torch.randn(V, C, generator=rng) / C**0.5)

    def hidden(self, idx, cache=None):
        self.modes.add(self.training)
        n_new = idx.size(1)
        if cache is not None:  # its "keys" are the tokens themselves
            k = idx[:, None, :, None].expand(-1, 1, -1, self.config.n_embd)
            k, _ = cache.append(0, k.float(), k.float())
            idx = k[:, 0, :, 0].long()  # all tokens so far
            cache.length = idx.size(1)
        self.seen.append(idx)
        left = F.pad(idx, (1, 0))[:, :-1]
        right = F.pad(idx, (0, 1))[:, 1:]
        h = self.wte(idx) + self.before[left] + self.after[right]  # (B, T, C)
        return h[:, idx.size(1) - n_new :]

    def head(self, h):
        return h @ self.W.T

    def forward(self, idx):
        return self.head(self.hidden(idx))


class Counting(Network):
    """Its predictions depend on nothing except how many tokens of a text it sees, 0 ... V."""

    def hidden(self, idx, cache=None):
        n_seen = (idx != self.mask_id).sum(1)  # (B)
        return self.wte(n_seen)[:, None].expand(*idx.shape, -1)  # (B, T, C)


class RandomNumbers(TorchDispatchMode):
    """
    Looks at the random numbers that are drawn within it, and at cumulative sums. n_narrow: how many
    tensors of them have fewer bits than float64. u: what uniform numbers are instead, where they
    are `rows` many.
    """

    NARROW = (torch.float32, torch.float16, torch.bfloat16)
    OPERATIONS = ("rand", "rand_like", "uniform_", "exponential_", "multinomial", "cumsum")

    def __init__(self, rows=0, u=None):
        super().__init__()
        self.rows = rows
        self.u = u
        self.n_narrow = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        name = f._schema.name.removeprefix("aten::")
        if name in self.OPERATIONS:
            of = args[0] if name == "multinomial" else out
            self.n_narrow += of.dtype in self.NARROW
        if name in ("rand", "rand_like", "uniform_") and out.numel() == self.rows:
            out.fill_(self.u)
        return out


# --------------------------------------------------------------------------------------------------
# what is counted


def mean(x):
    return x.float().mean()


def frequencies(x, V):
    """
    (N, n) int64 in 0 ... V - 1 -> (V^n): how often each combination occurs, the first token
    changing fastest.
    """
    number = (x * V ** torch.arange(x.size(1))).sum(1)
    return torch.bincount(number, minlength=V ** x.size(1)) / len(x)


def differs(what, f):
    """f: generator -> tensor, called twice with one seed -> a Probe of how many numbers differ."""
    first = f(seeded("again"))
    second = f(seeded("again"))
    what = f"{what}, twice with the same generator: numbers that differ"
    return Probe(what, (first != second).sum(), 0, 0)


def raises_user_error(f):
    try:
        f()
    except UserError:
        return 1
    return 0


def gradients(loss, *tensors):
    """-> the gradient of a loss by each of the tensors; zeros where it does not depend on one."""
    if not getattr(loss, "requires_grad", False):
        return [torch.zeros_like(tensor) for tensor in tensors]
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad(loss, tensors, **options)


def modes(learner, teacher):
    """-> a Probe of whether a learner stayed in train mode and its teacher in eval mode."""
    learner.modes.add(learner.training)
    teacher.modes.add(teacher.training)
    what = "whether the network that learns stays in train mode, and its teacher in eval mode"
    return Probe(what, [learner.modes == {True}, teacher.modes == {False}], 0, [1, 1])


def integers(low, high, shape, rng):
    return torch.randint(low, high, shape, generator=rng)


# --------------------------------------------------------------------------------------------------
# lessons 1 and 2: the model and its loss


def grade_attend(rng, noise):
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=rng)
    yield Probe("not causal", model.attend(q, k, v, False))
    yield Probe("causal", model.attend(q, k, v, True))
    last = q[:, :, -2:]
    yield Probe("causal, 2 queries after 3 cached keys", model.attend(last, k, v, True))
    yield Probe("not causal, 2 queries and 5 keys", model.attend(last, k, v, False))
    yield Probe("causal, scores of some hundreds", model.attend(300 * q, k, v, True), 1e-3)
    inputs = [x.requires_grad_() for x in (q.clone(), k.clone(), v.clone())]
    loss = (model.attend(*inputs, True) * torch.randn(q.shape, generator=rng)).sum()
    for of, gradient in zip("qkv", gradients(loss, *inputs), strict=True):
        yield Probe(f"causal: the gradient by {of} of a weighted sum", gradient)


def grade_diffusion_loss(rng, noise):
    u = model.stratified(8, noise, "cpu")
    yield Probe("stratified(8): its shape", u.shape, 0, (8, 1))
    apart = u.diff(dim=0) % 1
    yield Probe("stratified(8): row i + 1 less row i, modulo 1", apart, 1e-5, [[1 / 8]] * 7)
    yield Probe("stratified(8): how many are in [0, 1)", ((u >= 0) & (u < 1)).sum(), 0, 8)
    first = torch.stack([model.stratified(4, noise, "cpu")[0] for _ in range(3000)])
    yield Probe("stratified(4): the mean of row 0, over 3000 draws", first.mean(), 0.03, 0.5)
    yield differs("stratified(8)", lambda again: model.stratified(8, again, "cpu"))

    network = Network(5, rng)
    x0 = integers(0, 5, (3, 6), rng)
    masked = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 1], [0] * 6]).bool()
    ones = torch.ones(3, 1)
    yield Probe("masked_nll, weight 1", model.masked_nll(network, x0, masked, ones))
    weight = 1 + torch.rand(3, 1, generator=rng)
    loss = model.masked_nll(network, x0, masked, weight)
    yield Probe("masked_nll, a weight for each row", loss)
    for of, weights in (("head", network.W), ("embeddings", network.wte.weight)):
        yield Probe(f"masked_nll: its gradient by the network's {of}", *gradients(loss, weights))
    nothing = model.masked_nll(network, x0, masked & False, ones)
    yield Probe("masked_nll, nothing is masked", nothing, 1e-6, 0)

    network = Network(3, rng)
    x0 = integers(0, 3, (1, 4), rng).expand(60000, 4).clone()
    before = x0.clone()
    with torch.no_grad():
        loss = model.diffusion_loss(network, x0, noise)
        yield Probe("diffusion_loss, the mean over 60000 texts", loss, 0.06)
        sets = len((torch.cat(network.seen) == 3).unique(dim=0))
        yield Probe("how many of the 16 sets of masks of 4 tokens it showed", sets, 0, 16)
        loss = model.diffusion_loss(network, x0, noise, eps=0.5)
        yield Probe("diffusion_loss, eps = 0.5", loss, 0.03)
        loss = model.diffusion_loss(network, x0, noise, t_weight=0.5)
        yield Probe("diffusion_loss, t_weight = 0.5", loss, 0.04)
        loss = model.diffusion_loss(network, x0, noise, t_weight=0.0)
        yield Probe("diffusion_loss, t_weight = 0", loss, 0.04)
        yield Probe("tokens of x0 that were overwritten", (x0 != before).sum(), 0, 0)
        network.seen.clear()
        model.diffusion_loss(network, integers(0, 3, (8, 4000), rng), noise)
        fraction = mean_in_row(network.seen[-1] == 3).sort().values
        what = "8 texts: the fractions that are masked, sorted, each less the one before"
        yield Probe(what, fraction.diff(), 0.06, [1 / 8] * 7)
    loss = model.diffusion_loss(network, x0[:8], noise)
    gradient = gradients(loss, network.wte.weight)[0]
    what = "diffusion_loss: whether the network's embeddings get a gradient"
    yield Probe(what, gradient.any(), 0, 1)
    yield differs(
        "diffusion_loss", lambda again: model.diffusion_loss(network, x0[:8], again).detach()
    )


def mean_in_row(x):
    return x.float().mean(1)


def grade_nelbo(rng, noise):
    network = Network(4, rng)
    x0 = integers(0, 4, (1, 4), rng).expand(40000, 4)
    yield Probe("the mean over 40000 texts", model.nelbo(network, x0, noise), 0.04)
    sets = len((torch.cat(network.seen) == 4).unique(dim=0))
    yield Probe("how many of the 15 sets of masks of 4 tokens it showed", sets, 0, 15)
    network.seen.clear()
    for _ in range(500):
        model.nelbo(network, x0[:1], noise)
    sets = len((torch.cat(network.seen) == 4).unique(dim=0))
    yield Probe("how many of the 15 it showed of 500 texts, one in each batch", sets, 0, 15)
    counting = Counting(4, rng, sharp=2.0)
    same = x0[:, :1].expand(-1, 4)  # one token, four times
    loss = model.nelbo(counting, same[:4], noise)
    what = "4 texts of 4 tokens, so every number of masks once: the loss depends on it alone"
    yield Probe(what, loss)
    yield Probe("the same of 40000 texts", model.nelbo(counting, same, noise), 0.002)
    yield Probe("texts of one token", model.nelbo(network, x0[:1000, :1], noise))
    yield differs("nelbo", lambda again: model.nelbo(network, x0[:9], again))


# --------------------------------------------------------------------------------------------------
# lesson 3: sampling


def impossible(p, tokens):
    """(N, V), (N,) -> how many tokens are out of range, or have probability 0."""
    inside = (tokens >= 0) & (tokens < p.size(1))
    p = p.gather(1, tokens.clamp(0, p.size(1) - 1)[:, None])[:, 0]
    return (~inside | (p == 0)).sum()


def grade_draw(rng, noise):
    p = torch.tensor([0.02, 0.5, 0.3, 0.18])[torch.randperm(4, generator=rng)]
    p = torch.cat([torch.zeros(1), p, torch.zeros(1)])  # (6)
    certain = torch.eye(6)[torch.randperm(6, generator=rng)]
    yield Probe("rows that leave no choice", model.draw(certain, noise), 0, certain.argmax(1))
    tokens = model.draw(p.expand(300, 400, 6), noise)
    yield Probe("the shape of (300, 400, 6) probabilities' tokens", tokens.shape, 0, (300, 400))
    yield Probe("how often each token is drawn", frequencies(tokens.reshape(-1, 1), 6), 0.01, p)
    both = (tokens[0::2] == tokens[1::2]).float().mean()
    yield Probe("how often two rows have the same token", both, 0.02, (p * p).sum())
    tokens = model.draw(0.3 * p.expand(50000, 6), noise)
    yield Probe("how often each is drawn from 0.3 p", frequencies(tokens[:, None], 6), 0.015, p)
    yield differs("draw", lambda again: model.draw(p.expand(100, 6), again))
    with RandomNumbers() as random:
        model.draw(p.expand(7, 6), noise)
    what = "random numbers or cumulative sums of fewer bits than float64, which cut off the tail"
    yield Probe(what, random.n_narrow, 0, 0)
    for said, u in (("u = 0", 0.0), ("u = 1 - 2^-53, the largest", 1 - 2.0**-53)):
        rows = torch.stack([p, p / 3, p.flip(0) * 1.0000001, certain[0]])
        with RandomNumbers(rows=4, u=u):
            tokens = model.draw(rows, noise)
        what = f"{said}: tokens that have probability 0, or are out of range"
        yield Probe(what, impossible(rows, tokens), 0, 0)


def grade_unmask_steps(rng, noise):
    u = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.2, 0.95, 0.7, 0.4]])
    step_of = model.ancestral_steps(u, 1, 0.25, 4)
    yield Probe(
        "ancestral_steps(u, t=1, dt=1/4, n_steps=4)", step_of, 0, [[1, 2, 3, 4], [4, 1, 2, 3]]
    )
    yield Probe("ancestral_steps: whether it is int64", int(step_of.dtype == torch.int64), 0, 1)
    ends = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    what = "ancestral_steps of u = 0, 1/4, 1/2, 3/4: a step from t takes u >= t - dt"
    yield Probe(what, model.ancestral_steps(ends, 1, 0.25, 4), 0, [[4, 3, 2, 1]])
    t = torch.tensor([[0.5], [0.25]])
    step_of = model.ancestral_steps(u[:1].expand(2, 4), t, 0.125, 2)
    what = "ancestral_steps, t = 1/2 and 1/4, dt = 1/8, n_steps = 2, u = 0.9 0.6 0.3 0.1"
    yield Probe(what, step_of, 0, [[0, 0, 2, 2], [0, 0, 0, 2]])
    what = "ancestral_steps of u = t, which is not masked"
    yield Probe(what, model.ancestral_steps(t, t, 0.125, 2), 0, [[0], [0]])
    u = torch.rand(6, 5, generator=rng)
    t = torch.rand(6, 1, generator=rng)
    yield Probe("ancestral_steps of random times", model.ancestral_steps(u, t, 0.1, 3), 0)

    yield from grade_spread(noise)
    masked = torch.tensor([[True, False, True]]).expand(12000, 3)
    for sampler, n_steps in (("ancestral", 2), ("ancestral", 3), ("analytic", 2)):
        step_of = model.unmask_steps(masked, n_steps, sampler, noise)
        what = f"{sampler}, {n_steps} steps"
        yield Probe(f"{what}: the steps of what is not masked", step_of[:, 1].sum(), 0, 0)
        pairs = frequencies(step_of[:, [0, 2]] - 1, n_steps)
        all_alike = torch.full((n_steps**2,), 1 / n_steps**2)
        yield Probe(f"{what}, 2 masks: how often which two steps", pairs, 0.03, all_alike)
    step_of = model.unmask_steps(masked, 7, "first_hitting", noise)
    pairs = frequencies(step_of[:, [0, 2]] - 1, 2)
    what = "first_hitting, 2 masks: how often (1,1), (2,1), (1,2), (2,2)"
    yield Probe(what, pairs, 0.03, [0, 0.5, 0.5, 0])
    five = torch.tensor([[True, True, False, True, True, True]])
    step_of = model.unmask_steps(five, 2, "first_hitting", noise)[0].sort().values
    what = "first_hitting, 5 masks, n_steps = 2, which it does not use: its steps, sorted"
    yield Probe(what, step_of, 0, [0, 1, 2, 3, 4, 5])
    for other in ("sorted", "confidence"):
        raises = raises_user_error(lambda other=other: model.unmask_steps(five, 2, other, noise))
        yield Probe(f"sampler '{other}': whether it raises UserError", raises, 0, 1)
    for sampler in ("spread", "ancestral", "first_hitting"):
        step_of = model.unmask_steps(masked & False, 4, sampler, noise)
        yield Probe(f"{sampler}, nothing is masked", step_of.abs().sum(), 0, 0)
        again = [masked[:50], 5, sampler]
        yield differs(sampler, lambda g, again=again: model.unmask_steps(*again, g))


def grade_spread(noise):
    step_of = model.unmask_steps(torch.ones(4000, 8).bool(), 4, "spread", noise)  # (4000, 8)
    what = "spread, 8 masks, 4 steps"
    blocks = (step_of[:, :4].sort(1).values != torch.arange(1, 5)).any(1).sum()
    yield Probe(f"{what}, dealt in turn: rows whose first 4 lack one of the 4 steps", blocks, 0, 0)
    together = mean(step_of[:, :4] == step_of[:, 4:])
    yield Probe(f"{what}: how often a mask has the step of the 4th after it", together, 0, 1)
    first = (step_of[:, :4] == 1).float().mean(0)
    yield Probe(f"{what}: how often each of 4 is in step 1", first, 0.05, [0.25] * 4)
    two = mean((step_of[:, 0] == 1) & (step_of[:, 2] == 2))
    yield Probe(f"{what}: how often mask 0 is first and mask 2 second", two, 0.04, 1 / 12)
    rows = mean(step_of[:-1, 0] == step_of[1:, 0])
    yield Probe(f"{what}: how often two rows begin alike", rows, 0.05, 0.25)

    masked = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0], [0] * 7]).bool()
    step_of = model.unmask_steps(masked, 2, "spread", noise)
    what = "spread, masks at 1, 2, 4, 5, 6, 2 steps"
    yield Probe("spread: the steps of what is not masked", step_of[~masked].abs().sum(), 0, 0)
    same = step_of[0, [4, 6]] - step_of[0, 1]
    yield Probe(f"{what}: the steps of 4 and 6 less that of 1", same, 0, [0, 0])
    yield Probe(
        f"{what}: the steps of 1 and 2, sorted", step_of[0, [1, 2]].sort().values, 0, [1, 2]
    )
    step_of = model.unmask_steps(masked, 50, "spread", noise)[0]
    yield Probe("spread, 5 masks, 50 steps: different ones", len(step_of.unique()), 0, 6)


@torch.no_grad()
def grade_unmask(rng, noise):
    step_of = torch.tensor([[0, 7, 3, 7, 0], [5, 5, 5, 5, 5], [0] * 5, [40, 1, 2, 0, 40]])
    closed = [[0, 2, 1, 2, 0], [1] * 5, [0] * 5, [3, 1, 2, 0, 3]]
    yield Probe(f"close_gaps({step_of.tolist()})", model.close_gaps(step_of), 0, closed)
    step_of = integers(0, 30, (6, 12), rng)
    yield Probe("close_gaps of random steps", model.close_gaps(step_of), 0)

    network = Network(5, rng)
    xt = integers(0, 6, (6, 9), rng)
    before = xt.clone()
    got = model.unmask(network, xt, 1, temperature=0.0, generator=noise)
    yield Probe("one step, temperature 0", got, 0)
    yield Probe("tokens of xt that were overwritten", (xt != before).sum(), 0, 0)
    nothing = model.unmask(network, got, 3, generator=noise)
    yield Probe("tokens that change where nothing is masked", (nothing != got).sum(), 0, 0)

    network = Network(3, rng)
    xt = torch.tensor([[3, 3, 1]]).repeat(20000, 1)
    for sampler, n_steps in (("spread", 1), ("spread", 2), ("ancestral", 2), ("first_hitting", 2)):
        left = []
        watch = lambda xt, left=left: left.append((xt == 3).sum())  # noqa: E731
        got = model.unmask(network, xt, n_steps, sampler, generator=noise, watch=watch)
        what = f"{sampler}, {n_steps} steps"
        yield Probe(f"{what}: masks that are left", (got == 3).sum(), 0, 0)
        yield Probe(f"{what}: the token that was known", got[:, 2].unique(), 0, [1])
        yield Probe(f"{what}: how often watch is called", len(left), 0, n_steps)
        if sampler == "spread":
            what_left = [20000 * (n_steps - i) for i in range(1, n_steps + 1)]
            yield Probe(f"{what}: masks that watch sees", torch.stack(left), 0, what_left)
        pairs = frequencies(got[:, :2].clamp(max=2), 3)
        together = {("spread", 1): 1.0, ("ancestral", 2): 0.5}.get((sampler, n_steps), 0.0)
        right = pairs_of(network, xt[0], together)
        yield Probe(f"{what}: how often which two tokens", pairs, 0.03, right)
    got = model.unmask(network, xt, 1, temperature=1.8, top_p=0.6, generator=noise)
    pairs = frequencies(got[:, :2].clamp(max=2), 3)
    right = pairs_of(network, xt[0], 1.0, (1.8, 1.8), top_p=0.6)
    yield Probe("temperature 1.8, top_p 0.6: how often which two tokens", pairs, 0.03, right)
    got = model.unmask(network, xt, 2, temperature=1.8, cooling=0.2, generator=noise)
    pairs = frequencies(got[:, :2].clamp(max=2), 3)
    right = pairs_of(network, xt[0], 0.0, (1.8, 0.36))
    what = "temperature 1.8, cooling 0.2, 2 steps: how often which two tokens"
    yield Probe(what, pairs, 0.03, right)
    alone = Network(3, rng, sharp=3.0, wide=False)  # what is masked has one prediction
    masks = torch.full((40000, 3), 3)
    masks[:20000, 1:] = 0
    got = model.unmask(alone, masks, 30, temperature=1.8, cooling=0.2, generator=noise)
    got = got.clamp(max=2)
    logits = alone(masks[:1, :1])[0, 0]
    by_step = [model.probabilities(logits, temperature) for temperature in (1.8, 1.08, 0.36)]
    what = "temperature 1.8, cooling 0.2, 30 steps, rows of 1 and of 3 masks"
    found = frequencies(got[20000:].reshape(-1, 1), 3)
    what_3 = f"{what}: how often each token of 3 masks, of temperatures 1.8, 1.08, 0.36"
    yield Probe(what_3, found, 0.01, sum(by_step) / 3)
    found = frequencies(got[:20000, :1], 3)
    yield Probe(f"{what}: how often each token of 1 mask, of the first", found, 0.02, by_step[0])
    calls = []
    model.unmask(network, xt[:50], 1000, generator=noise, watch=calls.append)
    yield Probe("2 masks, 1000 steps: how often watch is called", len(calls), 0, 2)
    again = [network, xt[:50], 2, "ancestral"]
    yield differs("unmask", lambda g: model.unmask(*again, generator=g))


def pairs_of(network, xt, together, temperatures=(1.0, 1.0), top_p=1.0):
    """
    -> (9): the probabilities of what is drawn for tokens 0 and 1 of xt, both masked. together: how
    often one step draws both of them; else two steps do, either of them first.
    """
    first = model.probabilities(network(xt[None])[0], temperatures[0], top_p=top_p)  # (T, V)
    pairs = together * torch.outer(first[1], first[0])  # of token 1, of token 0
    for token in range(3):
        for i, column in ((0, pairs[:, token]), (1, pairs[token])):
            seen = xt.clone()
            seen[i] = token
            then = model.probabilities(network(seen[None])[0], temperatures[1], top_p=top_p)
            column += (1 - together) / 2 * first[i, token] * then[1 - i]
    return pairs.flatten()


def grade_entropies(rng, noise):
    x = integers(0, 4, (3, 12), rng)
    yield Probe("entropies of three texts", metrics.entropies(x))
    ends = torch.stack([torch.zeros(12).long(), torch.arange(12)])
    what = "entropies, in nats, of one token 12 times and of 12 different ones"
    yield Probe(what, metrics.entropies(ends), 1e-5, [0, 2.484907])
    yield Probe("repeated, n = 2", metrics.repeated(x, 2))
    yield Probe("repeated, n = 4", metrics.repeated(x.repeat(1, 2)))
    yield Probe("repeated, n = 1, of texts that share tokens", metrics.repeated(ends, 1))


# --------------------------------------------------------------------------------------------------
# lesson 4: SDTT


def grade_divergence_between(rng, noise):
    log_p, log_q = torch.randn(2, 3, 5, generator=rng).log_softmax(-1)
    names = ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd", "nla")
    for name in names:
        yield Probe(name, distill.divergence_between(log_p, log_q, name))
    for name in names:
        equal = distill.divergence_between(log_p, log_p, name)
        yield Probe(f"{name} of equal distributions", equal, 1e-5, [0] * 3)
    logits = torch.randn(3, 5, generator=rng).requires_grad_()
    for name in names:
        loss = distill.divergence_between(logits.log_softmax(-1), log_q, name).sum()
        yield Probe(f"{name}: its gradient by the student's logits", *gradients(loss, logits))
    unknown = raises_user_error(lambda: distill.divergence_between(log_p, log_q, "kl"))
    yield Probe("divergence 'kl', which there is not: whether it raises UserError", unknown, 0, 1)
    log_p, log_q = torch.tensor([[150.0, 0, 0], [0, 0, 150]]).log_softmax(-1)
    for name in ("kl_bwd", "kl_fwd", "tvd", "jsd", "nla"):
        far = distill.divergence_between(log_p, log_q, name)
        yield Probe(f"{name} of distributions that hardly overlap", far, 1e-3)


def grade_sdtt_state(rng, noise):
    yield from grade_ancestral_state(rng, noise)
    x0 = integers(0, 5, (8, 16), rng)
    xt, step_of = distill.spread_state(x0, 1 / 8, 2, 5, noise)  # K = 4
    what = "spread_state, 16 tokens, dt = 1/8, k = 2, so K = 4 steps of the student"
    yield Probe(f"{what}: its two shapes", [*xt.shape, *step_of.shape], 0, [8, 16, 8, 16])
    yield Probe(f"{what}: supervised positions a row", (step_of > 0).sum(1), 0, [4] * 8)
    ones = torch.stack([(step_of == 1).sum(1), (step_of == 2).sum(1)])
    yield Probe(f"{what}: positions of step 1 and of step 2", ones, 0, [[2] * 8, [2] * 8])
    shown = (xt != 5).sum(1).sort().values
    yield Probe(f"{what}: tokens that 8 rows show, sorted", shown, 0, [0, 0, 4, 4, 8, 8, 12, 12])
    wrong = ((xt != x0) & (xt != 5)).sum() + ((step_of > 0) & (xt != 5)).sum()
    yield Probe(f"{what}: tokens changed, or supervised though shown", wrong, 0, 0)

    x0 = torch.zeros(6000, 16).long()
    xt, step_of = distill.spread_state(x0, 1 / 8, 2, 1, noise)
    shown = xt == 0
    same = mean(shown[:, :12] == shown[:, 4:])
    yield Probe(f"{what}: how often position i is shown as i + 4 is", same, 0, 1)
    other = mean((step_of[:, 0] != step_of[:, 4]) == (step_of[:, 0] > 0))
    yield Probe(f"{what}: how often positions 0 and 4 have different steps", other, 0, 1)
    of_0 = frequencies(step_of[:, :1], 3)
    yield Probe(f"{what}: how often position 0 has step 0, 1, 2", of_0, 0.03, [0.75, 0.125, 0.125])
    pairs = frequencies(shown[:, :2].long(), 2)
    what_pairs = f"{what}: how often of positions 0 and 1 none, 0, 1 and both are shown"
    yield Probe(what_pairs, pairs, 0.03, [5 / 12, 5 / 24, 5 / 24, 1 / 6])
    supervised = mean((step_of[:, :4] > 0).any(1))
    yield Probe(f"{what}: how often one of the first 4 is supervised", supervised, 0, 1)
    step_of = distill.spread_state(x0, 1 / 12, 3, 1, noise)[1]
    first = frequencies(step_of[step_of[:, 0] > 0][:, [0, 4, 8]] - 1, 3)
    order = [sorted((i, j, k)) == [0, 1, 2] for k in range(3) for j in range(3) for i in range(3)]
    what = "spread_state, dt = 1/12, k = 3: how often which steps of positions 0, 4, 8"
    yield Probe(what, first, 0.05, torch.tensor(order) / 6)
    ones = torch.zeros(20, 210).long()
    step_of = distill.spread_state(ones, 1 / 105, 5, 1, noise)[1]
    what = "spread_state, 210 tokens, dt = 1/105, k = 5, so K = 21: supervised positions a row"
    yield Probe(what, (step_of > 0).sum(1), 0, [10] * 20)
    for state in (distill.ancestral_state, distill.spread_state):
        again = [x0[:50], 1 / 8, 2, 1]
        yield differs(
            state.__name__,
            lambda g, state=state, again=again: torch.cat(state(*again, g)),
        )


def grade_ancestral_state(rng, noise):
    x0 = integers(0, 5, (8, 4000), rng)
    before = x0.clone()
    dt = 1 / 8
    xt, step_of = distill.ancestral_state(x0, dt, 2, 5, noise)
    what = "ancestral_state, dt = 1/8, k = 2"
    yield Probe(f"{what}: its two shapes", [*xt.shape, *step_of.shape], 0, [8, 4000, 8, 4000])
    wrong = (xt != x0.masked_fill(step_of > 0, 5)).sum()
    yield Probe(f"{what}: tokens that are neither shown (0) nor masked (1, 2)", wrong, 0, 0)
    yield Probe(f"{what}: tokens of x0 that were overwritten", (x0 != before).sum(), 0, 0)
    fraction = mean_in_row(xt == 5).sort().values
    what_rows = f"{what}: the fractions that 8 rows mask, sorted, each less the one before"
    yield Probe(what_rows, fraction.diff(), 0.06, [1 / 8] * 7)
    x0 = x0[:1, :2].expand(20000, 2)
    xt, step_of = distill.ancestral_state(x0, dt, 2, 5, noise)
    first = dt - dt**2 / 2
    of_0 = frequencies(step_of[:, :1], 3)
    yield Probe(f"{what}: how often step 0, 1, 2", of_0, 0.02, [0.5, first, 0.5 - first])
    both = mean((xt == 5).all(1))
    yield Probe(f"{what}: how often two tokens are both masked", both, 0.02, 1 / 3)
    step_of = distill.ancestral_state(x0, 1 / 16, 4, 5, noise)[1]
    of_0 = frequencies(step_of[:, :1], 5)
    what = "ancestral_state, dt = 1/16, k = 4: how often step 0 ... 4"
    early = [1 / 16 - (j + 0.5) / 256 for j in range(3)]
    yield Probe(what, of_0, 0.02, [0.5, *early, 0.5 - sum(early)])


def grade_sdtt_targets(rng, noise):
    teacher = Network(6, rng, sharp=1e5)  # so sharp that its draws are its best tokens
    step_of = integers(0, 4, (6, 8), rng)
    step_of[4] = 0  # a row of which nothing is supervised
    step_of[5] = torch.tensor([0, 3, 3, 0, 0, 3, 0, 0])  # one that only step 3 unmasks
    xt = torch.where(step_of > 0, 6, integers(0, 6, (6, 8), rng))
    before = xt.clone()
    one = distill.sdtt_targets(teacher, xt, (step_of > 0).long(), 1, noise)
    yield Probe("k = 1", one)
    targets = distill.sdtt_targets(teacher, xt, step_of, 3, noise)
    yield Probe("k = 3, of a teacher that is certain of each token", targets)
    yield Probe("tokens of xt that were overwritten", (xt != before).sum(), 0, 0)
    gradient = int(targets.requires_grad)
    yield Probe("whether the targets ask for a gradient", gradient, 0, 0)
    zeros = distill.sdtt_targets(teacher, xt, step_of * 0, 3, noise)
    what = "step_of all 0: the targets"
    yield Probe(what, zeros, 0, torch.zeros(6, 8, teacher.config.n_embd))

    teacher = Network(3, rng)
    xt = torch.full((20000, 3), 3)
    step_of = torch.tensor([[1, 2, 3]]).expand(20000, 3)
    targets = distill.sdtt_targets(teacher, xt, step_of, 3, noise)  # (20000, 3, C)
    yield Probe("k = 3, a mean over 20000 draws", targets.mean(0), 0.05)
    again = [teacher, xt[:50], step_of[:50], 3]
    yield differs("sdtt_targets", lambda g: distill.sdtt_targets(*again, g))


def grade_sdtt_loss(rng, noise):
    student = Network(4, rng, wide=False)
    teacher = Network(4, rng, wide=False).requires_grad_(False).eval()
    x0 = integers(0, 4, (16, 8), rng)
    for divergence in ("kl_bwd", "kl_fwd", "tvd"):
        for sampler, dt in (("ancestral", 1 / 16), ("spread", 1 / 4)):
            options = {"k": 2, "divergence": divergence}
            loss = distill.sdtt_loss(student, x0, noise, teacher, dt, sampler, **options)
            yield Probe(f"{divergence}, {sampler}, networks that see one token", loss)
    for of, weights in (("head", student.W), ("embeddings", student.wte.weight)):
        yield Probe(f"tvd: its gradient by the student's {of}", *gradients(loss, weights))
    yield modes(student, teacher)
    losses = []  # 8 steps, one token: in most of them no position is supervised
    for _ in range(100):
        loss = distill.sdtt_loss(student, x0[:1, :1], noise, teacher, 1 / 16, "spread").detach()
        losses.append(loss)
    what = "spread, 8 steps, a text of 1 token, most often not supervised: losses that are NaN"
    yield Probe(what, torch.stack(losses).isnan().sum(), 0, 0)

    student = Network(4, rng)
    teacher = Network(4, rng).requires_grad_(False).eval()
    x0 = x0.repeat(500, 1)
    for sampler, dt, k in (("spread", 1 / 6, 3), ("spread", 1 / 8, 4), ("ancestral", 1 / 9, 3)):
        loss = distill.sdtt_loss(student, x0, noise, teacher, dt, sampler, k=k)
        what = f"{sampler}, dt = {dt:.3f}, k = {k}, 8000 texts"
        yield Probe(f"{what}: the mean over all supervised positions", loss, 0.05)
        what = f"{what}: the gradient of this mean, not one by row, by the student's head"
        yield Probe(what, *gradients(loss, student.W), 0.05)
    again = [student, x0[:50]]
    options = {"dt": 1 / 6, "sampler": "ancestral", "k": 3}
    yield differs("sdtt_loss", lambda g: distill.sdtt_loss(*again, g, teacher, **options).detach())


# --------------------------------------------------------------------------------------------------
# lessons 5 to 7: drafters, speculation, soft labels


def grade_ngram(rng, noise):
    corpus = integers(0, 5, (80,), rng).tolist()
    corpus[-1] = 5  # its last two tokens stand nowhere else: what follows them is not known
    texts = integers(0, 5, (10, 2), rng).tolist()
    begun = [[0], [3], []]  # the text has just begun
    unseen = [[6, 6], [0, 6], [6, 0]]
    ends = [corpus[-2:]]
    longer = [corpus[i : i + n] for i in (0, 9, 33) for n in (3, 5)]
    for smoothing in ("kneser_ney", "laplace"):
        ngram = drafters.NGram(3, 7, smoothing).fit(corpus)
        for text in (*texts, *begun, *unseen, *ends):
            p = torch.as_tensor(ngram.probs(text))
            yield Probe(f"{smoothing}, n = 3, after {text}", p)
        ngram = drafters.NGram(4, 7, smoothing).fit(corpus)
        for text in longer:
            p = torch.as_tensor(ngram.probs(text))
            yield Probe(f"{smoothing}, n = 4, after {text}", p)


def grade_kd_loss(rng, noise):
    teacher = Network(5, rng, True).eval()
    drafter = Network(5, rng, True)
    batch = integers(0, 5, (3, 9), rng)
    yield Probe("kl_fwd", distill.kd_loss(drafter, batch, noise, teacher))
    for divergence in ("kl_bwd", "tvd", "mse"):
        yield Probe(divergence, distill.kd_loss(drafter, batch, noise, teacher, divergence))
    for divergence, temperature, ce_weight in (
        ("kl_fwd", 2.0, 0.0),
        ("kl_fwd", 1.0, 0.3),
        ("kl_fwd", 2.0, 0.3),
        ("mse", 2.0, 0.3),
    ):
        settings = divergence, temperature, ce_weight
        what = f"{divergence}, temperature {temperature}, ce_weight {ce_weight}"
        yield Probe(what, distill.kd_loss(drafter, batch, noise, teacher, *settings))
    yield modes(drafter, teacher)
    loss = distill.kd_loss(drafter, batch, noise, teacher)
    for of, weights in (("head", drafter.W), ("embeddings", drafter.wte.weight)):
        yield Probe(f"the gradient by the drafter's {of}", *gradients(loss, weights))
    if getattr(loss, "requires_grad", False):
        loss.backward()
    with_gradient = sum(p.grad is not None for p in teacher.parameters())
    yield Probe("how many of the teacher's weights get a gradient", with_gradient, 0, 0)


def grade_verify(rng, noise):
    sure = torch.eye(5)[torch.randperm(5, generator=rng)]  # row i: all of it on one token
    a, b, c, d, _ = sure.argmax(1).tolist()
    two = torch.tensor([a, b])
    tokens = speculative.verify(two, sure[:3], [sure[0], sure[1]], noise)
    yield Probe("p and q are certain of both drafts, p of c behind them", tokens, 0, [a, b, c])
    tokens = speculative.verify(two, sure[[0, 3, 2]], [sure[0], sure[1]], noise)
    yield Probe("p is certain of another second token", tokens, 0, [a, d])
    tokens = speculative.verify(two, sure[[3, 1, 2]], [sure[0], sure[1]], noise)
    yield Probe("p is certain of another first token", tokens, 0, [d])
    tokens = speculative.verify(two[:0], sure[2:3], [], noise)
    yield Probe("no drafts", tokens, 0, [c])
    with RandomNumbers(rows=2, u=0.0):
        tokens = speculative.verify(two, sure[[3, 1, 2]], [sure[0], sure[1]], noise)
    yield Probe("a first draft that p excludes, u = 0", tokens, 0, [d])
    for i, token in ((0, a), (1, b)):
        with RandomNumbers(rows=1, u=0.9999):
            tokens = speculative.verify(two[[i]], 0.999 * sure[[i, 2]], [sure[i]], noise)
        what = "p = 0.999 q, u = 0.9999: rejected, and there is no residual, so drawn from p"
        yield Probe(what, tokens, 0, [token])

    far = torch.tensor([[0.5, 0.3, 0.2, 0, 0], [0, 0.3, 0.2, 0.2, 0.3]])
    far = far[:, None, torch.randperm(5, generator=rng)]
    p, q = 0.7 * far + 0.3 * torch.randn(2, 3, 5, generator=rng).softmax(-1)  # (3, 5) each
    drafts = torch.multinomial(q[:2], 5000, replacement=True, generator=rng).T  # (5000, 2)
    written = verified(drafts, p, q, noise)
    yield Probe("drafts of q: how often each first token", last_of(written, 0), 0.035, p[0])
    overlap = torch.minimum(p, q).sum(1)
    n = (written >= 0).sum(1) - 1  # accepted
    accepted = [1 - overlap[0], overlap[0] * (1 - overlap[1]), overlap[0] * overlap[1]]
    what = "drafts of q: how often 0, 1 and 2 are accepted"
    yield Probe(what, frequencies(n[:, None], 3), 0.035, torch.stack(accepted))
    what = "drafts of q: how often each second token, where the first is accepted"
    yield Probe(what, last_of(written, 1), 0.05, p[1])
    what = "drafts of q: how often each third token, where both are accepted"
    yield Probe(what, last_of(written, 2), 0.06, p[2])
    lengths = [len(speculative.verify(pair, q, [q[0], q[1]], noise)) for pair in drafts[:300]]
    yield Probe("p = q: texts that are shorter than 3", sum(n < 3 for n in lengths), 0, 0)
    half = torch.tensor([0.5, 0.5, 0, 0, 0]).expand(3, 5)
    written = verified(torch.zeros(2000, 2).long(), half, torch.eye(5)[[0, 0]], noise)
    n = (written >= 0).sum(1) - 1
    what = "q is certain, p half as sure: how often 0, 1 and 2 are accepted"
    yield Probe(what, frequencies(n[:, None], 3), 0.05, [0.5, 0.25, 0.25])
    yield differs("verify", lambda again: verified(drafts[:50], p, q, again))


def verified(drafts, p, q, generator):
    """(N, 2), (3, V), two rows of q -> (N, 3): what verify answers, then -1."""
    written = torch.full((len(drafts), 3), -1)
    for row, pair in zip(written, drafts, strict=True):
        tokens = speculative.verify(pair, p, [q[0], q[1]], generator)
        row[: len(tokens)] = tokens
    return written


def last_of(written, i):
    """(N, 3) with -1 after the last token -> (5): how often each token stands at i, if any does."""
    there = written[:, i] >= 0
    return frequencies(written[there, i : i + 1], 5)


class Fixed:
    """A drafter that proposes the next tokens of a text that it knows, at most `most` of them."""

    def __init__(self, text, V, most=99):
        self.text = text
        self.V = V
        self.most = most
        self.asked = []  # how many drafts it was asked for

    def propose(self, x, n, settings, generator):
        self.asked.append(n)
        drafts = self.text[len(x) : len(x) + min(n, self.most)]
        return drafts, F.one_hot(drafts, self.V).float()


class Independent:
    """A drafter that draws every token from one distribution q (V,)."""

    def __init__(self, q):
        self.q = q
        self.settings = None

    def propose(self, x, n, settings, generator):
        self.settings = settings
        drafts = torch.multinomial(self.q.expand(n, -1), 1, generator=generator)[:, 0]
        return drafts, self.q.expand(n, -1)


def greedy(target, x, n):
    for _ in range(n):
        x = torch.cat([x, target(x[None])[0, -1:].argmax(1)])
    return x


@torch.no_grad()
def grade_speculate(rng, noise):
    target = Network(6, rng, True, sharp=3.0)
    x = integers(0, 6, (4,), rng)
    best = greedy(target, x, 12)
    wrong = (best + 1) % 6
    some = torch.where(torch.rand(16, generator=rng) < 0.4, wrong, best)
    for what, drafter in (
        ("right drafts", Fixed(best, 6)),
        ("wrong drafts", Fixed(wrong, 6)),
        ("drafts of which some are wrong", Fixed(some, 6)),
        ("no drafts", Fixed(best, 6, most=0)),
        ("two drafts at most, some wrong", Fixed(some, 6, most=2)),
    ):
        rounds = []
        watch = lambda x, drafts, rounds=rounds: rounds.append((len(x), len(drafts)))  # noqa: E731
        got = speculative.speculate(
            target, drafter, x, 12, gamma=4, generator=noise, watch=watch, temperature=0.0
        )
        yield Probe(f"{what}, temperature 0: 12 tokens after 4", got, 0, best)
        lengths = torch.tensor(rounds)
        yield Probe(f"{what}: length and drafts of each round that watch sees", lengths, 0)
        yield Probe(f"{what}: how many were asked for, round by round", drafter.asked, 0)
    got = speculative.speculate(target, Fixed(best, 6), x, 0, generator=noise, temperature=0.0)
    yield Probe("no new tokens", got, 0, x)
    yield from grade_end_of_text(target, x, best, noise)

    target = Network(3, rng, True, sharp=2.0)
    x = integers(0, 3, (2,), rng)
    q = torch.randn(3, generator=rng).softmax(-1)
    for what, settings in (
        ("", {}),
        ("temperature 0.6, top_k 2, ", {"temperature": 0.6, "top_k": 2}),
        ("temperature 3, top_p 0.4, ", {"temperature": 3.0, "top_p": 0.4}),
    ):
        texts = []
        drafter = Independent(q)
        for _ in range(500):
            options = {"gamma": 2, "generator": noise, **settings}
            texts.append(speculative.speculate(target, drafter, x, 3, **options)[2:])
        got = frequencies(torch.stack(texts), 3)
        right = joint(target, x, settings)
        yield Probe(
            f"{what}a drafter that does not read: how often which 3 tokens", got, 0.08, right
        )
        given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
        told = int(drafter.settings == given)
        yield Probe(f"{what}whether the drafter is told temperature, top_k and top_p", told, 0, 1)
    long = [target, Independent(q), x, 63]
    raises = raises_user_error(lambda: speculative.speculate(*long, generator=noise))
    yield Probe("65 tokens in a context of 64: whether it raises UserError", raises, 0, 1)
    long[-1] = 62
    raises = raises_user_error(lambda: speculative.speculate(*long, generator=noise))
    yield Probe("64 tokens in a context of 64: whether it raises UserError", raises, 0, 0)
    text = [target, Independent(q), x, 60]
    options = {"gamma": 2, "temperature": 3.0}
    yield differs("speculate", lambda g: speculative.speculate(*text, generator=g, **options))


def grade_end_of_text(target, x, best, noise):
    """x (4,), best (16,): the text that the target writes at temperature 0."""
    # the tenth token becomes the end of text, and its number 0: it changes places with token 0
    swap = [best[9].item(), *range(1, 6)]
    swap[swap[0]] = 0
    for weights in (target.wte.weight, target.before, target.after, target.W):
        weights[:6] = weights[swap]
    x = torch.tensor(swap)[x]
    best = torch.tensor(swap)[best]
    first = 4 + (best[4:] == 0).nonzero()[0, 0]
    for what, drafter in (("right", Fixed(best, 6)), ("wrong", Fixed((best + 1) % 6, 6))):
        lengths = []
        options = {"gamma": 4, "generator": noise, "eos": 0, "temperature": 0.0}
        watch = lambda x, drafts, lengths=lengths: lengths.append(len(x))  # noqa: E731
        got = speculative.speculate(target, drafter, x, 12, watch=watch, **options)
        what = f"eos = 0, {what} drafts"
        yield Probe(f"{what}: the text, which ends with it", got, 0, best[: first + 1])
        seen = torch.tensor([0, *lengths])[-1]
        yield Probe(f"{what}: the length that watch sees last", seen, 0, first + 1)

    eos = torch.bincount(best[4:], minlength=6).argmin().item()  # written seldom, or never
    before = torch.cat([torch.tensor([eos]), x])
    best = torch.cat([before, best[4:]])  # the network sees two tokens: it writes the same
    ends = (best[5:] == eos).nonzero()
    end = 5 + ends[0, 0] + 1 if len(ends) else 17
    options["eos"] = eos
    got = speculative.speculate(target, Fixed((best + 1) % 6, 6), before, 12, **options)
    yield Probe("an eos in the text that is known, which ends nothing", got, 0, best[:end])


def joint(target, x, settings):
    """-> (27): the probabilities of the 3 tokens after x, the first changing fastest."""
    texts = torch.cartesian_prod(*[torch.arange(3)] * 3).flip(1)  # (27, 3)
    whole = torch.cat([x.expand(27, -1), texts], dim=1)
    p = model.probabilities(target(whole)[:, -4:-1], **settings)  # (27, 3, V)
    return p.gather(2, texts[..., None]).prod(1)[:, 0]


def grade_speed(rng, noise):
    rounds = metrics.Rounds(4)
    rounds.tested = torch.tensor([100, 0, 0, 0])
    rounds.accepted = rounds.tested.clone()
    for j in range(4):  # as many as were accepted at one position are tested at the next
        if j:
            rounds.tested[j] = rounds.accepted[j - 1]
        kept = torch.empty(()).uniform_(0.6, 0.9, generator=rng)
        rounds.accepted[j] = (rounds.tested[j] * kept).long()
    rounds.n_rejected = int((rounds.tested - rounds.accepted).sum())
    rounds.n_forwards = 103
    rounds.n_rounds_with_drafts = 100
    rounds.n_drafts = 400
    rounds.n_tokens = 101 + int(rounds.accepted.sum())  # two more came after an end of text
    counts = f"{rounds.accepted.tolist()} of {rounds.tested.tolist()}"
    yield Probe(f"acceptance, {counts} accepted", metrics.acceptance(rounds))
    what = f"tokens_per_forward, {rounds.n_tokens} tokens in {rounds.n_forwards} forward passes"
    yield Probe(what, metrics.tokens_per_forward(rounds))
    for alpha, c, gamma, verify in ((0.5, 0.1, 1, 1.0), (0.8, 0.05, 4, 1.5), (1, 0.1, 3, 1.0)):
        said = f"predicted_speedup(alpha={alpha}, c={c}, gamma={gamma}, verify={verify})"
        yield Probe(said, metrics.predicted_speedup(alpha, c, gamma, verify))
    yield Probe("predicted_speedup(0.6, 0.2, 2)", metrics.predicted_speedup(0.6, 0.2, 2))
    speed = metrics.predicted_speedup(0.6, 0.2, 2, 1.3, propose_rate=0.4)
    yield Probe("predicted_speedup(0.6, 0.2, 2, verify=1.3, propose_rate=0.4)", speed)
    yield Probe("acceptance, nothing was tested", metrics.acceptance(metrics.Rounds(4)), 0, 0)


def grade_soft_cross_entropy(rng, noise):
    logits = torch.randn(3, 7, generator=rng).requires_grad_()
    logp, ids = torch.randn(3, 7, generator=rng).log_softmax(-1).topk(3)
    for missing in ("none", "renorm", "tail"):
        loss = soft_labels.soft_cross_entropy(logits, ids, logp, missing)
        yield Probe(f"missing={missing}", loss)
        gradient = torch.autograd.grad(loss.sum(), logits)[0]
        yield Probe(f"missing={missing}: the gradient by the logits", gradient)
    none = logp.clone()
    none[2, 2] = -torch.inf
    none[1] = -torch.inf
    twice = torch.tensor([[1, 1, 4], [0, 5, 5], [2, 2, 2]])
    everything = torch.randn(3, 7, generator=rng).log_softmax(-1)
    for missing in ("none", "renorm", "tail"):
        for what, labels in (
            ("a label of -inf, and a row of them", (ids, none)),
            ("ids that repeat", (twice, logp - 1)),
            ("all tokens named", (torch.arange(7).expand(3, 7), everything)),
        ):
            loss = soft_labels.soft_cross_entropy(logits, *labels, missing)
            yield Probe(f"missing={missing}, {what}", loss)
        loss = soft_labels.soft_cross_entropy(200 * logits, ids, logp, missing)
        yield Probe(f"missing={missing}, logits of some hundreds", loss, 1e-2)
