"""
python -m pytest tests/test_extras_markov.py
"""

import json
import math

import numpy as np
import pytest
import torch
from conftest import run

import data
from extras import markov as extra


def test_markov_probability_of_a_known_text():
    meta = {"transition": [[0.9, 0.1], [0.3, 0.7]]}
    x = torch.tensor([[0, 0, 1, 1]])
    assert extra.markov_nats(x, meta) == pytest.approx(-math.log(0.9 * 0.1 * 0.7) / 3)


def test_true_text_has_the_true_perplexity(markov):
    corpus = data.load(markov)
    x = torch.from_numpy(np.array(corpus.val[:16000].reshape(-1, 160), dtype=np.int64))
    assert abs(extra.markov_nats(x, corpus.meta) - corpus.meta["entropy_rate"]) < 0.03


def test_the_truth_of_a_block_has_a_first_token():
    meta = {"entropy_rate": 1.0, "stationary_entropy": 2.0}
    assert extra.true_nats(meta, 16, causal=True) == 1.0
    assert extra.true_nats(meta, 16, causal=False) == pytest.approx((2 + 15) / 16)


def test_the_command_says_likelihood_truth_and_true_perplexity(trained, tmp_path):
    ckpt = ",".join(trained.values())
    how = [f"--ckpt={ckpt}", "--steps=1,16", "--num_samples=4", "--eval_blocks=8", "--device=cpu"]
    said, _ = run("-m", "extras.markov", *how, f"--out={tmp_path}/markov.json")
    assert said.count("the true entropy is") == 2 and "true_ppl" in said
    report = json.loads((tmp_path / "markov.json").read_text())
    for path, row in report["likelihood"].items():
        assert row["nats"] > row["truth"], path  # six steps of training
    names = [(r["model"], r["steps"]) for r in report["rows"]]
    diffusion = [(trained["diffusion"], 1), (trained["diffusion"], 16)]
    assert names == [*diffusion, (trained["ar"], 16), ("real text", None)]
    assert report["rows"][-1]["true_ppl"] < min(r["true_ppl"] for r in report["rows"][:-1])


def test_a_dataset_of_unknown_distribution_ends_in_one_line(pydoc, tmp_path, error_of):
    meta = data.load(pydoc).meta
    about = {"ckpt": "elsewhere", "steps": 1, "causal": False, "temperature": 0.5, "top_p": 1}
    about |= {"prefix": 0, "continuations": 1, "dataset": pydoc, "meta": meta}
    data.write_jsonl(tmp_path / "a.jsonl", [about, {"tokens": [1] * 16}])
    kw = {"ckpt": "", "samples": str(tmp_path / "a.jsonl"), "device": "cpu"}
    cfg = type(extra.cfg)(**{**vars(extra.cfg), **kw})
    assert "use data/markov" in error_of(extra.evaluate, cfg)


def test_knobs_that_measure_nothing_end_in_one_line(error_of):
    for knob, value, words in (
        ("ckpt", "", "nothing to evaluate"),
        ("eval_blocks", 0, "eval_blocks is 0"),
        ("draws", 0, "draws is 0"),
    ):
        cfg = type(extra.cfg)(**{**vars(extra.cfg), knob: value})
        assert words in error_of(extra.evaluate, cfg)
