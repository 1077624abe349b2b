"""
python -m pytest tests/test_speculative.py          speculative decoding has exactly the target's law, with any drafter
"""

import itertools
import types

import numpy as np
import pytest
import reference
import torch
import torch._dynamo.testing
from conftest import knobs, tiny_model

import drafters
import speculative
import train
from drafters import Diffusion, Lookup, NGram
from model import probabilities
from plumbing.randomness import seeded
from speculative import generate, speculate

pytestmark = pytest.mark.numerics
V = 3


def target_model(V=V):
    return tiny_model(V=V, causal=True, seed=1)


def drafter(name, V=V, block_size=16):
    """A drafter that differs from the target, for V tokens."""
    if name == "ngram":
        return NGram(3, V).fit(torch.randint(V, (200,), generator=seeded(4)).numpy())
    if name == "lookup":
        return Lookup(V)
    if name.startswith("diffusion"):
        kw = {
            "diffusion": {},
            "diffusion, 2 groups": {"steps": 2},
            "diffusion, short window": {"window": 1},
        }[name]
        return Diffusion(tiny_model(V=V, seed=2, block_size=block_size), **kw)
    return tiny_model(V=V, causal=True, seed=2, arch=name, block_size=block_size)


DRAFTERS = [
    "ngram",
    "lookup",
    "diffusion",
    "diffusion, 2 groups",
    "diffusion, short window",
    "gpt",
    "lstm",
    "cnn",
]


