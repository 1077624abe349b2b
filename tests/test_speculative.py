"""
python -m pytest tests/test_speculative.py          text of a GPT, with a cache and with drafts
"""

import inspect
import itertools
import json
import math

import pytest
import reference
import torch
import torch._dynamo.testing
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import drafters
import metrics
import speculative
from drafters import Lookup, NGram
from metrics import Rounds, best_gamma, overlap, predicted_speedup
from model import draw, probabilities
from plumbing import report
from plumbing.randomness import seeded, uniform
from speculative import KVCache, Network, generate, speculate

pytestmark = pytest.mark.numerics
V = 3
PROMPT = [0, 1, 1, 0, 1]


def make_target(V=V, block_size=16):
    return tiny_model(V=V, causal=True, seed=1, block_size=block_size)


class Hesitant:
    """Proposes fewer tokens than it is asked for, often none."""

    def __init__(self, V):
        self.V = V

    def propose(self, x, n, settings, generator):
        q = []
        drafts = []
        for _ in range(min(n, len(x) % 3)):
            q.append(torch.full((self.V,), 1 / self.V))
            drafts.append(speculative.draw(q[-1], generator))
        return torch.tensor(drafts, dtype=torch.int64), q


def make_drafter(name, V=V, block_size=16):
    """-> a drafter that differs from the target, for V tokens."""
    kind, _, detail = name.partition(", ")
    if kind == "ngram":
        return NGram(3, V, detail).fit(torch.randint(V, (200,), generator=seeded(4)).numpy())
    if kind == "lookup":
        return Lookup(V)
    if kind == "hesitant":
        return Hesitant(V)
    if detail == "short context":
        block_size = 6
    return Network(tiny_model(V=V, causal=True, seed=2, arch=kind, block_size=block_size))


DRAFTERS = ["gpt", "gpt, short context", "lstm", "cnn"]
DRAFTERS += ["ngram, kneser_ney", "ngram, laplace", "lookup", "hesitant"]


# --------------------------------------------------------------------------------------------------
# the distribution of the text, by enumeration


class Uniform:
    """Numbers in [0, 1), times factors, of which `>= p` is asked: both answers are paths."""

    def __init__(self, paths, n):
        self.paths = paths
        self.factors = [1.0] * n

    def __mul__(self, factors):
        self.factors = factors.tolist()
        return self

    def __ge__(self, p):
        self.p = p.tolist()
        return self

    def tolist(self):
        """Nobody asks for an answer after the first yes."""
        for p, factor in zip(self.p, self.factors, strict=True):
            below = min(1.0, p / factor)
            yield self.paths.choose([below, 1 - below]) == 1


class Paths:
    """Runs f once for every sequence of random choices that it can make."""

    def __init__(self, monkeypatch):
        for module in (speculative, drafters):
            monkeypatch.setattr(module, "draw", self.draw)
        monkeypatch.setattr(speculative, "uniform", self.uniform)

    def choose(self, weights):
        """Depth first: the choices of `plan`, then always the first possible one."""
        depth = len(self.taken)
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        i = self.plan[depth] if depth < len(self.plan) else 0
        self.taken.append((i, len(possible)))
        self.probability *= weights[possible[i]]
        return possible[i]

    def draw(self, p, generator=None):
        p = p.double()
        return torch.tensor(self.choose((p / p.sum()).tolist()))

    def uniform(self, shape, generator, device):
        return Uniform(self, *shape)

    def distribution(self, f):
        """-> {f(): probability}."""
        found = {}
        self.plan = []
        while True:
            self.taken = []
            self.probability = 1.0
            x = f()
            found[x] = found.get(x, 0.0) + self.probability
            while self.taken and self.taken[-1][0] + 1 == self.taken[-1][1]:
                self.taken.pop()
            if not self.taken:
                return found
            self.plan = [i for i, _ in self.taken]
            self.plan[-1] += 1


