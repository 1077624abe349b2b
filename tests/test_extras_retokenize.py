"""
python -m pytest tests/test_extras_retokenize.py        samples, as an evaluator would cut them
"""

import json
import math

import pytest
import torch
from conftest import run, save_tiny, tiny_model

import data
from extras import retokenize

MINE = {"tokenizer": "char", "vocab_size": 3, "itos": ["a", "b", "ab"]}
EVALUATORS = {"tokenizer": "char", "vocab_size": 4, "itos": ["b", "a", "bb", "aa"]}
X = torch.tensor([[0, 0, 2, 1], [2, 2, 0, 0]])  # aa|abb, abab|aa


def test_text_is_cut_as_the_evaluators_tokenizer_cuts_it():
    decode = data.encoder(MINE)[1]
    y, is_new = retokenize.retokenized(X, 2, decode, data.encoder(EVALUATORS)[0])
    assert y[0, :3].tolist() == [3, 1, 2] and y[1].tolist() == [1, 0, 1, 0, 3]
    assert is_new.tolist() == [[False, True, True, False, False], [False] * 4 + [True]]


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
