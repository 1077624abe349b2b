"""
python -m pytest tests/test_eval.py          every number of eval.py, against a hand or an enumeration
"""

import itertools
import json
import math
import types

import numpy as np
import pytest
import reference
import torch
from conftest import knobs, run, tiny_model

import data
import drafters
import eval as E
import metrics
import model as M
import sample as S
import speculative
import train
from plumbing import checkpoints, scores
from plumbing.checkpoints import load_checkpoint, save_checkpoint
from plumbing.randomness import seeded


def settings(**kw):
    return types.SimpleNamespace(
        **{**vars(E.cfg), "device": "cpu", "num_samples": 4, "eval_blocks": 8, **kw}
    )


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
    assert metrics.entropies(x).tolist() == pytest.approx([0, math.log(4), math.log(2)])


@torch.no_grad()
def test_judge_scores_every_token_once_but_the_first():
    judge = tiny_model(causal=True)
    x = torch.randint(7, (5, 40))  # longer than the judge's context of 16: three windows
    log_p = 0.0
    for start in (0, 16, 32):
        window = x[:, start : start + 17]
        logits = judge(window[:, :-1])
        log_p += logits.log_softmax(-1).gather(-1, window[:, 1:, None]).sum().item()
    counted = torch.arange(40).expand(5, 40) >= 1
    nats = metrics.judge_nats(judge, x, counted, batch_size=2)
    assert nats.shape == (5,) and nats.sum().item() == pytest.approx(-log_p, rel=1e-5)


@torch.no_grad()
def test_what_counts_is_judged_after_the_prefix_and_up_to_the_first_end_of_text():
    judge, eot = tiny_model(causal=True), 6
    x = torch.tensor([[1, 2, 3, 6, 4, 6, 6, 5], [6, 1, 6, 2, 3, 6, 4, 6]])
    log_p = (
        judge(x[:, :-1]).log_softmax(-1).gather(-1, x[:, 1:, None]).squeeze(-1)
    )  # of tokens 1 ... 7
    for prefix, places in {0: ([1, 2, 3, 4, 7], [1, 3, 4, 6]), 3: ([3, 4, 7], [3, 4, 6])}.items():
        picked = torch.cat(
            [row[[i - 1 for i in where]] for row, where in zip(log_p, places, strict=True)]
        )
        metas = ({"tokenizer": "char", "vocab_size": 7, "eot": eot}, {"eot": eot})
        row = E.quality(x, judge, metas, ["genppl"], settings(), prefix)
        assert row["genppl"] == pytest.approx(math.exp(-picked.mean()), rel=1e-5)


@torch.no_grad()
def test_retokenized_text_is_judged_as_the_judge_would_write_it():
    mine = {"tokenizer": "char", "vocab_size": 3, "itos": ["a", "b", "ab"]}
    its = {"tokenizer": "char", "vocab_size": 4, "itos": ["b", "a", "bb", "aa"]}
    x = torch.tensor([[0, 0, 2, 1], [2, 2, 0, 0]])  # aa|abb, abab|aa
    y, counted = metrics.retokenized(x, 2, E.data.encoder(mine)[1], E.data.encoder(its)[0])
    assert y[0, :3].tolist() == [3, 1, 2] and y[1].tolist() == [1, 0, 1, 0, 3]
    assert counted.tolist() == [[False, True, True, False, False], [False] * 4 + [True]]
    judge = tiny_model(V=4, causal=True)
    log_p = [judge(torch.tensor([row]))[0].log_softmax(-1) for row in ([3, 1, 2], [1, 0, 1, 0, 3])]
    want = (
        -(log_p[0][0, 1] + log_p[0][1, 2] + log_p[1][3, 3]) / 4
    )  # per token of the text's own: abb is two
    row = E.quality(x, judge, (mine, its), ["genppl"], settings(retokenize=True), prefix=2)
    assert row["genppl"] == pytest.approx(want.exp().item(), rel=1e-5)
    assert row["bits_per_char"] == pytest.approx(
        want.item() * 4 / 5 / math.log(2), rel=1e-5
    )  # abb, aa


