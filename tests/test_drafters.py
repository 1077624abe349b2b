"""
python -m pytest tests/test_drafters.py          n-grams, LSTM, CNN, prompt lookup, and loading them
"""

import itertools

import numpy as np
import pytest
import reference
import test_model
import torch
from conftest import knobs, save_tiny, tiny_model

import drafters
import train
from drafters import Lookup, NGram, load_drafter
from model import probabilities
from plumbing.randomness import seeded
from speculative import Network

pytestmark = pytest.mark.numerics
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}

# --------------------------------------------------------------------------------------------------
# networks (that they see the past only is tested in test_model.py)


def test_an_lstm_that_sees_the_future_fails_the_test_of_causality(monkeypatch):
    """Bidirectional, as FastLLM's."""

    class Both(torch.nn.LSTM):
        def __init__(self, C, H, batch_first):
            super().__init__(C, H // 2, batch_first=batch_first, bidirectional=True)

    monkeypatch.setattr(drafters.nn, "LSTM", Both)
    with pytest.raises(AssertionError):
        test_model.test_small_networks_see_the_past_only_and_train_in_every_weight("lstm")


def test_a_cnn_that_is_padded_on_both_sides_fails_the_test_of_causality(monkeypatch):
    pad = torch.nn.functional.pad
    n = drafters.KERNEL_SIZE // 2
    monkeypatch.setattr(drafters.F, "pad", lambda x, sides: pad(x, (0, 0, n, n)))
    with pytest.raises(AssertionError):
        test_model.test_small_networks_see_the_past_only_and_train_in_every_weight("cnn")


# --------------------------------------------------------------------------------------------------
# n-grams


@pytest.mark.parametrize("smoothing", ["kneser_ney", "laplace"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_an_ngram_equals_the_nested_loops_also_for_unseen_contexts(n, smoothing):
    rng = np.random.default_rng(0)
    tokens = rng.choice(5, 60, p=[0.4, 0.3, 0.2, 0.1, 0.0])  # token 4 is never seen
    model = NGram(n, 5, smoothing).fit(tokens)
    contexts = list(itertools.product(range(5), repeat=n - 1))
    contexts = contexts[:: 1 if n < 5 else 17]
    found = torch.stack([torch.from_numpy(model.probs(list(c))) for c in contexts])
    if smoothing == "laplace":
        counts = reference.DictNGram(n, 5).fit(tokens)
        expected = torch.stack([counts.log_probs(c).exp() for c in contexts])
    else:
        tokens = tokens.tolist()
        expected = torch.tensor([reference.kneser_ney(tokens, list(c), n, 5) for c in contexts])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (found.sum(1) - 1).abs().max() < 1e-6 and (found > 0).all()


def test_no_ngram_spans_two_texts():
    rows = np.random.default_rng(0).integers(5, size=(4, 30))
    model = NGram(3, 5).fit(rows)
    expected = {}
    for row in rows.tolist():
        for gram in zip(row, row[1:], row[2:], strict=False):
            expected[gram] = expected.get(gram, 0) + 1
    found = zip(map(tuple, model.grams(3).tolist()), model.counts[2].tolist(), strict=True)
    assert dict(found) == expected


@pytest.mark.parametrize("n", [1, 3])
def test_an_ngram_scores_every_position_as_it_does_when_it_proposes(n):
    model = NGram(n, 5).fit(np.random.default_rng(0).integers(5, size=300))
    x = torch.randint(5, (2, 9), generator=seeded(0))
    logits = model.logits(x)
    assert logits.shape == (2, 9, 5)
    for row, of_row in zip(x, logits, strict=True):
        for length in range(1, 10):
            drafts, q = model.propose(row[:length], 1, PLAIN, seeded(0))
            assert len(drafts) == 1
            torch.testing.assert_close(q[0], of_row[length - 1].softmax(-1))


def test_an_ngram_proposes_each_draft_after_the_one_before_and_by_the_settings():
    model = NGram(3, 5).fit(np.random.default_rng(0).integers(5, size=300))
    x = torch.tensor([1, 2, 3, 4])
    settings = {"temperature": 0.7, "top_k": 3, "top_p": 0.9}
    drafts, q = model.propose(x, 4, settings, seeded(0))
    assert len(drafts) == len(q) == 4
    text = torch.cat([x, drafts])
    expected = probabilities(model.logits(text[None])[0, 3:-1], **settings)
    torch.testing.assert_close(torch.stack(q), expected)
    assert (torch.stack(q).gather(1, drafts[:, None]) > 0).all()


@pytest.mark.parametrize("n", [1, 3, 5])
def test_ngram_files_are_readable_text_and_load_to_the_same_model(n, tmp_path):
    tokens = np.random.default_rng(0).integers(7, size=500)
    model = NGram(n, 7).fit(tokens)
    meta = {"tokenizer": "char", "vocab_size": 7}
    path = tmp_path / "ngram.txt"
    model.save(path, meta)
    loaded, found = NGram.load(path)
    idx = torch.randint(7, (3, 11))
    assert torch.equal(model.logits(idx), loaded.logits(idx)) and found == meta
    lines = path.read_text().splitlines()
    assert '"smoothing": "kneser_ney"' in lines[0]
    count, *gram = map(int, lines[-1].split())
    assert len(gram) == n
    assert count == sum(tokens[i : i + n].tolist() == gram for i in range(501 - n))


def test_smoothing_discount_and_alpha_are_kept_in_an_ngrams_file(tmp_path):
    tokens = np.random.default_rng(0).integers(7, size=500)
    path = tmp_path / "ngram.txt"
    NGram(2, 7, "laplace", discount=0.5, alpha=0.3).fit(tokens).save(path, {})
    model, _ = NGram.load(path)
    assert (model.smoothing, model.discount, model.alpha) == ("laplace", 0.5, 0.3)


def test_damaged_ngram_files_raise_in_one_line(tmp_path, error_of):
    path = tmp_path / "ngram.txt"
    NGram(3, 7).fit(np.random.default_rng(0).integers(7, size=500)).save(path, {})
    text = path.read_text()
    lines = text.splitlines()
    damaged = {
        "cut": "\n".join(lines[: len(lines) // 2]),
        "other": "hello\n",
        "empty": "",
        "no numbers": text.replace(lines[-1], "a b c d"),
        "no header": "\n".join(lines[1:]),
        "unknown option": text.replace('"alpha"', '"beta"'),
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(content)
        assert "damaged" in error_of(NGram.load, path), name
    assert "python train.py --arch=ngram" in error_of(NGram.load, str(tmp_path / "none.txt"))


def test_a_text_shorter_than_an_ngram_raises(error_of):
    assert "4 tokens" in error_of(NGram(5, 7).fit, np.arange(4))
    assert "'none'" in error_of(NGram, 3, 7, "none")


# --------------------------------------------------------------------------------------------------
# prompt lookup


def propose(x, n):
    drafts, q = Lookup(5).propose(torch.tensor(x), n, PLAIN, None)
    assert len(drafts) == len(q)
    for draft, p in zip(drafts.tolist(), q, strict=True):
        assert p[draft] == 1 and p.sum() == 1
    return drafts.tolist()


def test_lookup_continues_the_longest_match_and_of_those_the_latest():
    # 1 2 0 was followed by 3, though 2 0 was followed by 1 later
    assert propose([1, 2, 0, 3, 2, 0, 1, 2, 0], 1) == [3]
    assert propose([1, 2, 0, 3, 2, 0, 1, 2, 0], 4) == [3, 2, 0, 1]
    assert propose([1, 2, 3, 1, 2, 4, 1, 2], 2) == [4, 1]


def test_lookup_repeats_a_match_that_runs_into_the_end():
    assert propose([3, 3, 1, 4, 2, 4, 2, 4], 5) == [2, 4, 2, 4, 2]
    assert propose([3, 3, 3, 3], 3) == [3, 3, 3]


def test_lookup_proposes_nothing_without_a_match_of_two_tokens():
    for x in ([1], [1, 2], [1, 1], [1, 2, 3, 1], [0, 1, 2, 3, 4, 0, 2]):
        assert propose(x, 3) == []
    assert propose([1, 2, 3, 1, 2], 0) == []


# --------------------------------------------------------------------------------------------------
# loading

LETTERS = list("abcdefg")
META = {"tokenizer": "char", "vocab_size": 7, "itos": LETTERS}


@pytest.mark.parametrize("arch", ["gpt", "lstm", "cnn"])
def test_a_checkpoint_becomes_a_drafter(arch, tmp_path):
    target = tiny_model(causal=True)
    model = save_tiny(tmp_path / "d.pt", LETTERS, causal=True, seed=2, arch=arch)
    drafter = load_drafter(str(tmp_path / "d.pt"), target, META)
    assert isinstance(drafter, Network)
    x = torch.randint(7, (1, 16), generator=seeded(0))
    assert torch.equal(drafter.logits(x), model(x))


def test_lookup_and_ngram_files_are_drafters_by_their_names(tmp_path):
    target = tiny_model(causal=True)
    assert isinstance(load_drafter("lookup", target, META), Lookup)
    path = tmp_path / "ngram.txt"
    NGram(2, 7).fit(np.arange(50) % 7).save(path, META)
    assert isinstance(load_drafter(str(path), target, META), NGram)


def test_drafters_that_do_not_fit_raise(tmp_path, error_of):
    target = tiny_model(causal=True)
    path = str(tmp_path / "d.pt")
    assert "is a diffusion model" in error_of(load_drafter, "lookup", tiny_model(), META)
    save_tiny(path, LETTERS, causal=False)
    assert "extras.diffusion_drafter" in error_of(load_drafter, path, target, META)
    save_tiny(path, list("ABCDEFG"), causal=True)
    assert "another vocabulary" in error_of(load_drafter, path, target, META)
    assert "There is no" in error_of(load_drafter, str(tmp_path / "none.pt"), target, META)


def test_the_knobs_of_an_ngram_reach_its_file(markov, tmp_path):
    own = {"dataset": markov, "arch": "ngram", "ngram_n": 2, "smoothing": "laplace"}
    train.main(knobs(tmp_path / "run", **own))
    model, _ = NGram.load(tmp_path / "run" / "ngram.txt")
    assert (model.n, model.smoothing) == (2, "laplace")