@torch.no_grad()
def exact_distribution(target, prompt, n_new, eos=None, **settings):
    """-> {tokens: probability} of autoregressive sampling, token by token, to n_new or an eos."""
    texts = {tuple(prompt): 1.0}
    for _ in range(n_new):
        longer = {}
        for x, weight in texts.items():
            if eos is not None and eos in x[len(prompt) :]:
                longer[x] = weight
                continue
            p = probabilities(target(torch.tensor([x]))[0, -1], **settings)
            for token in p.nonzero().flatten().tolist():
                longer[(*x, token)] = weight * p[token].item()
        texts = longer
    return texts


def distance(a, b):
    """Total variation."""
    return sum(abs(a.get(x, 0) - b.get(x, 0)) for x in a.keys() | b.keys()) / 2


def speculative_distribution(monkeypatch, name, prompt, n_new, V=V, **options):
    paths = Paths(monkeypatch)
    target = make_target(V)
    drafter = make_drafter(name, V)  # one for all texts: its cache must forget the other ones
    x = torch.tensor(prompt)
    return paths.distribution(
        lambda: tuple(speculate(target, drafter, x, n_new, **options).tolist())
    )


@pytest.mark.parametrize("prompt", [[1], PROMPT])
@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("name", DRAFTERS)
def test_the_distribution_is_the_targets_by_enumeration(name, gamma, prompt, monkeypatch):
    # 4 new tokens: 3 drafts and a bonus token
    n_new, V = (3, 3) if gamma < 3 else (4, 2)
    found = speculative_distribution(monkeypatch, name, prompt, n_new, V=V, gamma=gamma)
    assert sum(found.values()) == pytest.approx(1)
    assert distance(found, exact_distribution(make_target(V), prompt, n_new)) < 1e-5


SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 2},
    {"top_p": 0.8},
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 2, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", DRAFTERS)
def test_it_is_the_targets_for_temperature_top_k_and_top_p(name, settings, monkeypatch):
    found = speculative_distribution(monkeypatch, name, PROMPT, 3, gamma=2, **settings)
    assert distance(found, exact_distribution(make_target(), PROMPT, 3, **settings)) < 1e-5


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_text_ends_with_an_end_of_text_inside_a_draft(name, monkeypatch):
    found = speculative_distribution(monkeypatch, name, PROMPT, 4, V=2, gamma=3, eos=1)
    assert distance(found, exact_distribution(make_target(2), PROMPT, 4, eos=1)) < 1e-5
    for x in found:
        assert 1 not in x[5:-1] and (x[-1] == 1 or len(x) == 9)


# --------------------------------------------------------------------------------------------------
# mistakes that the enumeration must see: one line of the code, and a wrong one for it

MISTAKES = {
    "resamples from p": ("verify", "(p[i] - q[i]).clamp(min=0)", "p[i]"),
    "subtracts a number": (
        "verify",
        "(p[i] - q[i]).clamp(min=0)",
        "(p[i] - q[i].max()).clamp(min=0)",
    ),
    "takes q for 1": ("verify", "u * q_drafts >= p_drafts", "u >= p_drafts"),
    "accepts everything": ("verify", "u * q_drafts >= p_drafts", "p_drafts < 0"),
    "goes on after a rejection": (
        "verify",
        "[drafts[:i], token[None]]",
        "[drafts[:i], drafts[i:]]",
    ),
    "bonus token of the last draft": ("verify", "bonus = draw(p[-1]", "bonus = draw(p[0]"),
    "verifies one token too late": (
        "speculate",
        "verify(drafts, p,",
        "verify(drafts, p.roll(1, 0),",
    ),
}


def with_mistake(monkeypatch, function, right, wrong):
    source = inspect.getsource(getattr(speculative, function))
    assert source.count(right) == 1
    names = dict(vars(speculative))
    exec(source.replace(right, wrong), names)
    monkeypatch.setattr(speculative, function, names[function])


CASES = [(mistake, name) for mistake in MISTAKES for name in ("gpt", "lookup")]
CASES.remove(("takes q for 1", "lookup"))  # there it is 1