class Paths:
    """Runs f once for every sequence of random choices it can make, in place of draw_from and bernoulli."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(drafters, "draw_from", self.draw_from)
        monkeypatch.setattr(speculative, "draw_from", self.draw_from)
        monkeypatch.setattr(speculative, "bernoulli", self.bernoulli)

    def choose(self, weights):
        """Depth first: the choices of `plan`, then always the first possible one."""
        at = len(self.taken)
        possible = [i for i, w in enumerate(weights) if w > 0]
        i = self.plan[at] if at < len(self.plan) else 0
        self.taken.append((i, len(possible)))
        self.weight *= weights[possible[i]]
        return possible[i]

    def draw_from(self, p, generator=None):
        flat = p.reshape(-1, p.size(-1)).double()
        return torch.tensor([self.choose((row / row.sum()).tolist()) for row in flat]).view(
            p.shape[:-1]
        )

    def bernoulli(self, chance, generator):
        out = []
        for a in chance.double().flatten().tolist():
            # after a refusal nothing looks at the rest: one path instead of two
            out.append(self.choose([1 - a, a]) == 1 if not (out and out[-1] is False) else False)
        return torch.tensor(out).view(chance.shape)

    def law(self, f):
        """-> {f(): probability}."""
        law, self.plan = {}, []
        while True:
            self.taken, self.weight = [], 1.0
            x = f()
            law[x] = law.get(x, 0.0) + self.weight
            while self.taken and self.taken[-1][0] + 1 == self.taken[-1][1]:
                self.taken.pop()
            if not self.taken:
                return law
            self.plan = [i for i, _ in self.taken]
            self.plan[-1] += 1


@torch.no_grad()
def target_law(target, prompt, n_new, eos=None, **settings):
    """-> {tokens: probability} of autoregressive sampling, every sequence one by one."""
    law = {}
    for new in itertools.product(range(target.config.vocab_size), repeat=n_new):
        weight = 1.0
        for i in range(n_new):
            if eos is not None and eos in new[:i]:
                weight *= new[i] == eos
                continue
            p = probabilities(
                target(torch.tensor([[*prompt, *new[:i]]]))[0, -1], *settings.values()
            )
            weight *= p[new[i]].item()
        if weight > 0:
            law[(*prompt, *new)] = weight
    return law


def distance(a, b):
    return sum(abs(a.get(x, 0) - b.get(x, 0)) for x in a.keys() | b.keys()) / 2


PROMPT = [0, 1, 1, 0, 1]


def speculative_law(monkeypatch, name, gamma, n_new=3, eos=None, V=V, **settings):
    paths = Paths(monkeypatch)
    target, guess, idx = target_model(V), drafter(name, V), torch.tensor([PROMPT])
    return paths.law(
        lambda: tuple(
            speculate(target, guess, idx, n_new, gamma, eos=eos, **settings)[0][0].tolist()
        )
    )


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("name", DRAFTERS)
def test_the_law_is_the_targets_by_enumeration(name, gamma, monkeypatch):
    n_new, V = (
        (3, 3) if gamma < 3 else (4, 2)
    )  # 4 more tokens are at most 3 drafted ones and a free one
    law = speculative_law(monkeypatch, name, gamma, n_new, V=V)
    assert sum(law.values()) == pytest.approx(1)
    assert distance(law, target_law(target_model(V), PROMPT, n_new)) < 1e-5


@pytest.mark.parametrize(
    "settings", [(0.7, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.8), (0.0, 0, 1.0), (1.5, 2, 0.9)]
)
@pytest.mark.parametrize("name", ["gpt", "lookup", "diffusion"])
def test_the_law_holds_for_temperature_top_k_and_top_p(name, settings, monkeypatch):
    settings = dict(zip(("temperature", "top_k", "top_p"), settings, strict=True))
    law = speculative_law(monkeypatch, name, 2, **settings)
    assert distance(law, target_law(target_model(), PROMPT, 3, **settings)) < 1e-5


@pytest.mark.parametrize("name", ["gpt", "ngram"])
def test_the_law_holds_with_an_end_of_text_inside_the_draft(name, monkeypatch):
    law = speculative_law(monkeypatch, name, 3, n_new=4, eos=1, V=2)
    assert distance(law, target_law(target_model(2), PROMPT, 4, eos=1)) < 1e-5
    assert all(1 not in x[5:] or set(x[5 + x[5:].index(1) :]) == {1} for x in law)


# Every known mistake, put into the code: the enumeration must see it.


def scalar_residual(p, q):
    """Subtracts one number instead of a distribution."""
    rest = (p - q.max(-1, keepdim=True).values).clamp(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest / rest.sum(-1, keepdim=True), p)


def fresh_resample(p, q):
    """Draws from p again where the draft was refused."""
    return p


def off_by_one_target(model, cache, x, n, k, real=speculative.logits_after):
    """Judges every token by the distribution of the one before it."""
    logits = real(model, cache, x, n, k)
    return logits.roll(1, 1) if k > 1 else logits


def counts_after_the_first_refusal(monkeypatch):
    real = torch.Tensor.cumprod
    monkeypatch.setattr(
        torch.Tensor, "cumprod", lambda x, dim: x if x.dtype == torch.int64 else real(x, dim)
    )


@pytest.mark.parametrize("name", ["gpt", "lookup"])
def test_known_mistakes_are_seen(name, monkeypatch):
    exact = target_law(target_model(), PROMPT, 3)
    for attribute, wrong in (
        ("residual", scalar_residual),
        ("residual", fresh_resample),
        ("logits_after", off_by_one_target),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speculative, attribute, wrong)
            assert distance(speculative_law(patch, name, 2), exact) > 0.01, wrong
    assert (
        distance(speculative_law(monkeypatch, name, 2), exact) < 1e-5
    )  # and without them, nothing


def test_counting_after_the_first_refusal_is_seen(monkeypatch):
    """bernoulli must answer for every token here, as it does in a real run."""
    exact = target_law(target_model(), PROMPT, 3)
    monkeypatch.setattr(
        Paths,
        "bernoulli",
        lambda self, a, g: torch.tensor([[self.choose([1 - p, p]) == 1 for p in a[0].tolist()]]),
    )
    with pytest.MonkeyPatch.context() as patch:
        assert distance(speculative_law(patch, "gpt", 2), exact) < 1e-5
    counts_after_the_first_refusal(monkeypatch)
    assert distance(speculative_law(monkeypatch, "gpt", 2), exact) > 0.01


def test_an_lstm_that_sees_the_future_is_seen(monkeypatch):
    """Bidirectional, as FastLLM's: the causality test of test_model.py fails, and so does the one of the cache."""
    import test_model

    class Both(torch.nn.LSTM):
        def __init__(self, C, H, batch_first):
            super().__init__(C, H // 2, batch_first=batch_first, bidirectional=True)

    monkeypatch.setattr(drafters.nn, "LSTM", Both)
    with pytest.raises(AssertionError):
        test_model.test_small_architectures_see_the_past_only_and_train_in_every_weight(
            "lstm", None
        )


def test_a_draft_in_any_order_is_refused_with_the_reason(refused):
    model = tiny_model(V=V)
    said = refused(Diffusion, model, steps=2, order="any")
    assert "q(x_j | x before j)" in said and "lossless" in said
    Diffusion(model, steps=1, order="any")  # one step has no order


@torch.no_grad()
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_text_is_the_targets_own_in_a_batch_and_at_every_length(name, gamma):
    """Rows accept differently, so that the caches' rows differ; the last tokens fill the whole context."""
    target = tiny_model(V=V, causal=True, seed=1, block_size=32)
    guess = drafter(name, block_size=32)
    idx = torch.randint(V, (5, 3), generator=seeded(0))
    for n_new in (0, 1, 2, 7, 29):
        got, counts = speculate(target, guess, idx, n_new, gamma, temperature=0)
        assert torch.equal(got, generate(target, idx, n_new, temperature=0))
        made = sum(counts.accepted) + counts.row_calls
        assert made == 5 * n_new and counts.drafted.sum() == sum(counts.accepted)


@torch.no_grad()
def test_a_compiled_gpt_writes_the_same_and_is_compiled_twice_however_long_the_text():
    """Once for the first token, once for any later one: the cache's length is no constant of the compiled code."""
    torch._dynamo.reset()  # what other tests compiled counts, too
    target, counter = target_model(), torch._dynamo.testing.CompileCounter()
    expected = generate(target, torch.tensor([PROMPT]), 12, generator=seeded(1))
    target.hidden = torch.compile(target.hidden, backend=counter)
    assert generate(target, torch.tensor([PROMPT]), 12, generator=seeded(1)).equal(expected)
    assert counter.frame_count == 2


@torch.no_grad()
@pytest.mark.parametrize("name", DRAFTERS)
def test_batched_sampling_has_the_targets_frequencies_for_every_prompt(name):
    """Rows of different prompts accept differently; eos ends some of them. Chi-square against the exact law."""
    target, n = tiny_model(V=2, causal=True, seed=1), 2000
    prompts = torch.tensor([[0, 1, 1], [1, 0, 0]])
    got, _ = speculate(
        target, drafter(name, 2), prompts.repeat(n, 1), 4, 2, generator=seeded(1), eos=1
    )
    for prompt in prompts.tolist():
        exact = target_law(target, prompt, 4, eos=1)
        rows = [tuple(x) for x in got.tolist() if x[:3] == prompt]
        assert len(rows) == n and set(rows) <= exact.keys()
        chi2 = sum((rows.count(x) - n * p) ** 2 / (n * p) for x, p in exact.items())
        assert chi2 < 20  # 4 degrees of freedom: exceeded once in 2000


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "lstm", "cnn"])
def test_a_drafter_never_reads_what_was_refused(name, monkeypatch):
    """Its distributions are those of a forward pass without a cache in every round, also where other rows end first."""
    target, guess = (
        tiny_model(V=V, causal=True, seed=1, block_size=32),
        drafter(name, block_size=32),
    )
    real, checked = speculative.propose, []

    def propose(model, cache, x, n, gamma, *args):
        drafts, q = real(model, cache, x, n, gamma, *args)
        for row in range(len(n)):
            for j in range(gamma):
                text = torch.cat([x[row, : n[row]], drafts[row, :j]])[None]
                torch.testing.assert_close(
                    q[row, j], model(text)[0, -1].softmax(-1), atol=1e-5, rtol=1e-4
                )
                checked.append(1)
        return drafts, q

    monkeypatch.setattr(speculative, "propose", propose)
    speculate(
        target, guess, torch.randint(V, (6, 3), generator=seeded(0)), 25, 3, generator=seeded(1)
    )
    assert len(checked) > 100