def test_self_bleu_is_the_literal_one():
    assert scores.self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert scores.self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0
    for seed in range(5):
        x = torch.randint(3, (6, 12), generator=seeded(seed)).tolist()
        assert scores.self_bleu(x) == pytest.approx(reference.self_bleu(x), abs=1e-9)
    assert 0 < scores.self_bleu(x) < 1


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_the_last_word_of_a_passage(causal):
    model, V = tiny_model(V=4, causal=causal), 4
    passages = [
        ([1, 2, 3], [0, 2]),
        ([2], [1]),
        (list(range(4)) * 4, [3, 1, 0]),
    ]  # the last one is cut to 16 tokens
    got = metrics.lambada(model, passages, settings(draws=3000))
    hits, nats = [], []
    for context, word in passages:
        hit, value = reference.last_word(model, (context + word)[-16:], len(word), V)
        hits.append(hit)
        nats.append(value)
    assert got["accuracy"] == sum(hits) / 3 and got["words_in_ppl"] == 3
    assert got["ppl"] == pytest.approx(math.exp(sum(nats) / 3), rel=1e-4)
    if not causal:
        assert got["ppl_monte_carlo"] == pytest.approx(got["ppl"], rel=0.05)
        assert got["ppl_monte_carlo"] != got["ppl"]


@torch.no_grad()
def test_the_exact_bound_of_a_word_is_the_bound_of_nelbo():
    model, x0 = tiny_model(V=4), torch.tensor([[3, 0, 1]])
    exact = math.log(metrics.lambada(model, [([], [3, 0, 1])], settings())["ppl"]) / 3
    drawn = np.mean([M.nelbo(model, x0.expand(99, 3), seeded(i)).item() for i in range(60)])
    assert drawn == pytest.approx(exact, rel=0.02)


def test_lambada_from_files(trained, tmp_path, refused, capsys):
    meta = load_checkpoint(trained["ar"])["meta"]
    letters = meta["itos"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    lines = [
        {"context": letters[0] + letters[1], "word": letters[2]},
        {"context": letters[3], "word": letters[4] * 9},
    ]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    E.main(
        settings(
            ckpt=",".join(trained.values()),
            what="lambada",
            passages=str(tmp_path),
            out=str(tmp_path / "out"),
        )
    )
    report = json.loads((tmp_path / "out" / "eval.json").read_text())["lambada"]
    assert [r["words_in_ppl"] for r in report.values()] == [
        1,
        1,
    ]  # 2^9 subsets are too many: out for both
    assert "LAMBADA accuracy" in capsys.readouterr().out
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "itos": letters[::-1]}))
    kw = dict(ckpt=trained["ar"], what="lambada")
    model = tiny_model(V=4, causal=False)
    row = metrics.lambada(model, [([0], [1]), ([0], [1] * 9), ([0], [1] * 16)], settings())
    assert (row["passages"], row["words_in_ppl"]) == (2, 1)  # the third leaves no room
    assert "No passage ends" in refused(metrics.lambada, model, [([0], [1] * 9)], settings())
    assert "another vocabulary" in refused(E.evaluate, settings(**kw, passages=str(tmp_path)))
    (tmp_path / "passages.jsonl").unlink()
    assert "passages.jsonl is missing" in refused(
        E.evaluate, settings(**kw, passages=str(tmp_path))
    )


# ----------------------------------------------------------------------------------------------------------------------
# samples in files


def save(path, ckpt, processes=1, **kw):
    """sample.py --save."""
    knobs = (
        dict(
            ckpt=ckpt,
            save=str(path),
            num_samples=6,
            batch_size=2,
            steps=4,
            device="cpu",
            dtype="float32",
        )
        | kw
    )
    if processes == 1:
        return S.main(types.SimpleNamespace(**{**vars(S.cfg), **knobs}))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    run(
        *launcher,
        "sample.py",
        *(f"--{k}={v}" for k, v in knobs.items()),
        env={"OMP_NUM_THREADS": "1"},
    )