@pytest.mark.parametrize("mistake, name", CASES)
def test_known_mistakes_change_the_distribution(mistake, name, monkeypatch):
    paths = Paths(monkeypatch)
    with_mistake(monkeypatch, *MISTAKES[mistake])
    target = make_target(V=2)
    drafter = make_drafter(name, V=2)
    x = torch.tensor(PROMPT)

    def text():
        return tuple(speculative.speculate(target, drafter, x, 4, gamma=2).tolist())

    found = paths.distribution(text)
    assert distance(found, exact_distribution(target, PROMPT, 4)) > 0.01


# --------------------------------------------------------------------------------------------------
# speculation otherwise


def test_verify_is_the_textbooks_step(monkeypatch):
    monkeypatch.setattr(speculative, "draw", lambda p, generator: p.argmax())
    generator = seeded(0)
    lengths = set()
    for i in range(200):
        g = i % 5
        p, q = torch.rand(2, g + 1, 6, generator=generator).pow(3)
        p = p / p.sum(1, keepdim=True)  # (g + 1, V)
        q = (q / q.sum(1, keepdim=True))[:g]  # (g, V)
        drafts = torch.tensor([int(draw(row, generator)) for row in q], dtype=torch.int64)
        r = uniform((g,), seeded(i), "cpu").tolist()
        expected = reference.speculative_step(drafts.tolist(), p, q, r, lambda p: int(p.argmax()))
        assert speculative.verify(drafts, p, q, seeded(i)).tolist() == expected
        lengths.add(len(expected))
    assert lengths == {1, 2, 3, 4, 5}


