"""
python -m pytest tests/test_languages.py          languages of known truth: what K calls of a perfect network lose
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
    """A network that knows the language: its hidden states are the log-probabilities of each place."""

    def __init__(self, language):
        self.language, self.words = language, sorted({word for x in language for word in x})
        self.mask_id = len(self.words)
        T = len(next(iter(language)))
        self.config = types.SimpleNamespace(block_size=T, vocab_size=self.mask_id, causal=False)

    def hidden(self, xt):
        rows = {}
        for x in {tuple(x) for x in xt.tolist()}:
            known = {i: self.words[v] for i, v in enumerate(x) if v != self.mask_id}
            ps = [L.marginals(self.language, known, i) for i in range(len(x))]
            rows[x] = torch.tensor([[p.get(word, 0.0) for word in self.words] for p in ps]).log()
        return torch.stack([rows[tuple(x)] for x in xt.tolist()])

    def head(self, h):
        return h

    def __call__(self, xt):  # a student's sampler may ask so
        return self.head(self.hidden(xt))


@pytest.mark.parametrize("sampler", ["ancestral", "spread"])
@pytest.mark.parametrize("language", [CONSTANT, COINS, VERBS, CHAIN])
def test_the_sampler_writes_what_the_enumeration_says(language, sampler):
    model, K, n = Perfect(language), 2, 20_000
    blank = torch.full((n, model.config.block_size), model.mask_id)
    counts = {}
    for x in unmask(model, blank, K, sampler, generator=seeded(0)).tolist():
        x = tuple(model.words[v] for v in x)
        counts[x] = counts.get(x, 0) + 1 / n
    law = L.law_of(language, sampler, K)
    assert sum(law.values()) == pytest.approx(1)
    assert sum(abs(law.get(x, 0) - counts.get(x, 0)) for x in law.keys() | counts.keys()) / 2 < 0.03


def test_what_is_lost_by_hand():
    for K in (
        1,
        2,
        3,
    ):  # two tokens fall into one call of K in one case of K, and then agree by chance
        assert L.valid(COINS, L.law_of(COINS, "ancestral", K)) == pytest.approx(1 - 1 / (2 * K))
        assert L.valid(COINS, L.law_of(COINS, "spread", K)) == pytest.approx(1 if K > 1 else 1 / 2)
    one = L.law_of(CONSTANT, "spread", 1)
    assert L.valid(CONSTANT, one) == pytest.approx(3**-3) and L.lost(
        CONSTANT, one
    ) == pytest.approx(3 * math.log(3))
    assert L.valid(CONSTANT, L.law_of(CONSTANT, "spread", 2)) == pytest.approx(1 / 3)
    for language in L.LANGUAGES.values():  # a call for each token loses nothing
        assert L.lost(language, L.law_of(language, "spread", 6)) == pytest.approx(0, abs=1e-12)


def test_a_temperature_does_not_make_coins_agree_and_distance_makes_a_chain():
    assert L.valid(COINS, L.law_of(COINS, "spread", 1, 0.1)) == pytest.approx(1 / 2)
    for K in (2, 3):
        assert L.lost(CHAIN, L.law_of(CHAIN, "spread", K)) < 0.8 * L.lost(
            CHAIN, L.law_of(CHAIN, "ancestral", K)
        )