def test_samples_are_the_same_on_any_number_of_processes(trained, tmp_path):
    for name, ckpt in trained.items():
        save(tmp_path / f"{name}_1.jsonl", ckpt)
        save(tmp_path / f"{name}_2.jsonl", ckpt, processes=2)
        one, two = ((tmp_path / f"{name}_{n}.jsonl").read_bytes() for n in (1, 2))
        assert one == two and one.count(b"\n") == 7


def test_saved_samples_are_judged_as_those_drawn_now(trained, tmp_path):
    save(tmp_path / "a.jsonl", trained["diffusion"])
    kw = dict(
        judge=trained["ar"], dtype="float32", what="genppl,selfbleu", num_samples=6, batch_size=2
    )
    drawn = E.evaluate(settings(ckpt=trained["diffusion"], steps=[4], **kw))["rows"]
    read = E.evaluate(settings(samples=str(tmp_path / "a.jsonl"), ckpt="none.pt", **kw))["rows"]
    for a, b in zip(drawn, read, strict=True):
        assert all(a[k] == b[k] for k in ("genppl", "true_ppl", "entropy", "self_bleu"))


def test_self_bleu_is_of_as_many_samples_as_there_are_real_texts(trained, tmp_path, monkeypatch):
    save(tmp_path / "a.jsonl", trained["diffusion"])
    x, blocks = data.load_samples(tmp_path / "a.jsonl")[0], data.blocks
    monkeypatch.setattr(
        data, "blocks", lambda tokens, length, limit: blocks(tokens, length, min(limit, 3))
    )
    said = settings(samples=str(tmp_path / "a.jsonl"), judge=trained["ar"], what="selfbleu")
    row, real = E.evaluate(said)["rows"]
    assert (row["texts"], real["texts"]) == (6, 3)
    assert (
        row["self_bleu"] == scores.self_bleu(x[[0, 2, 5]].tolist()) != scores.self_bleu(x.tolist())
    )
    row = E.quality(x, None, ({}, None), ["selfbleu"], said, continuations=3, n=2)
    assert row["self_bleu"] == scores.self_bleu(x[[0, 3]].tolist())


