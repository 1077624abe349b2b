"""
python -m pytest tests/test_extras_mauve.py          the score itself needs: pip install mauve-text
"""

import types

import pytest
import torch

import data
from drafters import load_model
from extras import mauve as extra


def settings(**kw):
    own = {"device": "cpu", "num_samples": 4, "steps": [4]}
    return types.SimpleNamespace(**{**vars(extra.cfg), **own, **kw})


def test_mauve_tells_text_from_noise(trained, markov):
    pytest.importorskip("mauve")
    corpus = data.load(markov)
    evaluator, _ = load_model(trained["ar"])
    real, alike = (data.blocks(part, 16, 200) for part in (corpus.val, corpus.train))
    noise = torch.zeros(200, 16, dtype=torch.int64)
    found = {}
    for name, x in (("real", real), ("alike", alike), ("noise", noise)):
        found[name] = extra.features(x, evaluator, 16)
    assert extra.mauve_score(found["real"], found["alike"], 0) > 0.8
    assert extra.mauve_score(found["real"], found["noise"], 0) < 0.2


@torch.no_grad()
def test_features_are_the_last_states_of_what_fits_the_context(trained):
    evaluator, _ = load_model(trained["ar"])
    x = torch.randint(8, (5, 20))
    want = evaluator.hidden(x[:, 4:])[:, -1]
    torch.testing.assert_close(extra.features(x, evaluator, 2), want)


def distance_of_means(real, written, seed):
    return (real.mean(0) - written.mean(0)).norm().item()


def without_the_package(monkeypatch):
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(extra, "mauve_score", distance_of_means)


def test_every_model_and_file_has_a_row(trained, tmp_path, monkeypatch, capsys):
    without_the_package(monkeypatch)
    meta = load_model(trained["ar"])[1]["meta"]
    about = {"ckpt": "elsewhere", "steps": 1, "causal": False, "temperature": 0.5, "top_p": 1}
    about |= {"prefix": 0, "continuations": 1, "dataset": "none", "meta": meta}
    data.write_jsonl(tmp_path / "a.jsonl", [about, *[{"tokens": [1] * 16}] * 5])
    ckpt = ",".join(trained.values())
    kw = dict(ckpt=ckpt, evaluator=trained["ar"], samples=str(tmp_path / "a.jsonl"))
    extra.main(settings(**kw, out=str(tmp_path / "mauve.json")))
    report = data.read_json(tmp_path / "mauve.json")
    names = [(r["model"], r["steps"]) for r in report["rows"]]
    assert names == [(trained["diffusion"], 4), (trained["ar"], 16), ("elsewhere", 1)]
    assert report["real_texts"] == 5
    assert "mauve" in capsys.readouterr().out


def test_mistakes_end_in_one_line(trained, monkeypatch, error_of):
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: None)
    assert "pip install mauve-text" in error_of(extra.evaluate, settings())
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: True)
    assert "--evaluator=" in error_of(extra.evaluate, settings(ckpt=trained["diffusion"]))
    assert "steps is [0]" in error_of(extra.evaluate, settings(steps=[0]))
    assert "nothing to evaluate" in error_of(extra.evaluate, settings(ckpt=""))