@torch.no_grad()
def test_acceptance_by_counting_is_the_overlap():
    """alpha = E sum_x min(p, q); for a draft equal to the target it is 1, and calls fall by gamma + 1."""
    target = tiny_model(V=V, causal=True, seed=1, block_size=64)
    idx = torch.zeros(50, 1, dtype=torch.long)
    _, counts = speculate(target, target, idx, 60, 4, generator=seeded(0))
    assert counts.accepted.equal(counts.tested) and counts.row_calls == 50 * 12
    guess = tiny_model(V=V, causal=True, seed=2, block_size=64)
    x, counts = speculate(target, guess, idx, 60, 1, generator=seeded(0))
    p, q = target(x).softmax(-1), guess(x).softmax(-1)
    overlap = torch.minimum(p, q).sum(-1)[:, :-2].mean().item()
    assert counts.accepted[0] / counts.tested[0] == pytest.approx(overlap, abs=0.03)


def test_predicted_speedup_by_hand():
    assert speculative.predicted_speedup(0.5, 0.1, 1) == pytest.approx(1.5 / 1.1)
    assert speculative.predicted_speedup(1.0, 0.0, 3) == 4
    assert speculative.predicted_speedup(1.0, 0.0, 3, call=1.6) == pytest.approx(4 / 1.6)
    counts = types.SimpleNamespace(draft_s=2.0, drafts=40, target_s=15.0, rounds=10)
    assert speculative.costs(counts, step_s=0.5) == (0.1, 3.0)
    measured = {1: (0.1, 1.0), 2: (0.1, 1.1), 4: (0.1, 2.0)}
    assert speculative.best_gamma(None, None, 0.8, measured) == (
        2,
        pytest.approx((1 + 0.8 + 0.64) / 1.3),
    )
    by_place = types.SimpleNamespace(
        accepted=torch.tensor([80, 8]), tested=torch.tensor([100, 80])
    )  # 0.8, 0.1: not 0.8 and 0.64
    assert speculative.best_gamma(Diffusion(None), by_place, 0.8, measured) == (
        1,
        pytest.approx(1.8 / 1.1),
    )
    assert speculative.predicted_speedup(0.0, 0.5, 2) == pytest.approx(0.5)