def test_evaluation_on_two_processes_says_the_same(trained, tmp_path):
    args = [
        f"--ckpt={trained['diffusion']},{trained['ar']}",
        f"--judge={trained['ar']}",
        "--what=nelbo,genppl,selfbleu",
    ]
    args += [
        "--steps=4",
        "--num_samples=6",
        "--batch_size=2",
        "--eval_blocks=9",
        "--device=cpu",
        "--dtype=float32",
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for n, command in ((1, []), (2, launcher)):
        run(*command, "eval.py", *args, f"--out={tmp_path}/{n}", env={"OMP_NUM_THREADS": "1"})
    one, two = (json.loads((tmp_path / n / "eval.json").read_text()) for n in ("1", "2"))
    for report in (one, two):
        for row in report["rows"]:
            row.pop("s_per_sample", None)
    assert one["rows"] == two["rows"] and one["likelihood"] == two["likelihood"]


def test_continuations_begin_with_validation_text_and_compare_with_it(
    trained, markov, tmp_path, refused
):
    for name, ckpt in trained.items():
        save(tmp_path / f"{name}.jsonl", ckpt, prefix=5, length=12, continuations=3)
        x, about = data.load_samples(tmp_path / f"{name}.jsonl")
        texts = data.blocks(data.load(markov).val, 12, 2)
        assert x.shape == (6, 12) and torch.equal(x[:, :5], texts.repeat_interleave(3, 0)[:, :5])
        assert len({tuple(row) for row in x[:3].tolist()}) > 1 and about["prefix"] == 5
    both = f"{tmp_path}/diffusion.jsonl,{tmp_path}/ar.jsonl"
    report = E.evaluate(settings(samples=both, judge=trained["ar"], what="genppl"))
    judge, nats = drafters.load_model(trained["ar"])[0], []
    with torch.no_grad():
        log_p = judge(texts[:, :-1]).log_softmax(-1).gather(-1, texts[:, 1:, None])[:, 4:]
    nats = -log_p.mean().item()
    assert report["rows"][-1]["genppl"] == pytest.approx(
        math.exp(nats), rel=0.03
    )  # bfloat16 where there is any
    save(tmp_path / "other.jsonl", trained["ar"], prefix=4, length=12)
    kw = dict(judge=trained["ar"], what="genppl")
    assert "do not compare" in refused(
        E.evaluate, settings(samples=f"{both},{tmp_path}/other.jsonl", **kw)
    )


def test_mauve_tells_text_from_noise(trained, markov, monkeypatch, tmp_path, refused):
    pytest.importorskip("mauve")
    corpus, judge = data.load(markov), drafters.load_model(trained["ar"])[0]
    real, same = (data.blocks(part, 16, 200) for part in (corpus.val, corpus.train))
    noise = torch.zeros(200, 16, dtype=torch.int64)
    args = dict(judge=judge, metas=(corpus.meta, corpus.meta), wanted=["mauve"], cfg=settings())
    assert "mauve" not in E.quality(real, **args)
    args["real_features"] = scores.judge_features(judge, real, 16)
    assert E.quality(same, **args)["mauve"] > 0.8 > 0.2 > E.quality(noise, **args)["mauve"]
    assert "--retokenize" in refused(E.evaluate, settings(what="mauve", retokenize=True))


def test_mistakes_with_samples(trained, tmp_path, refused, monkeypatch):
    save(tmp_path / "a.jsonl", trained["ar"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    for name, text in {
        "cut": "\n".join(lines)[:-30],
        "odd": "\n".join([lines[0], '{"tokens": [1, 2]}', '{"tokens": [1]}']),
        "big": "\n".join([lines[0], '{"tokens": [1, 99]}']),
        "empty": "",
        "list": "[]",
    }.items():
        (tmp_path / name).write_text(text)
        assert "holds no samples" in refused(data.load_samples, str(tmp_path / name))
    other = load_checkpoint(trained["ar"])
    other["meta"] = {"tokenizer": "gpt2", "vocab_size": 8}
    save_checkpoint(tmp_path / "other.pt", other)
    kw = dict(samples=str(tmp_path / "a.jsonl"), what="genppl")
    assert "retokenize" in refused(E.evaluate, settings(**kw, judge=str(tmp_path / "other.pt")))
    assert "nelbo needs a model" in refused(
        E.evaluate, settings(samples=kw["samples"], what="genppl,nelbo")
    )
    monkeypatch.setattr(E.importlib.util, "find_spec", lambda name: None)
    assert "pip install mauve-text" in refused(
        E.evaluate, settings(samples=kw["samples"], what="mauve")
    )
    for kw, words in (
        (dict(prefix=16), "prefix is 16"),
        (dict(continuations=4), "does not divide into 4"),
        (dict(prefix=4, dataset="none"), "none/meta.json"),
        (dict(prompt="a"), "--prefix, not --prompt"),
    ):
        assert words in refused(save, tmp_path / "x.jsonl", trained["ar"], **kw)
    assert not (tmp_path / "x.jsonl").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(S.speculative, "draw_many", None)  # refused before any work
    assert "Cannot write" in refused(save, tmp_path / "file" / "x.jsonl", trained["ar"])
    assert "that --save writes" in refused(save, "", trained["ar"], prefix=2)
    assert "saves one model" in refused(save, "", ",".join(trained.values()), export="x")


def test_markov_probability_of_a_known_text():
    meta = {"transition": [[0.9, 0.1], [0.3, 0.7]]}
    x = torch.tensor([[0, 0, 1, 1]])
    assert metrics.markov_nats(x, meta) == pytest.approx(-math.log(0.9 * 0.1 * 0.7) / 3)


def test_true_text_has_the_true_perplexity(markov):
    corpus = data.load(markov)
    x = torch.from_numpy(np.array(corpus.val[:16000].reshape(-1, 160), dtype=np.int64))
    assert abs(metrics.markov_nats(x, corpus.meta) - corpus.meta["entropy_rate"]) < 0.03


def test_likelihood_of_a_gpt_is_exact_and_of_diffusion_repeats():
    gpt, diffusion = tiny_model(causal=True), tiny_model()
    x = torch.randint(7, (10, 17))
    nats, error = metrics.likelihood(gpt, x, settings(batch_size=4))
    log_p = gpt(x[:, :-1]).log_softmax(-1).gather(-1, x[:, 1:, None]).mean().item()
    assert nats == pytest.approx(-log_p, rel=1e-5) and error > 0
    a, b = (metrics.likelihood(diffusion, x[:, :16], settings(batch_size=4)) for _ in range(2))
    assert a == b


def test_the_report_has_every_row_and_the_plot_is_a_picture(trained, tmp_path, capsys):
    cfg = settings(
        ckpt=",".join(trained.values()),
        judge=trained["ar"],
        steps=[1, 16],
        out=str(tmp_path / "out"),
        dtype="float32",
    )
    E.main(cfg)
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    kinds = {path: r["kind"] for path, r in report["likelihood"].items()}
    assert kinds == {trained["diffusion"]: "upper bound", trained["ar"]: "exact"}
    for r in report["likelihood"].values():
        assert r["ppl"] == pytest.approx(math.exp(r["nats"])) and r[
            "bits_per_char"
        ] == pytest.approx(r["nats"] / math.log(2))
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
    assert report["likelihood"][trained["diffusion"]]["truth"] == pytest.approx(
        (first + 15 * rate) / 16
    )
    assert all(
        r["genppl"] > 1 and r["true_ppl"] > 1 and 0 < r["entropy"] <= math.log(8)
        for r in report["rows"]
    )
    assert (tmp_path / "out" / "eval.png").read_bytes()[:4] == b"\x89PNG"
    assert "seed 1337" in capsys.readouterr().out


def test_several_checkpoints_by_pattern_nucleus_rows_and_latency(
    trained, tmp_path, refused, capsys
):
    model = load_checkpoint(trained["diffusion"])
    for r in (2, 10, 1):
        save_checkpoint(tmp_path / f"round_{r}.pt", model)
    pattern = f"{tmp_path}/round_*.pt"
    rounds = [f"{tmp_path}/round_{r}.pt" for r in (1, 2, 10)]
    assert checkpoints.paths_of(f"a.pt,{pattern},b.pt") == ["a.pt", *rounds, "b.pt"]
    assert "No file matches" in refused(checkpoints.paths_of, f"{tmp_path}/none_*.pt")
    kw = dict(
        steps=[1, 2],
        ar_top_p=[1.0, 0.5],
        latency_batch=[1, 3],
        num_samples=2,
        out=str(tmp_path / "out"),
    )
    E.main(
        settings(
            ckpt=f"{pattern},{trained['ar']}", judge=trained["ar"], what="genppl,latency", **kw
        )
    )
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    names = [(r["model"], r["steps"]) for r in report["rows"]]
    gpt = [(trained["ar"], 16), (f"{trained['ar']}, top_p 0.5", 16)]
    assert names == [(path, k) for path in rounds for k in (1, 2)] + gpt + [("real text", None)]
    assert (
        report["rows"][-3]["entropy"] > report["rows"][-2]["entropy"]
    )  # half of the mass: fewer different tokens
    timed = [(r["model"], r["batch"], r["steps"]) for r in report["latency"]]
    assert timed == [(rounds[0], b, k) for b in (1, 3) for k in (1, 2)] + [
        (trained["ar"], b, 16) for b in (1, 3)
    ]
    assert all(0 < r["s_per_sample"] < 5 for r in report["latency"])
    assert all(
        (tmp_path / "out" / f).read_bytes()[:4] == b"\x89PNG" for f in ("eval.png", "latency.png")
    )
    assert "seconds per sample" in capsys.readouterr().out
    assert report["timed"] == dict.fromkeys(rounds, rounds[0]) | {trained["ar"]: trained["ar"]}


def test_models_of_different_shapes_are_timed_separately(trained, markov, tmp_path, monkeypatch):
    train.main(knobs(tmp_path / "wide", dataset=markov, n_embd=32, max_iters=1))
    wide = str(tmp_path / "wide" / "ckpt.pt")
    monkeypatch.setattr(metrics, "seconds_per_sample", lambda model, *_: model.config.n_embd)
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda self, x, y, style, label: drawn.append((label, x))
    )
    kw = dict(
        what="genppl,latency",
        steps=[2],
        latency_batch=[1],
        num_samples=2,
        out=str(tmp_path / "out"),
    )
    E.main(settings(ckpt=f"{trained['diffusion']},{wide}", judge=trained["ar"], **kw))
    assert drawn[-2:] == [(trained["diffusion"], (16,)), (wide, (32,))]


def test_a_student_is_compared_at_the_teachers_entropy():
    """Ten texts of one kind each: the frontier is a line in (entropy, log perplexity)."""

    def texts(entropy, nats):
        return torch.tensor([[nats * 10, 10, entropy]] * 10, dtype=torch.float64)

    teacher = [texts(4.0, 3.0), texts(3.0, 1.0), texts(3.5, 1.5)]
    assert metrics.over_frontier(texts(3.75, 2.0), teacher) == pytest.approx(math.exp(2.0 - 2.25))
    assert metrics.over_frontier(texts(3.1, 2.0), teacher) == pytest.approx(math.exp(2.0 - 1.1))
    assert (
        metrics.over_frontier(texts(2.9, 2.0), teacher)
        is metrics.over_frontier(texts(4.1, 2.0), teacher)
        is None
    )
    assert set(metrics.gain(texts(4.1, 2.0), teacher, 0).values()) == {None}
    assert list(metrics.gain(texts(3.75, 2.0), teacher, 0).values()) == pytest.approx(
        [math.exp(-0.25)] * 3
    )
    noise = torch.randn(200, 2, 3, dtype=torch.float64, generator=seeded(0)) * torch.tensor(
        [1.0, 0.0, 0.1]
    )
    student, line = texts(3.75, 2.25)[:1] + noise[:, 0], [t[:1] + noise[:, 1] for t in teacher]
    ratio, low, high = metrics.gain(student, line, 0).values()
    assert low < ratio < high and low < 1 < high and high - low < 0.15


def test_repetition_is_counted_within_a_text():
    assert metrics.repeated(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])) == 0
    assert metrics.repeated(
        torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7]])
    ) == pytest.approx(3 / 8)


