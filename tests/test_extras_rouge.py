"""
python -m pytest tests/test_extras_rouge.py          needs: pip install rouge-score
"""

import json
import types

import pytest
import torch
from conftest import save_tiny

import data
from drafters import load_model
from extras import rouge as extra

pytest.importorskip("rouge_score")
LETTERS = list("abcd ")


@pytest.fixture
def case(tmp_path):
    """-> settings of a tiny target and eight prompts with references."""
    save_tiny(tmp_path / "ar.pt", LETTERS, causal=True, block_size=32)
    save_tiny(tmp_path / "small.pt", LETTERS, causal=True, block_size=32, n_layer=1)
    lines = [{"prompt": f"{LETTERS[i % 4]} b", "reference": "a b c d a b c"} for i in range(8)]
    data.write_jsonl(tmp_path / "prompts.jsonl", lines)
    own = dict(ckpt=str(tmp_path / "ar.pt"), draft=f"{tmp_path}/small.pt,lookup", length=24)
    own |= dict(prompts=str(tmp_path / "prompts.jsonl"), device="cpu", dtype="float32", top_k=0)
    return types.SimpleNamespace(**{**vars(extra.cfg), **own})


def test_rouge_2_of_known_texts():
    mean, error = extra.rouge_2_f1(["the cat sat", "the cat sat"], ["the cat sat", "a dog ran"])
    assert mean == pytest.approx(0.5) and error == pytest.approx(0.5)


def test_a_text_ends_with_its_end_of_text():
    meta = {"tokenizer": "char", "vocab_size": 5, "itos": LETTERS, "eot": 4}
    assert extra.text_of(torch.tensor([0, 1, 2, 4, 3]), 1, meta) == "bc"
    assert extra.text_of(torch.tensor([0, 1, 2, 3]), 2, meta) == "cd"


def test_the_target_is_scored_alone_and_with_each_drafter(case, tmp_path, capsys):
    case.out = str(tmp_path / "rouge.json")
    extra.main(case)
    report = json.loads((tmp_path / "rouge.json").read_text())
    assert list(report) == ["the target alone", *case.draft.split(",")]
    assert all(0 <= mean <= 1 and error >= 0 for mean, error in report.values())
    assert capsys.readouterr().out.count("ROUGE-2") == 3


def test_at_temperature_0_every_drafter_gives_the_targets_own_text(case):
    case.temperature = 0.0
    scores = list(extra.evaluate(case).values())
    assert scores == [scores[0]] * 3


def test_mistakes_end_in_one_line(case, tmp_path, monkeypatch, error_of):
    for knob, value in (("gamma", 0), ("top_k", -1), ("top_p", 0.0), ("batch_size", 0)):
        wrong = types.SimpleNamespace(**{**vars(case), knob: value})
        assert f"{knob} is {value}" in error_of(extra.main, wrong)
    case.length = 3
    assert "length is 3" in error_of(extra.evaluate, case)
    case.length = 33
    assert "length is 33" in error_of(extra.evaluate, case)
    save_tiny(tmp_path / "d.pt", LETTERS, causal=False)
    case.ckpt = str(tmp_path / "d.pt")
    assert "is a diffusion model" in error_of(extra.evaluate, case)
    assert load_model(case.ckpt)[0].mask_id == 5
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: None)
    assert "pip install rouge-score" in error_of(extra.evaluate, case)
