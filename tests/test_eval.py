"""
python -m pytest tests/test_eval.py          every number of eval.py, against a hand or an enumeration
"""

import json
import math
import types

import numpy as np
import pytest
import torch
from conftest import knobs, tiny_model

import data
import eval as E
import train
from model import load_checkpoint, save_checkpoint


def settings(**kw):
    return types.SimpleNamespace(**{**vars(E.cfg), "device": "cpu", "num_samples": 4, "eval_blocks": 8, **kw})


@pytest.fixture(scope="module")
def trained(markov, tmp_path_factory):
    """Checkpoints of a diffusion model and of a GPT, a few steps old."""
    out = {}
    for objective in ("diffusion", "ar"):
        folder = tmp_path_factory.mktemp(objective)
        train.main(knobs(folder, dataset=markov, objective=objective))
        out[objective] = str(folder / "ckpt.pt")
    return out


def test_entropy_of_known_samples():
    x = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4], [5, 5, 6, 6]])
    assert E.sample_entropy(x) == pytest.approx((0 + math.log(4) + math.log(2)) / 3)


@torch.no_grad()
def test_judge_scores_every_token_once_but_the_first():
    judge = tiny_model(causal=True)
    x = torch.randint(7, (5, 40))  # longer than the judge's context of 16: three windows
    log_p = 0.0
    for start in (0, 16, 32):
        window = x[:, start : start + 17]
        logits = judge(window[:, :-1])
        log_p += logits.log_softmax(-1).gather(-1, window[:, 1:, None]).sum().item()
    assert E.judge_nats(judge, x, batch_size=2) == pytest.approx(-log_p / (5 * 39), rel=1e-5)


def test_markov_probability_of_a_known_text():
    meta = {"transition": [[0.9, 0.1], [0.3, 0.7]]}
    x = torch.tensor([[0, 0, 1, 1]])
    assert E.markov_nats(x, meta) == pytest.approx(-math.log(0.9 * 0.1 * 0.7) / 3)


def test_true_text_has_the_true_perplexity(markov):
    corpus = data.load(markov)
    x = torch.from_numpy(np.array(corpus.val[:16000].reshape(-1, 160), dtype=np.int64))
    assert abs(E.markov_nats(x, corpus.meta) - corpus.meta["entropy_rate"]) < 0.03


def test_likelihood_of_a_gpt_is_exact_and_of_diffusion_repeats():
    gpt, diffusion = tiny_model(causal=True), tiny_model()
    x = torch.randint(7, (10, 17))
    nats, error = E.likelihood(gpt, x, settings(batch_size=4))
    log_p = gpt(x[:, :-1]).log_softmax(-1).gather(-1, x[:, 1:, None]).mean().item()
    assert nats == pytest.approx(-log_p, rel=1e-5) and error > 0
    a, b = (E.likelihood(diffusion, x[:, :16], settings(batch_size=4)) for _ in range(2))
    assert a == b


def test_the_report_has_every_row_and_the_plot_is_a_picture(trained, tmp_path, capsys):
    cfg = settings(
        ckpt=",".join(trained.values()), judge=trained["ar"], steps=[1, 16], out=str(tmp_path / "out"), dtype="float32"
    )
    E.main(cfg)
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    kinds = {path: r["kind"] for path, r in report["likelihood"].items()}
    assert kinds == {trained["diffusion"]: "upper bound", trained["ar"]: "exact"}
    for r in report["likelihood"].values():
        assert r["ppl"] == pytest.approx(math.exp(r["nats"])) and r["bits_per_char"] == pytest.approx(
            r["nats"] / math.log(2)
        )
        assert 1.0 < r["nats"] < 3.0
    assert [(r["model"], r["steps"]) for r in report["rows"]] == [
        (trained["diffusion"], 1),
        (trained["diffusion"], 16),
        (trained["ar"], 16),
        ("real text", None),
    ]
    meta = load_checkpoint(trained["ar"])["meta"]
    rate, first = meta["entropy_rate"], meta["stationary_entropy"]
    assert report["likelihood"][trained["ar"]]["truth"] == rate
    assert report["likelihood"][trained["diffusion"]]["truth"] == pytest.approx((first + 15 * rate) / 16)
    assert all(r["genppl"] > 1 and r["true_ppl"] > 1 and 0 < r["entropy"] <= math.log(8) for r in report["rows"])
    assert (tmp_path / "out" / "eval.png").read_bytes()[:4] == b"\x89PNG"
    assert "seed 1337" in capsys.readouterr().out