def test_the_frontier_of_a_teacher_and_its_student(trained, tmp_path, refused):
    kw = dict(steps=[1, 4], temperatures=[1.0, 0.5], what="frontier", out=str(tmp_path))
    both = f"{trained['diffusion']},{trained['diffusion']}.copy.pt,{trained['ar']}"
    save_checkpoint(trained["diffusion"] + ".copy.pt", load_checkpoint(trained["diffusion"]))
    E.main(settings(ckpt=both, judge=trained["ar"], **kw))
    report = json.load(open(tmp_path / "eval.json"))
    assert (
        len(report["frontier"]) == 2 * 4 + 2 + 1 and report["frontier"][-1]["model"] == "real text"
    )
    gains = [(r["steps"], round(r["ratio"], 6), r["tokens_per_step"]) for r in report["gains"]]
    assert gains == [(1, 1, 16), (4, 1, 4)]
    cold, warm = (next(r for r in report["frontier"] if r["temperature"] == t) for t in (0.5, 1.0))
    assert cold["entropy"] < warm["entropy"]
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "over the first's at equal entropy" in (tmp_path / "eval.txt").read_text()
    assert "need a judge" in refused(E.evaluate, settings(ckpt=both, **kw))


def test_the_loss_of_a_run_is_plotted_from_its_log(trained, tmp_path, refused):
    E.main(settings(ckpt=f"{trained['diffusion']},{trained['ar']}", what="loss", out=str(tmp_path)))
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    logs = json.load(open(tmp_path / "eval.json"))["losses"]
    assert [r["step"] for r in logs[trained["ar"].removesuffix("/ckpt.pt")] if "val_loss" in r] == [
        3,
        6,
    ]
    other = tmp_path / "other.pt"
    save_checkpoint(other, load_checkpoint(trained["ar"]))
    assert "no log.jsonl" in refused(E.evaluate, settings(ckpt=str(other), what="loss"))


