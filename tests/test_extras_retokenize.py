"""
python -m pytest tests/test_extras_retokenize.py        samples, as an evaluator would cut them
"""

import json
import math

import pytest
import torch
from conftest import needs_gpt2, run, save_tiny, tiny_model

import data
from extras import retokenize

MINE = {"tokenizer": "char", "vocab_size": 3, "itos": ["a", "b", "ab"]}
EVALUATORS = {"tokenizer": "char", "vocab_size": 4, "itos": ["b", "a", "bb", "aa"]}
X = torch.tensor([[0, 0, 2, 1], [2, 2, 0, 0]])  # aa|abb, abab|aa


def test_text_is_cut_as_the_evaluators_tokenizer_cuts_it():
    y, is_new, n_characters = retokenize.retokenized(X, 2, MINE, EVALUATORS)
    assert y[0, :3].tolist() == [3, 1, 2] and y[1].tolist() == [1, 0, 1, 0, 3]
    assert is_new.tolist() == [[False, True, True, False, False], [False] * 4 + [True]]
    assert n_characters == len("abb") + len("aa")
    y, is_new, n_characters = retokenize.retokenized(X, 0, MINE, EVALUATORS)
    assert y[0, :3].tolist() == [3, 1, 2] and is_new.sum() == 3 + 5
    assert n_characters == len("abb") + len(
        "babaa"
    )  # nobody predicts the first aa, nor the first a


@torch.no_grad()
def expected(evaluator):
    """-> nats of the texts of X after their prefixes, by hand."""
    rows = ([3, 1, 2], [1, 0, 1, 0, 3])
    log_p = [evaluator(torch.tensor([row]))[0].log_softmax(-1) for row in rows]
    return -(log_p[0][0, 1] + log_p[0][1, 2] + log_p[1][3, 3]).item()


def test_perplexity_is_per_token_of_the_model_and_bits_per_character():
    evaluator = tiny_model(V=4, causal=True)
    row = retokenize.measure(X, 2, MINE, evaluator, EVALUATORS, 16)
    nats = expected(evaluator)
    assert row["texts"] == 2
    assert row["genppl"] == pytest.approx(math.exp(nats / 4), rel=1e-5)  # of 2 + 2 tokens of MINE
    assert row["bits_per_char"] == pytest.approx(nats / 5 / math.log(2), rel=1e-5)  # abb, aa


def test_a_repeated_end_of_text_is_not_scored():
    meta = {"tokenizer": "char", "vocab_size": 3, "itos": ["a", "b", "c"], "eot": 2}
    evaluator = tiny_model(V=3, causal=True)
    once = retokenize.measure(torch.tensor([[0, 1, 2]]), 0, meta, evaluator, meta, 16)
    twice = retokenize.measure(torch.tensor([[0, 1, 2, 2]]), 0, meta, evaluator, meta, 16)
    assert once["genppl"] == pytest.approx(twice["genppl"])


ENDED = {"tokenizer": "char", "vocab_size": 4, "itos": ["a", "b", "ab", "<end>"], "eot": 3}


def test_an_end_of_text_is_the_evaluators_one_token_and_no_character():
    """Its own tokenizer would read the five characters, if it knew them at all."""
    x = torch.tensor([[0, 3, 2, 0, 3, 3]])  # a, end, aba, end, end
    evaluators = {**EVALUATORS, "vocab_size": 5, "itos": [*EVALUATORS["itos"], "|"], "eot": 4}
    y, is_new, n_characters = retokenize.retokenized(x, 0, ENDED, evaluators)
    assert y.tolist() == [[1, 4, 1, 0, 1, 4, 4]] and is_new.all() and n_characters == 3
    y, is_new, n_characters = retokenize.retokenized(x, 2, ENDED, evaluators)
    assert y.tolist() == [[1, 4, 1, 0, 1, 4, 4]] and is_new.sum() == 5 and n_characters == 3
    y, _, _ = retokenize.retokenized(x, 2, ENDED, EVALUATORS)  # which has no end-of-text
    assert y.tolist() == [[1, 1, 0, 1]]


@needs_gpt2
def test_gpt2s_own_end_of_text_stays_one_token():
    x = torch.tensor([[50256, 464, 3797, 50256, 50256]])  # The cat
    y, _, n_characters = retokenize.retokenized(x, 0, data.GPT2_META, data.GPT2_META)
    assert torch.equal(y, x) and n_characters == len("The cat")


def test_texts_in_which_nothing_is_scored_end_in_one_line(error_of):
    evaluator = tiny_model(V=4, causal=True)
    for x in (X[:, :1], torch.tensor([[3, 3, 3]])):
        args = x, 0, ENDED, evaluator, {**EVALUATORS, "eot": 0}, 16
        assert "nothing that is scored" in error_of(retokenize.measure, *args)


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    evaluator = save_tiny(tmp_path / "ckpt.pt", EVALUATORS["itos"], causal=True)
    about = dict(ckpt="m", steps=4, causal=False, prefix=2, continuations=1)
    about |= dict(temperature=1.0, top_p=1.0, dataset="d", meta=MINE)
    lines = [about]
    decode = data.encoder(MINE)[1]
    lines += [{"tokens": row, "text": decode(row)} for row in X.tolist()]
    data.write_jsonl(tmp_path / "a.jsonl", lines)
    files = [f"--samples={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'new' / 'found.json'}"]
    how = [f"--evaluator={tmp_path / 'ckpt.pt'}", "--device=cpu"]
    shown, _ = run("-m", "extras.retokenize", *files, *how)
    (row,) = json.loads((tmp_path / "new" / "found.json").read_text())["rows"]
    assert row["genppl"] == pytest.approx(math.exp(expected(evaluator) / 4), rel=1e-4)
    assert "bits_per_char" in shown and row["model"] == "m"
    _, said = run("-m", "extras.retokenize", *how, ok=False)
    assert "--samples=" in said and "\n" not in said.strip()
