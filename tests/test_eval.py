"""
python -m pytest tests/test_eval.py          every number of eval.py, against a hand or an enumeration
"""

import itertools
import json
import math
import types

import numpy as np
import pytest
import torch
from conftest import knobs, tiny_model

import data
import eval as E
import model as M
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
    assert report["timed"] == dict.fromkeys(rounds, rounds[0]) | {trained["ar"]: trained["ar"]}


def test_models_of_different_shapes_are_timed_separately(trained, markov, tmp_path, monkeypatch):
    train.main(knobs(tmp_path / "wide", dataset=markov, n_embd=32, max_iters=1))
    wide = str(tmp_path / "wide" / "ckpt.pt")
    monkeypatch.setattr(E, "seconds_per_sample", lambda model, *_: model.config.n_embd)
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, x, y, style, label: drawn.append((label, x)))
    kw = dict(what="genppl,latency", steps=[2], latency_batch=[1], num_samples=2, out=str(tmp_path / "out"))
    E.main(settings(ckpt=f"{trained['diffusion']},{wide}", judge=trained["ar"], **kw))
    assert drawn[-2:] == [(trained["diffusion"], (16,)), (wide, (32,))]


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
    assert "ar_top_p is []" in refused(E.evaluate, settings(ckpt=trained["ar"], ar_top_p=[]))
    assert "length is -5" in refused(E.evaluate, settings(ckpt=trained["ar"], length=-5))
    assert "'best'" in refused(E.evaluate, settings(ckpt=trained["ar"], sampler="best"))
    assert "ar_top_p is [1.5]" in refused(E.evaluate, settings(ckpt=trained["ar"], ar_top_p=[1.5]))
    for knob in ("num_samples", "batch_size", "draws", "eval_blocks"):
        assert f"{knob} is 0" in refused(E.evaluate, settings(ckpt=trained["ar"], **{knob: 0}))


# ----------------------------------------------------------------------------------------------------------------------
# drafters


@pytest.fixture(scope="module")
def drafters(markov, trained, tmp_path_factory):
    """Paths of an n-gram and an LSTM for the GPT of `trained`."""
    folder = tmp_path_factory.mktemp("drafters")
    train.main(knobs(folder / "ngram", dataset=markov, arch="ngram", ngram_n=3))
    train.main(knobs(folder / "lstm", dataset=markov, objective="ar", arch="lstm", n_layer=1))
    return [str(folder / "ngram" / "ngram.txt"), str(folder / "lstm" / "ckpt.pt")]


@torch.no_grad()
def test_overlap_is_the_mean_of_the_smaller_probability():
    target, drafter = tiny_model(causal=True, seed=0), tiny_model(causal=True, seed=1)
    text = torch.randint(7, (3, 16))
    p, q = target(text).softmax(-1), drafter(text).softmax(-1)
    want = torch.minimum(p, q).sum(-1)[:, 3:15].mean(1)  # of tokens 4 ... 15
    torch.testing.assert_close(E.overlap(target, drafter, text, 4, settings()), want)
    assert E.overlap(target, target, text, 4, settings()).tolist() == pytest.approx([1, 1, 1])
    diffusion = M.Diffusion(tiny_model(seed=2))
    got = E.overlap(target, diffusion, text, 4, settings(gamma=1))
    want = []
    for n in range(4, 16):
        x = torch.cat([text[:, :n], torch.full((3, 1), 7)], 1)
        want.append(torch.minimum(p[:, n - 1], diffusion.model(x)[:, -1].softmax(-1)).sum(-1))
    torch.testing.assert_close(got, torch.stack(want).mean(0))


def test_the_table_of_drafters(trained, drafters, tmp_path, capsys):
    paths = [*drafters, trained["ar"], trained["diffusion"], "lookup"]
    kw = dict(what="acceptance", ckpt=trained["ar"], draft=",".join(paths), num_samples=40, gamma=2)
    E.main(settings(**kw, out=str(tmp_path / "out"), dtype="float32"))
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["drafters"]
    assert [r["drafter"] for r in rows] == paths
    for r in rows:
        assert 0 <= r["alpha"] <= 1.0001 and len(r["counted_at"]) == 2 and r["speedup"] > 0 and r["c"] > 0
        assert abs(r["alpha"] - r["counted_at"][0]) < 0.12  # two estimates of one number
        places = itertools.accumulate(r["counted_at"], lambda x, y: x * y)
        assert r["tokens_per_call"] == pytest.approx(1 + sum(places))
        if r["drafter"] != trained["diffusion"]:
            assert r["predicted"] == pytest.approx(M.predicted_speedup(r["alpha"], r["c"], r["gamma"]))
    own = rows[2]
    assert own["alpha"] == pytest.approx(1) and own["counted"] == 1 and own["tokens_per_call"] == 3
    assert (tmp_path / "out" / "drafters.png").read_bytes()[:4] == b"\x89PNG"
    assert "tokens/call" in capsys.readouterr().out


def test_mistakes_with_drafters(trained, drafters, pydoc, tmp_path, refused):
    def refuse(draft, ckpt=trained["ar"], **kw):
        return refused(E.evaluate, settings(ckpt=ckpt, draft=draft, what="acceptance", **kw))

    assert "acceptance needs drafters" in refuse("")
    assert "There is no n-gram file" in refuse("none.txt")
    assert "There is no checkpoint" in refuse("none.pt")
    assert "this checkpoint is a diffusion model" in refuse("lookup", ckpt=trained["diffusion"])
    assert "gamma is 0" in refuse("lookup", gamma=0)
    assert "num_samples is 4" in refuse("lookup")
    enough = dict(num_samples=8, gamma=2)
    assert "of one target" in refuse("lookup", ckpt=f"{trained['ar']},{trained['diffusion']}", **enough)
    assert "length is 4; from 8" in refuse("lookup", length=4, **enough)
    assert "length is 40" in refuse("lookup", length=40, **enough)
    train.main(knobs(tmp_path, dataset=pydoc, arch="ngram", ngram_n=1))
    assert "another vocabulary" in refuse(f"{tmp_path}/ngram.txt")
    assert "already holds a run" in refused(train.main, knobs(tmp_path, dataset=pydoc, arch="ngram"))