def test_latency_is_the_median_per_sample(monkeypatch):
    clock, calls = iter([0, 99, 100, 106, 200, 203, 300, 309]), []  # the first lap warms up
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        metrics.speculative,
        "draw_samples",
        lambda model, template, *_: calls.append(template.shape) or template,
    )
    assert metrics.seconds_per_sample(tiny_model(), {}, settings(), 4, 16, batch=3) == 2.0
    assert calls == [(3, 16)] * 4


def test_evaluating_again_gives_the_same_numbers(trained):
    cfg = settings(ckpt=trained["diffusion"], judge=trained["ar"], steps=[4])
    rows = [
        [{k: v for k, v in r.items() if k != "s_per_sample"} for r in E.evaluate(cfg)["rows"]]
        for _ in range(2)
    ]
    assert rows[0] == rows[1]


def test_mistakes_are_refused_before_any_work(trained, pydoc, tmp_path, refused):
    assert "'fid'" in refused(E.evaluate, settings(ckpt=trained["ar"], what="nelbo,fid"))
    assert "steps is [4, 0]" in refused(E.evaluate, settings(ckpt=trained["ar"], steps=[4, 0]))
    both = dict(ckpt=trained["diffusion"], judge=trained["diffusion"])
    assert "must be autoregressive" in refused(E.evaluate, settings(**both))
    assert "another vocabulary" in refused(
        E.evaluate, settings(ckpt=trained["ar"], dataset=pydoc, what="nelbo")
    )
    other = load_checkpoint(trained["ar"])
    other["meta"] = {"tokenizer": "gpt2", "vocab_size": 8}
    save_checkpoint(tmp_path / "other.pt", other)
    said = refused(
        E.evaluate, settings(ckpt=trained["diffusion"], judge=str(tmp_path / "other.pt"))
    )
    assert "another vocabulary" in said
    assert "latency_batch is [0]" in refused(
        E.evaluate, settings(ckpt=trained["ar"], latency_batch=[0])
    )
    assert "ar_top_p is []" in refused(E.evaluate, settings(ckpt=trained["ar"], ar_top_p=[]))
    assert "length is -5" in refused(E.evaluate, settings(ckpt=trained["ar"], length=-5))
    assert "'best'" in refused(E.evaluate, settings(ckpt=trained["ar"], sampler="best"))
    assert "ar_top_p is [1.5]" in refused(E.evaluate, settings(ckpt=trained["ar"], ar_top_p=[1.5]))
    for knob in ("num_samples", "batch_size", "draws", "eval_blocks"):
        assert f"{knob} is 0" in refused(E.evaluate, settings(ckpt=trained["ar"], **{knob: 0}))