def test_texts_longer_than_a_context_are_refused(refused):
    said = refused(speculate, target_model(), Lookup(V), torch.zeros(1, 10, dtype=torch.long), 7)
    assert "17 tokens are more than the context of 16" in said


# ----------------------------------------------------------------------------------------------------------------------
# n-grams


@pytest.mark.parametrize("smoothing", ["kneser_ney", "laplace"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ngram_equals_the_nested_loops_also_for_unseen_contexts(n, smoothing):
    rng = np.random.default_rng(0)
    tokens = rng.choice(5, 60, p=[0.4, 0.3, 0.2, 0.1, 0.0])  # token 4 is never seen
    model = NGram(n, 5, smoothing).fit(tokens)
    contexts = [list(c) for c in itertools.product(range(5), repeat=n - 1)][:: 1 if n < 5 else 17]
    got = model.log_probs(np.array(contexts, dtype=np.int64).reshape(len(contexts), n - 1)).exp()
    if smoothing == "laplace":
        want = torch.stack(
            [reference.DictNGram(n, 5).fit(tokens).log_probs(c).exp() for c in contexts]
        )
    else:
        want = torch.tensor([reference.kneser_ney(tokens.tolist(), c, n, 5) for c in contexts])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    assert (got.sum(1) - 1).abs().max() < 1e-6 and (got > 0).all()


def test_ngram_predicts_every_position_causally_and_as_it_does_step_by_step():
    model = NGram(3, 5).fit(np.random.default_rng(0).integers(5, size=300))
    idx = torch.randint(5, (2, 9))
    whole = model(idx)
    for n in range(1, 10):
        torch.testing.assert_close(model.next_logits(idx, torch.tensor([n, n])), whole[:, n - 1])
    assert NGram(1, 5).fit(np.arange(5))(idx).shape == (2, 9, 5)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_ngram_files_are_readable_text_and_load_to_the_same_model(n, tmp_path, refused):
    tokens = np.random.default_rng(0).integers(7, size=500)
    model, meta = NGram(n, 7).fit(tokens), {"tokenizer": "char", "vocab_size": 7}
    model.save(tmp_path / "ngram.txt", meta)
    loaded, found = NGram.load(tmp_path / "ngram.txt")
    idx = torch.randint(7, (3, 11))
    assert torch.equal(model(idx), loaded(idx)) and found == meta
    lines = (tmp_path / "ngram.txt").read_text().splitlines()
    assert '"smoothing": "kneser_ney"' in lines[0]
    count, *gram = map(int, lines[-1].split())
    assert len(gram) == n and count == sum(
        tokens[i : i + n].tolist() == gram for i in range(501 - n)
    )
    (tmp_path / "cut.txt").write_text("\n".join(lines[: len(lines) // 2]))
    assert "damaged" in refused(NGram.load, tmp_path / "cut.txt")
    (tmp_path / "none.txt").write_text("hello\n")
    assert "damaged" in refused(NGram.load, tmp_path / "none.txt")


def test_the_knobs_of_an_ngram_reach_its_file(markov, tmp_path, refused):
    kw = dict(dataset=markov, arch="ngram", ngram_n=2)
    train.main(knobs(tmp_path / "a", **kw, ngram_discount=0.5, ngram_alpha=0.3))
    model, _ = NGram.load(tmp_path / "a" / "ngram.txt")
    assert (model.discount, model.alpha) == (0.5, 0.3)
    assert "ngram_alpha is 0.0" in refused(train.main, knobs(tmp_path / "b", **kw, ngram_alpha=0.0))


def test_lookup_continues_the_longest_match():
    x = torch.tensor([[1, 2, 0, 3, 2, 0, 1, 2, 0, 0], [3, 3, 1, 4, 2, 4, 2, 4, 0, 0]])
    guess = Lookup(5).next_logits(x, torch.tensor([9, 8])).argmax(-1)
    assert guess.tolist() == [
        3,
        2,
    ]  # 1 2 0 was followed by 3, though 2 0 was followed by 1 later; 4 2 4 by 2