def test_several_checkpoints_by_pattern_nucleus_rows_and_latency(trained, tmp_path, refused, capsys):
    model = load_checkpoint(trained["diffusion"])
    for r in (2, 10, 1):
        save_checkpoint(tmp_path / f"round_{r}.pt", model)
    pattern = f"{tmp_path}/round_*.pt"
    rounds = [f"{tmp_path}/round_{r}.pt" for r in (1, 2, 10)]
    assert E.paths_of(f"a.pt,{pattern},b.pt") == ["a.pt", *rounds, "b.pt"]
    assert "No file matches" in refused(E.paths_of, f"{tmp_path}/none_*.pt")
    kw = dict(steps=[1, 2], ar_top_p=[1.0, 0.5], latency_batch=[1, 3], num_samples=2, out=str(tmp_path / "out"))
    E.main(settings(ckpt=f"{pattern},{trained['ar']}", judge=trained["ar"], what="genppl,latency", **kw))
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    names = [(r["model"], r["steps"]) for r in report["rows"]]
    gpt = [(trained["ar"], 16), (f"{trained['ar']}, top_p 0.5", 16)]
    assert names == [(path, k) for path in rounds for k in (1, 2)] + gpt + [("real text", None)]
    assert report["rows"][-3]["entropy"] > report["rows"][-2]["entropy"]  # half of the mass: fewer different tokens
    timed = [(r["model"], r["batch"], r["steps"]) for r in report["latency"]]
    assert timed == [(rounds[0], b, k) for b in (1, 3) for k in (1, 2)] + [(trained["ar"], b, 16) for b in (1, 3)]
    assert all(0 < r["s_per_sample"] < 5 for r in report["latency"])
    assert all((tmp_path / "out" / f).read_bytes()[:4] == b"\x89PNG" for f in ("eval.png", "latency.png"))
    assert "seconds per sample" in capsys.readouterr().out


def test_latency_is_the_median_per_sample(monkeypatch):
    clock, calls = iter([0, 99, 100, 106, 200, 203, 300, 309]), []  # the first lap warms up
    monkeypatch.setattr(E.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(E, "draw_samples", lambda model, template, *_: calls.append(template.shape) or template)
    assert E.seconds_per_sample(tiny_model(), {}, settings(), 4, 16, batch=3) == 2.0
    assert calls == [(3, 16)] * 4


def test_evaluating_again_gives_the_same_numbers(trained):
    cfg = settings(ckpt=trained["diffusion"], judge=trained["ar"], steps=[4])
    rows = [[{k: v for k, v in r.items() if k != "s_per_sample"} for r in E.evaluate(cfg)["rows"]] for _ in range(2)]
    assert rows[0] == rows[1]


def test_mistakes_are_refused_before_any_work(trained, pydoc, tmp_path, refused):
    assert "'fid'" in refused(E.evaluate, settings(ckpt=trained["ar"], what="nelbo,fid"))
    assert "steps is [4, 0]" in refused(E.evaluate, settings(ckpt=trained["ar"], steps=[4, 0]))
    both = dict(ckpt=trained["diffusion"], judge=trained["diffusion"])
    assert "must be autoregressive" in refused(E.evaluate, settings(**both))
    assert "another vocabulary" in refused(E.evaluate, settings(ckpt=trained["ar"], dataset=pydoc, what="nelbo"))
    other = load_checkpoint(trained["ar"])
    other["meta"] = {"tokenizer": "gpt2", "vocab_size": 8}
    save_checkpoint(tmp_path / "other.pt", other)
    said = refused(E.evaluate, settings(ckpt=trained["diffusion"], judge=str(tmp_path / "other.pt")))
    assert "another vocabulary" in said
    assert "latency_batch is [0]" in refused(E.evaluate, settings(ckpt=trained["ar"], latency_batch=[0]))
    assert "ar_top_p is [1.5]" in refused(E.evaluate, settings(ckpt=trained["ar"], ar_top_p=[1.5]))
    for knob in ("num_samples", "batch_size", "draws", "eval_blocks"):
        assert f"{knob} is 0" in refused(E.evaluate, settings(ckpt=trained["ar"], **{knob: 0}))