# ----------------------------------------------------------------------------------------------------------------------
# drafters


@pytest.fixture(scope="module")
def guessers(markov, trained, tmp_path_factory):
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
    torch.testing.assert_close(metrics.overlap(target, drafter, text, 4, settings()), want)
    assert metrics.overlap(target, target, text, 4, settings()).tolist() == pytest.approx([1, 1, 1])
    diffusion = drafters.Diffusion(tiny_model(seed=2))
    got = metrics.overlap(target, diffusion, text, 4, settings(gamma=1))
    want = []
    for n in range(4, 16):
        x = torch.cat([text[:, :n], torch.full((3, 1), 7)], 1)
        want.append(torch.minimum(p[:, n - 1], diffusion.model(x)[:, -1].softmax(-1)).sum(-1))
    torch.testing.assert_close(got, torch.stack(want).mean(0))


def test_the_table_of_drafters(trained, guessers, tmp_path, capsys):
    paths = [*guessers, trained["ar"], trained["diffusion"], "lookup"]
    kw = dict(what="acceptance", ckpt=trained["ar"], draft=",".join(paths), num_samples=40, gamma=2)
    E.main(settings(**kw, out=str(tmp_path / "out"), dtype="float32"))
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["drafters"]
    assert [r["drafter"] for r in rows] == paths
    for r in rows:
        assert (
            0 <= r["alpha"] <= 1.0001
            and len(r["counted_at"]) == 2
            and r["speedup"] > 0
            and r["c"] > 0
        )
        assert abs(r["alpha"] - r["counted_at"][0]) < 0.12  # two estimates of one number
        places = itertools.accumulate(r["counted_at"], lambda x, y: x * y)
        assert r["tokens_per_call"] == pytest.approx(1 + sum(places))
        if r["drafter"] != trained["diffusion"]:
            assert r["predicted"] == pytest.approx(
                speculative.predicted_speedup(r["alpha"], r["c"], r["gamma"], r["call"])
            )
    own = rows[2]
    assert own["alpha"] == pytest.approx(1) and own["counted"] == 1 and own["tokens_per_call"] == 3
    assert (tmp_path / "out" / "drafters.png").read_bytes()[:4] == b"\x89PNG"
    assert "tokens/call" in capsys.readouterr().out