class Questions(TorchDispatchMode):
    """Counts how often Python asks for the numbers of a tensor: there a GPU is waited for."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "equal", "masked_select")

    def __init__(self, monkeypatch):
        super().__init__()
        self.n = 0
        tolist = torch.Tensor.tolist

        def counted(x):
            self.n += 1
            return tolist(x)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.n += f._schema.name.removeprefix("aten::") in self.OPERATIONS
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gpt", "lstm", "cnn"])
@pytest.mark.parametrize("eos", [None, V - 1])
def test_a_round_waits_for_a_gpu_three_times(name, eos, monkeypatch):
    """For the drafts, for which of them are rejected, and for its tokens."""
    target = make_target(block_size=64)
    drafter = make_drafter(name, block_size=64)
    rounds = []
    questions = Questions(monkeypatch)
    with questions:
        x = torch.tensor(PROMPT)
        options = dict(generator=seeded(0), eos=eos, watch=lambda *args: rounds.append(args))
        speculate(target, drafter, x, 40, gamma=4, **options)
    assert rounds and 2 * len(rounds) <= questions.n <= 3 * len(rounds)


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_text_equals_generates_at_every_length(name, gamma):
    """The last tokens fill the whole context."""
    target = make_target(block_size=32)
    drafter = make_drafter(name, block_size=32)
    for prompt in torch.randint(V, (4, 3), generator=seeded(0)):
        for n_new in (0, 1, 2, 7, 29):
            found = speculate(target, drafter, prompt, n_new, gamma=gamma, temperature=0)
            assert len(found) == 3 + n_new
            assert torch.equal(found, generate(target, prompt[None], n_new, temperature=0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "lstm", "ngram, kneser_ney", "lookup", "hesitant"])
def test_sampled_texts_have_the_exact_frequencies(name):
    """With real random numbers; chi-square against the exact distribution, some end with eos."""
    n = 1000
    target = make_target(2)
    drafter = make_drafter(name, 2)
    prompt = torch.tensor([0, 1, 1])
    counts = {}
    generator = seeded(1)
    for _ in range(n):
        x = speculate(target, drafter, prompt, 4, gamma=2, generator=generator, eos=1)
        x = tuple(x.tolist())
        counts[x] = counts.get(x, 0) + 1
    exact = exact_distribution(target, prompt.tolist(), 4, eos=1)
    assert counts.keys() <= exact.keys()
    chi2 = sum((counts.get(x, 0) - n * p) ** 2 / (n * p) for x, p in exact.items())
    assert chi2 < 20  # 4 degrees of freedom: exceeded once in 2000


def test_one_generator_makes_one_text():
    target = make_target()
    texts = []
    for seed in (1, 1, 2):
        drafter = make_drafter("gpt")
        x = torch.tensor(PROMPT)
        texts.append(speculate(target, drafter, x, 11, generator=seeded(seed)))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("name", ["gpt", "lstm", "cnn"])
def test_a_drafter_never_reads_what_was_rejected(name, monkeypatch):
    """Its distributions are those without a cache, in every round and also in the next text."""
    target = make_target(block_size=32)
    drafter = make_drafter(name, block_size=32)
    real = drafter.propose
    checked = []

    @torch.no_grad()
    def propose(x, n, settings, generator):
        drafts, q = real(x, n, settings, generator)
        for j in range(len(drafts)):
            text = torch.cat([x, drafts[:j]])[None]
            uncached = drafter.model(text)[0, -1].softmax(-1)
            torch.testing.assert_close(q[j], uncached, atol=1e-5, rtol=1e-4)
        checked.append(len(drafts))
        return drafts, q

    monkeypatch.setattr(drafter, "propose", propose)
    generator = seeded(1)
    for prompt in torch.randint(V, (6, 3), generator=seeded(0)):
        speculate(target, drafter, prompt, 25, gamma=3, generator=generator)
    assert sum(checked) > 100


def test_a_drafter_proposes_no_more_than_it_is_asked_or_than_its_context_has():
    model = tiny_model(V=V, causal=True, block_size=6)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    drafter = Network(model)
    for length, n, most in ((5, 1, 1), (5, 4, 2), (6, 4, 1), (7, 4, 0), (9, 4, 0), (3, 0, 0)):
        x = torch.zeros(length, dtype=torch.int64)
        drafts, q = drafter.propose(x, n, settings, seeded(0))
        assert len(drafts) == len(q) == most


def test_watch_sees_every_round():
    target = make_target()
    seen = []
    options = {"gamma": 3, "generator": seeded(0)}
    drafter = make_drafter("gpt")
    x = speculate(
        target, drafter, torch.tensor(PROMPT), 11, watch=lambda *a: seen.append(a), **options
    )
    lengths = [5, *(len(text) for text, _ in seen)]
    assert torch.equal(seen[-1][0], x)
    for (before, after), (text, drafts) in zip(itertools.pairwise(lengths), seen, strict=True):
        assert torch.equal(text, x[:after])
        assert 1 <= after - before <= len(drafts) + 1 <= 4
        n = after - before - 1
        assert torch.equal(text[before : before + n], drafts[:n])  # the accepted ones


def test_texts_longer_than_the_context_raise(error_of):
    x = torch.zeros(10, dtype=torch.int64)
    said = error_of(speculate, make_target(), Lookup(V), x, 7)
    assert "17 tokens do not fit the context of 16" in said and "--length=16" in said


@pytest.mark.parametrize("mixed", [False, True])
def test_a_cache_may_have_another_number_format_than_the_layers(mixed):
    """bfloat16 weights, or float32 weights under autocast."""
    model = tiny_model(causal=True)
    if not mixed:
        model = model.bfloat16()
    start = torch.zeros(2, 1, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        x = generate(model, start, 20, generator=seeded(0))
        y = speculate(model, Network(model), start[0], 15, generator=seeded(0))
    assert x.shape == (2, 21) and y.shape == (16,)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_a_cache_has_16_bits_and_the_tokens_of_a_larger_one(half, monkeypatch):
    model = tiny_model(V=30, causal=True)
    start = torch.zeros(2, 1, dtype=torch.int64)
    drafter = tiny_model(V=30, causal=True, seed=1)
    texts = []
    for wide in (False, True):
        if wide:
            monkeypatch.setattr(speculative, "matmul_dtype", lambda weight: weight.dtype)
        with torch.autocast("cpu", half):
            assert KVCache(model).kv[0].dtype == (torch.float32 if wide else half)
            assert KVCache(tiny_model(causal=True, arch="lstm")).kv[0].dtype == torch.float32
            x = generate(model, start, 30, generator=seeded(0))
            y = speculate(model, Network(drafter), start[0], 15, generator=seeded(0))
        texts.append([*x.flatten().tolist(), *y.tolist()])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("arch", ["lstm", "cnn"])
def test_lstm_and_cnn_generate_past_the_context_as_without_a_cache(arch):
    model = tiny_model(causal=True, arch=arch)
    idx = torch.randint(7, (2, 3), generator=seeded(0))
    found = generate(model, idx, 40, generator=seeded(1))
    assert torch.equal(found, reference.generate(model, idx, 40, seeded(1)))


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_gpt_is_compiled_a_few_times_however_long_the_text():
    """For the first tokens and for one more; with drafts also for several more. Then no more."""
    torch._dynamo.reset()  # what other tests compiled counts, too
    target = make_target()
    counter = torch._dynamo.testing.CompileCounter()
    start = torch.tensor([PROMPT])
    expected = generate(target, start, 11, generator=seeded(1))
    drafter = make_drafter("gpt")
    drafted = speculate(target, drafter, start[0], 11, generator=seeded(1))
    target.hidden = torch.compile(target.hidden, backend=counter)
    assert torch.equal(generate(target, start, 11, generator=seeded(1)), expected)
    assert counter.frame_count == 2

    found = speculate(target, make_drafter("gpt"), start[0], 11, generator=seeded(1))
    assert torch.equal(found, drafted)
    n = counter.frame_count
    for seed in range(2, 6):
        speculate(target, drafter, start[0], 11, generator=seeded(seed))
    assert n <= counter.frame_count <= 5


# --------------------------------------------------------------------------------------------------
# acceptance


class Scripted:
    """Proposes a text that is known, except at the positions where it is wrong."""

    def __init__(self, text, wrong):
        self.drafts = text.clone()
        self.drafts[wrong] = (self.drafts[wrong] + 1) % V

    def propose(self, x, n, settings, generator):
        drafts = self.drafts[len(x) : len(x) + n]
        return drafts, torch.nn.functional.one_hot(drafts, V).float()


def test_rounds_counts_what_a_hand_counts():
    target = make_target()
    prompt = torch.tensor([0, 1, 1])
    text = generate(target, prompt[None], 10, temperature=0)[0]
    rounds = Rounds(3)
    rounds.start(3)
    drafter = Scripted(text, wrong=[5, 6])
    found = speculate(target, drafter, prompt, 10, gamma=3, temperature=0, watch=rounds)
    assert torch.equal(found, text)
    # drafts 3, 4 accepted, 5 rejected; 6 rejected; 7, 8, 9 accepted and bonus token 10; 11 and 12
    assert rounds.tested.tolist() == [4, 2, 2]
    assert rounds.accepted.tolist() == [3, 2, 1]
    assert rounds.n_forwards == 4 and rounds.n_tokens == 10
    # 3 + 3 + 3 + 1 were proposed; 7 and 8 after the rejected 6 were never tested
    assert rounds.n_drafts == 10 and rounds.n_rejected == 2 and rounds.n_rounds_with_drafts == 4
    yes, no = True, False
    assert rounds.drafted == [yes, yes, no, no, yes, yes, yes, no, yes, no]
    assert metrics.acceptance(rounds) == pytest.approx(6 / 8)
    assert metrics.tokens_per_forward(rounds) == pytest.approx(2.5)


def test_rounds_counts_no_draft_after_an_end_of_text():
    rounds = Rounds(3)
    rounds.start(2)
    rounds(torch.tensor([0, 0, 2, 1]), torch.tensor([2, 1, 0]))  # 1 ends the text
    assert rounds.tested.tolist() == rounds.accepted.tolist() == [1, 1, 0]
    rounds.start(1)
    rounds(torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64))  # nothing was proposed
    assert rounds.n_forwards == 2 and rounds.n_tokens == 3 and rounds.drafted == [False]
    assert rounds.n_drafts == 3 and rounds.n_rejected == 0 and rounds.n_rounds_with_drafts == 1


def test_counted_acceptance_is_the_overlap():
    """alpha = E sum_x min(p, q); a drafter equal to the target has 1."""
    target = make_target(block_size=64)
    start = torch.zeros(1, dtype=torch.int64)
    rounds = Rounds(4)
    rounds.start(1)
    options = {"generator": seeded(0), "watch": rounds}
    speculate(target, Network(target), start, 60, gamma=4, **options)
    assert metrics.acceptance(rounds) == 1 and rounds.n_forwards == 12

    drafter = Network(tiny_model(V=V, causal=True, seed=2, block_size=64))
    rounds = Rounds(1)
    texts = []
    for i in range(40):
        rounds.start(1)
        options = {"generator": seeded(i), "watch": rounds}
        texts.append(speculate(target, drafter, start, 60, gamma=1, **options))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    alpha = overlap(target, drafter, torch.stack(texts), 1, settings, batch_size=7).mean().item()
    assert metrics.acceptance(rounds) == pytest.approx(alpha, abs=0.03)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "cnn", "ngram, kneser_ney", "lookup"])
def test_overlap_is_the_literal_mean_of_sum_min_p_q(name):
    """Of every token for networks and n-grams, of those proposed at 16 positions for the others."""
    target = make_target(V=5, block_size=32)
    drafter = make_drafter(name, V=5, block_size=32)
    text = torch.randint(5, (3, 19), generator=seeded(0))
    settings = {"temperature": 0.9, "top_k": 4, "top_p": 0.95}
    found = overlap(target, drafter, text, 3, settings, batch_size=2)
    for row, alpha in zip(text, found.tolist(), strict=True):
        terms = []
        for n in range(3, 19):
            p = probabilities(target(row[None, :n])[0, -1], **settings)
            drafts, q = drafter.propose(row[:n], 1, settings, seeded(0))
            if len(drafts):
                terms.append(sum(min(p[x].item(), q[0][x].item()) for x in range(5)))
        assert alpha == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_overlap_is_unknown_where_nothing_is_proposed():
    text = torch.arange(16)[None]
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    found = overlap(make_target(V=16), Lookup(16), text, 3, settings, batch_size=2)
    assert found.isnan().all()
    assert metrics.mean_and_error(found) == (None, None)


def test_an_interval_is_students_and_takes_six_values():
    quantiles = {5: 2.571, 6: 2.447, 9: 2.262, 19: 2.093, 999: 1.962}
    for df, t in quantiles.items():
        values = torch.arange(df + 1.0)
        mean, error = metrics.mean_and_error(torch.cat([values, torch.tensor([math.nan])]))
        deviation = (values.std() / (df + 1) ** 0.5).item()
        assert mean == df / 2 and error == pytest.approx(t * deviation, rel=0.01)
    assert metrics.mean_and_error(torch.arange(5.0)) == (2, None)


def test_the_target_writes_its_texts_in_batches(monkeypatch):
    sizes = []
    real = metrics.generate

    def generate(target, x, *args, **options):
        sizes.append(len(x))
        return real(target, x, *args, **options)

    monkeypatch.setattr(metrics, "generate", generate)
    monkeypatch.setattr(metrics, "drafter_row", lambda t, d, text, *_, **__: {"n": len(text)})
    prompts = torch.randint(V, (5, 2), generator=seeded(0))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    rows = metrics.drafter_rows(make_target(), {"none": None}, prompts, 6, settings, 1, 2)
    assert sizes == [2, 2, 1] and rows == [{"drafter": "none", "n": 5}]


def test_a_drafter_that_never_proposes_has_a_row_of_none_and_a_plot():
    class Silent(Lookup):
        def propose(self, x, n, settings, generator):
            return super().propose(x[:1], n, settings, generator)

    prompts = torch.randint(V, (4, 8), generator=seeded(0))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    args = (make_target(block_size=32), {"silent": Silent(V)}, prompts, 32, settings, 1, 4)
    rows = json.loads(json.dumps(metrics.drafter_rows(*args), allow_nan=False))
    assert rows[0]["alpha"] is None and rows[0]["speedup_error"] is None
    assert rows[0]["drafts"] == rows[0]["rejected"] == 0
    assert "silent" in report.drafters_table(rows)[1]
    report.plot_drafters({"drafters": rows}, report.pyplot())


def test_predicted_speedup_by_hand():
    assert predicted_speedup(0.5, 0.1, 1) == pytest.approx(1.5 / 1.1)
    assert predicted_speedup(1.0, 0.0, 3) == 4
    assert predicted_speedup(1.0, 0.0, 3, verify=1.6) == pytest.approx(4 / 1.6)
    assert predicted_speedup(0.0, 0.5, 2) == pytest.approx(0.5)
    costs = {1: (0.1, 1.0), 2: (0.1, 1.1), 4: (0.1, 2.0)}
    gamma, speed = best_gamma(0.8, costs)
    assert gamma == 2 and speed == pytest.approx((1 + 0.8 + 0.64) / 1.3)


@pytest.mark.parametrize("name", ["gpt", "lookup", "hesitant"])
def test_a_row_of_the_table_of_drafters(name):
    target = make_target(block_size=32)
    drafter = make_drafter(name, block_size=32)
    prompts = torch.randint(V, (4, 8), generator=seeded(0))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    text = generate(target, prompts, 24, generator=seeded(1), **settings)
    row = metrics.drafter_row(
        target, drafter, text, prompts, settings, seed=1, batch_size=4, n_races=3
    )
    assert 0 < row["alpha"] < 1 and row["gamma"] in metrics.GAMMAS
    assert row["predicted"] > 0 and row["speedup"] > 0 and row["c"] > 0 and row["verify"] > 0
    assert len(row["counted_at"]) == row["gamma"]
    assert 1 <= row["tokens_per_forward"] <= row["gamma"] + 1


def test_the_gamma_that_is_chosen_is_one_of_those_tried_or_none(monkeypatch):
    target = make_target(block_size=64)
    x = torch.tensor(PROMPT)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    options = (settings, seeded(0))
    drafter = make_drafter("gpt", block_size=64)
    assert metrics.choose_gamma(target, drafter, x, 50, *options) in (0, *metrics.GAMMAS)
    assert metrics.choose_gamma(target, drafter, x, 3, *options) == 3  # too short to try
    for c, expected in ((2.0, 0), (0.0, 8)):  # a draft costs two steps, or nothing
        costs = dict.fromkeys(metrics.GAMMAS, (c, 1.0))
        monkeypatch.setattr(metrics, "measure_costs", lambda *args, costs=costs: costs)
        assert metrics.choose_gamma(target, drafter, x, 50, *options) == expected


# --------------------------------------------------------------------------------------------------
# text of any model


def test_a_gpt_needs_known_text_at_the_beginning(error_of):
    model = make_target()
    blanks = torch.tensor([[-1, 0, -1]])
    assert "Use a diffusion checkpoint" in error_of(speculative.draw_samples, model, blanks)
    assert "Use a diffusion checkpoint" in error_of(
        speculative.draw_samples, model, torch.full((1, 3), -1)
    )


def test_known_tokens_stay_in_samples_of_both_models():
    for causal in (True, False):
        model = tiny_model(causal=causal)
        template = torch.full((2, 9), -1)
        template[:, :3] = torch.tensor([1, 2, 3])
        x = speculative.draw_samples(model, template, 4, generator=seeded(0))
        assert torch.equal(x[:, :3], template[:, :3]) and x.min() >= 0 and x.max() < 7


def test_samples_do_not_depend_on_how_many_are_asked_for():
    model = tiny_model()
    few, many = (
        speculative.draw_many(model, torch.full((n, 8), -1), 2, seed=1, n_steps=4) for n in (4, 6)
    )
    assert torch.equal(few, many[:4])


def test_a_students_own_sampler_and_steps_are_the_defaults():
    student = {"sampler": "ancestral", "steps": 4}
    teacher = None
    assert speculative.sampler_and_steps("", 0, student) == ("ancestral", 4)
    assert speculative.sampler_and_steps("spread", 8, student) == ("spread", 8)
    assert speculative.sampler_and_steps("", 0, teacher) == ("spread", 64)
    assert speculative.sampler_and_steps("", 2, teacher) == ("spread", 2)
