"""
python -m pytest tests/test_languages.py          languages of known truth: what K steps lose
"""

import math
import os
import runpy
import types

import pytest
import torch
from conftest import ROOT

from model import unmask
from plumbing.randomness import seeded

L = types.SimpleNamespace(**runpy.run_path(os.path.join(ROOT, "lessons", "languages.py")))
CONSTANT, COINS, VERBS, CHAIN = L.LANGUAGES.values()


class Perfect:
    """A network that knows the language: its hidden states are its log-probabilities."""

    def __init__(self, language):
        self.language = language
        self.words = sorted({word for x in language for word in x})
        self.mask_id = len(self.words)
        T = len(next(iter(language)))
        self.config = types.SimpleNamespace(block_size=T, vocab_size=self.mask_id, causal=False)

    def row(self, x):
        """A tuple of tokens -> (T, V)."""
        known = {i: self.words[token] for i, token in enumerate(x) if token != self.mask_id}
        predicted = [L.marginals(self.language, known, i) for i in range(len(x))]
        return torch.tensor([[p.get(word, 0.0) for word in self.words] for p in predicted]).log()

    def hidden(self, xt):
        xt = [tuple(x) for x in xt.tolist()]
        rows = {x: self.row(x) for x in set(xt)}
        return torch.stack([rows[x] for x in xt])

    def head(self, h):
        return h


@pytest.mark.parametrize("sampler", ["ancestral", "spread"])
@pytest.mark.parametrize("language", [CONSTANT, COINS, VERBS, CHAIN])
def test_the_sampler_draws_what_the_enumeration_says(language, sampler):
    model = Perfect(language)
    n_steps = 2
    n = 20_000
    masks = torch.full((n, model.config.block_size), model.mask_id)
    counts = {}
    for x in unmask(model, masks, n_steps, sampler, generator=seeded(0)).tolist():
        x = tuple(model.words[token] for token in x)
        counts[x] = counts.get(x, 0) + 1 / n
    exact = L.distribution_of(language, sampler, n_steps)
    assert sum(exact.values()) == pytest.approx(1)
    distance = sum(abs(exact.get(x, 0) - counts.get(x, 0)) for x in exact.keys() | counts.keys())
    assert distance / 2 < 0.03


def test_what_is_lost_by_hand():
    for K in (1, 2, 3):
        # two tokens fall into one step of K in one case of K, and then agree in half of the cases
        ancestral = L.distribution_of(COINS, "ancestral", K)
        assert L.valid(COINS, ancestral) == pytest.approx(1 - 1 / (2 * K))
        spread = L.distribution_of(COINS, "spread", K)
        assert L.valid(COINS, spread) == pytest.approx(1 if K > 1 else 1 / 2)
    one = L.distribution_of(CONSTANT, "spread", 1)
    assert L.valid(CONSTANT, one) == pytest.approx(3**-3)
    assert L.lost(CONSTANT, one) == pytest.approx(3 * math.log(3))
    assert L.valid(CONSTANT, L.distribution_of(CONSTANT, "spread", 2)) == pytest.approx(1 / 3)


def test_a_step_for_each_token_loses_nothing():
    for language in L.LANGUAGES.values():
        samples = L.distribution_of(language, "spread", 6)
        assert L.lost(language, samples) == pytest.approx(0, abs=1e-12)


def test_a_temperature_does_not_make_coins_agree():
    cold = L.distribution_of(COINS, "spread", 1, temperature=0.1)
    assert L.valid(COINS, cold) == pytest.approx(1 / 2)


def test_distance_between_tokens_of_one_step_helps_a_chain():
    for K in (2, 3):
        spread = L.lost(CHAIN, L.distribution_of(CHAIN, "spread", K))
        ancestral = L.lost(CHAIN, L.distribution_of(CHAIN, "ancestral", K))
        assert spread < 0.8 * ancestral