def test_mistakes_with_drafters(trained, guessers, pydoc, tmp_path, refused):
    def refuse(draft, ckpt=trained["ar"], **kw):
        return refused(E.evaluate, settings(ckpt=ckpt, draft=draft, what="acceptance", **kw))

    assert "acceptance needs drafters" in refuse("")
    assert "There is no n-gram file" in refuse("none.txt")
    assert "There is no checkpoint" in refuse("none.pt")
    assert "this checkpoint is a diffusion model" in refuse("lookup", ckpt=trained["diffusion"])
    assert "gamma is 0" in refuse("lookup", gamma=0)
    assert "num_samples is 4" in refuse("lookup")
    enough = dict(num_samples=8, gamma=2)
    assert "of one target" in refuse(
        "lookup", ckpt=f"{trained['ar']},{trained['diffusion']}", **enough
    )
    assert "length is 4; from 8" in refuse("lookup", length=4, **enough)
    assert "length is 40" in refuse("lookup", length=40, **enough)
    train.main(knobs(tmp_path, dataset=pydoc, arch="ngram", ngram_n=1))
    assert "another vocabulary" in refuse(f"{tmp_path}/ngram.txt")
    assert "already holds a run" in refused(
        train.main, knobs(tmp_path, dataset=pydoc, arch="ngram")
    )


def test_the_gains_of_several_seeds_become_a_plot(tmp_path):
    for seed, ratio in (("a", 0.5), ("b", 0.72)):
        own = {
            "steps": 2,
            "made_for": 2,
            "tokens_per_step": 8.0,
            "ratio": ratio,
            "low": ratio - 0.1,
            "high": 1.0,
        }
        outside = own | {"steps": 4, "made_for": 4, "tokens_per_step": 4.0, "ratio": None}
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "eval.json").write_text(
            json.dumps({"gains": [own, own | {"steps": 1}, outside]})
        )
    out, _ = run("lessons/gains.py", f"{tmp_path}/gains.png", f"{tmp_path}/a", f"{tmp_path}/b")
    assert out.split() == ["8", "tokens", "a", "step:", "0.600"]  # the geometric mean
    assert (tmp_path / "gains.png").read_bytes()[:4] == b"\x89PNG"
