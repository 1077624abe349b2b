"""
python -m pytest tests/test_eval.py          every number of eval.py, computed by hand or enumerated
"""

import json
import math
import types

import pytest
import reference
import torch
from conftest import knobs, run, tiny_model

import data
import eval as E
import metrics
import train
from drafters import load_model
from plumbing import checkpoints
from plumbing.checkpoints import load_checkpoint, save_checkpoint
from plumbing.randomness import seeded
from plumbing.report import write_report


def settings(**kw):
    small = {"device": "cpu", "num_samples": 4, "eval_blocks": 8}
    return types.SimpleNamespace(**{**vars(E.cfg), **small, **kw})


def is_a_picture(path):
    return path.read_bytes()[:4] == b"\x89PNG"


def log_probs(model, x):
    """(n, L) -> (n, L - 1) log-probability of each token but the first."""
    return model(x[:, :-1]).log_softmax(-1).gather(-1, x[:, 1:, None]).squeeze(-1)


# --------------------------------------------------------------------------------------------------
# numbers


def test_entropy_of_known_samples():
    x = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4], [5, 5, 6, 6]])
    assert metrics.entropies(x).tolist() == pytest.approx([0, math.log(4), math.log(2)])


def test_repetition_is_counted_within_a_text():
    fresh = [1, 2, 3, 4, 5, 6, 7]
    assert metrics.repeated(torch.tensor([fresh])) == 0
    assert metrics.repeated(torch.tensor([[1] * 7, fresh])) == pytest.approx(3 / 8)


@torch.no_grad()
def test_the_evaluator_scores_every_token_once_except_the_first():
    evaluator = tiny_model(causal=True)
    x = torch.randint(7, (5, 40))  # longer than the evaluator's context of 16: three windows
    want = sum(log_probs(evaluator, x[:, start : start + 17]).sum() for start in (0, 16, 32))
    nats = metrics.evaluator_nats(evaluator, x, metrics.scored_positions(x), batch_size=2)
    assert nats.shape == (5,) and nats.sum().item() == pytest.approx(-want.item(), rel=1e-5)


@torch.no_grad()
def test_scored_is_what_follows_the_prefix_up_to_the_first_end_of_text():
    evaluator = tiny_model(causal=True)
    x = torch.tensor([[1, 2, 3, 6, 4, 6, 6, 5], [6, 1, 6, 2, 3, 6, 4, 6]])
    log_p = log_probs(evaluator, x)  # of tokens 1 ... 7
    meta = {"tokenizer": "char", "vocab_size": 7, "eot": 6}
    expected = {0: ([1, 2, 3, 4, 7], [1, 3, 4, 6]), 3: ([3, 4, 7], [3, 4, 6])}
    for prefix, positions in expected.items():
        picked = [log_p[row, i - 1] for row, chosen in enumerate(positions) for i in chosen]
        row, per_text = E.score(x, {"prefix": prefix}, evaluator, meta, settings())
        assert row["genppl"] == pytest.approx(math.exp(-sum(picked) / len(picked)), rel=1e-5)
        assert per_text[:, 1].tolist() == [len(chosen) for chosen in positions]


def test_self_bleu_is_the_literal_one():
    assert metrics.self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert metrics.self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0
    for seed in range(5):
        x = torch.randint(3, (6, 12), generator=seeded(seed)).tolist()
        assert metrics.self_bleu(x) == pytest.approx(reference.self_bleu(x), abs=1e-9)
    assert 0 < metrics.self_bleu(x) < 1


def test_likelihood_of_a_gpt_is_exact_and_of_diffusion_repeats():
    gpt = tiny_model(causal=True)
    x = torch.randint(7, (10, 17))
    how = dict(draws=4, seed=1337, batch_size=4)
    nats, error = metrics.likelihood(gpt, x, **how)
    assert nats == pytest.approx(-log_probs(gpt, x).mean().item(), rel=1e-5) and error > 0
    a, b = (metrics.likelihood(tiny_model(), x[:, :16], **how) for _ in range(2))
    assert a == b


def test_a_likelihood_of_one_batch_has_no_error():
    x = torch.randint(7, (3, 17))
    assert metrics.likelihood(tiny_model(causal=True), x, draws=4, seed=0, batch_size=4)[1] is None


def equal_texts(entropy, nats):
    """Ten texts of ten tokens, all of that entropy and those nats per token -> (10, 3)."""
    return torch.tensor([[nats * 10, 10, entropy]] * 10, dtype=torch.float64)


TEACHER = [equal_texts(4.0, 3.0), equal_texts(3.0, 1.0), equal_texts(3.5, 1.5)]


def test_a_student_is_compared_at_the_teachers_entropy():
    """The frontier is a line in (entropy, log perplexity)."""
    between = metrics.over_frontier(equal_texts(3.75, 2.0), TEACHER)
    assert between == pytest.approx(math.exp(2.0 - 2.25))
    assert metrics.over_frontier(equal_texts(3.1, 2.0), TEACHER) == pytest.approx(math.exp(0.9))
    assert list(metrics.gain(equal_texts(3.75, 2.0), [TEACHER], 0).values()) == pytest.approx(
        [math.exp(-0.25)] * 3
    )


def test_a_student_is_compared_with_the_best_line_at_its_entropy():
    better = [equal_texts(4.0, 2.5), equal_texts(3.6, 1.0)]  # at 3.75 nats 1.5625, TEACHER 2.25
    for entropy, expected in ((3.75, 2.0 - 1.5625), (3.55, 2.0 - 1.65)):  # the second: TEACHER only
        ratio, low, high = metrics.gain(equal_texts(entropy, 2.0), [TEACHER, better], 0).values()
        assert [ratio, low, high] == pytest.approx([math.exp(expected)] * 3)


def test_there_is_no_gain_where_the_teacher_has_no_such_entropy():
    for entropy in (2.9, 4.1):
        assert metrics.over_frontier(equal_texts(entropy, 2.0), TEACHER) is None
        gain = metrics.gain(equal_texts(entropy, 2.0), [TEACHER], 0)
        assert gain == {"ratio": None, "low": None, "high": None}


def test_the_interval_of_a_gain_holds_the_errors_of_both():
    scale = torch.tensor([1.0, 0.0, 0.1])
    noise = torch.randn(200, 2, 3, dtype=torch.float64, generator=seeded(0)) * scale
    student = equal_texts(3.75, 2.25)[:1] + noise[:, 0]
    teacher = [texts[:1] + noise[:, 1] for texts in TEACHER]
    ratio, low, high = metrics.gain(student, [teacher], 0).values()
    assert low < ratio < high and low < 1 < high and high - low < 0.15


def test_latency_is_the_median_per_sample(monkeypatch):
    clock = iter([0, 99, 100, 106, 200, 203, 300, 309])  # the first lap warms up
    shapes = []

    def draw_samples(model, template, **options):
        shapes.append(template.shape)
        return template

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(metrics, "draw_samples", draw_samples)
    assert metrics.seconds_per_sample(tiny_model(), torch.full((3, 16), -1), 1337) == 2.0
    assert shapes == [(3, 16)] * 4


# --------------------------------------------------------------------------------------------------
# eval.py


def test_the_report_has_every_row_and_the_plot_is_a_picture(trained, tmp_path, capsys):
    out = tmp_path / "out"
    ckpt = ",".join(trained.values())
    E.main(settings(ckpt=ckpt, evaluator=trained["ar"], steps=[1, 16], out=str(out)))
    report = json.loads((out / "eval.json").read_text())
    kinds = {path: r["kind"] for path, r in report["likelihood"].items()}
    assert kinds == {trained["diffusion"]: "upper bound", trained["ar"]: "exact"}
    for r in report["likelihood"].values():
        assert r["ppl"] == pytest.approx(math.exp(r["nats"]))
        assert r["bits_per_char"] == pytest.approx(r["nats"] / math.log(2))
        assert 1.0 < r["nats"] < 3.0
    assert [(r["model"], r["steps"]) for r in report["rows"]] == [
        (trained["diffusion"], 1),
        (trained["diffusion"], 16),
        (trained["ar"], 16),
        ("real text", None),
    ]
    assert all(r["genppl"] > 1 and 0 < r["entropy"] <= math.log(8) for r in report["rows"])
    assert is_a_picture(out / "eval.png")
    said = capsys.readouterr().out
    assert "seed 1337" in said and (out / "eval.txt").read_text() in said


def test_a_plot_of_an_earlier_run_goes(trained, tmp_path):
    (tmp_path / "frontier.png").write_text("old")
    E.main(settings(ckpt=trained["ar"], what="nelbo", out=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval.txt"]


def test_what_is_reported_is_computed_in_float32(trained):
    kw = dict(ckpt=",".join(trained.values()), evaluator=trained["ar"], steps=[2])
    halves = E.evaluate(settings(**kw, what="nelbo", dtype="bfloat16"))
    floats = E.evaluate(settings(**kw, what="nelbo", dtype="float32"))
    assert halves["likelihood"] == floats["likelihood"]


def test_several_checkpoints_by_pattern_nucleus_rows_and_latency(trained, tmp_path, capsys):
    model = load_checkpoint(trained["diffusion"])
    for r in (2, 10, 1):
        save_checkpoint(tmp_path / f"round_{r}.pt", model)
    rounds = [f"{tmp_path}/round_{r}.pt" for r in (1, 2, 10)]
    out = tmp_path / "out"
    kw = dict(ckpt=f"{tmp_path}/round_*.pt,{trained['ar']}", evaluator=trained["ar"])
    kw |= dict(steps=[1, 2], ar_top_p=[1.0, 0.5], latency_batch=[1, 3], num_samples=2)
    E.main(settings(**kw, what="genppl,latency", out=str(out)))
    report = json.loads((out / "eval.json").read_text())

    names = [(r["model"], r["steps"]) for r in report["rows"]]
    gpt = [(trained["ar"], 16), (f"{trained['ar']}, top_p 0.5", 16)]
    assert names == [(path, k) for path in rounds for k in (1, 2)] + gpt + [("real text", None)]
    # half of the probability: fewer different tokens
    assert report["rows"][-3]["entropy"] > report["rows"][-2]["entropy"]

    timed = [(r["model"], r["batch"], r["steps"]) for r in report["latency"]]
    diffusion = [(rounds[0], batch, k) for batch in (1, 3) for k in (1, 2)]
    assert timed == diffusion + [(trained["ar"], batch, 16) for batch in (1, 3)]
    assert all(0 < r["s_per_sample"] < 5 for r in report["latency"])
    assert report["timed"] == dict.fromkeys(rounds, rounds[0]) | {trained["ar"]: trained["ar"]}
    assert is_a_picture(out / "eval.png") and is_a_picture(out / "latency.png")
    assert "seconds per sample" in capsys.readouterr().out


def test_a_sampler_that_takes_no_steps_is_tried_once(trained):
    kw = dict(ckpt=trained["diffusion"], evaluator=trained["ar"], sampler="first_hitting")
    kw |= dict(what="genppl,latency", steps=[2, 4], latency_batch=[1], num_samples=2)
    report = E.evaluate(settings(**kw))
    assert [r["steps"] for r in report["rows"]] == [16, None]  # a token a step, real text
    assert [r["steps"] for r in report["latency"]] == [16]


def test_patterns_name_checkpoints_in_the_order_of_their_rounds(tmp_path, error_of):
    for r in (2, 10, 1):
        (tmp_path / f"round_{r}.pt").write_text("")
    rounds = [f"{tmp_path}/round_{r}.pt" for r in (1, 2, 10)]
    assert checkpoints.paths_of(f"a.pt,{tmp_path}/round_*.pt,b.pt") == ["a.pt", *rounds, "b.pt"]
    assert "No file matches" in error_of(checkpoints.paths_of, f"{tmp_path}/none_*.pt")


def test_models_of_different_shapes_are_timed_separately(trained, markov, tmp_path, monkeypatch):
    train.main(knobs(tmp_path / "wide", dataset=markov, n_embd=32, max_iters=1))
    wide = str(tmp_path / "wide" / "ckpt.pt")
    drawn = []
    monkeypatch.setattr(metrics, "seconds_per_sample", lambda model, *_, **__: model.config.n_embd)
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda self, x, y, style, label: drawn.append((label, x))
    )
    kw = dict(what="genppl,latency", steps=[2], latency_batch=[1], num_samples=2)
    both = f"{trained['diffusion']},{wide}"
    E.main(settings(ckpt=both, evaluator=trained["ar"], out=str(tmp_path / "out"), **kw))
    assert drawn[-2:] == [(trained["diffusion"], [16]), (wide, [32])]


def test_the_frontier_of_a_teacher_and_its_student(trained, tmp_path, error_of):
    teacher = trained["diffusion"]
    student = str(tmp_path / "student.pt")
    save_checkpoint(student, load_checkpoint(teacher))
    kw = dict(steps=[1, 4], temperatures=[1.0, 0.5], what="frontier", out=str(tmp_path))
    kw |= dict(ckpt=f"{teacher},{student},{trained['ar']}")
    E.main(settings(evaluator=trained["ar"], **kw))
    report = json.load(open(tmp_path / "eval.json"))
    assert len(report["frontier"]) == 2 * 4 + 2 + 1
    assert report["frontier"][-1]["model"] == "real text"
    gains = [(r["steps"], round(r["ratio"], 6), r["tokens_per_step"]) for r in report["gains"]]
    assert gains == [(1, 1, 16), (4, 1, 4)]
    cold, warm = (next(r for r in report["frontier"] if r["temperature"] == t) for t in (0.5, 1.0))
    assert cold["entropy"] < warm["entropy"]
    assert is_a_picture(tmp_path / "frontier.png")
    assert "over the first's at equal entropy" in (tmp_path / "eval.txt").read_text()
    assert "--evaluator=" in error_of(E.evaluate, settings(**kw))


def test_a_frontier_over_falling_temperatures_beside_a_uniform_one(trained, tmp_path):
    paths = f"{trained['diffusion']},{trained['ar']}"
    kw = dict(steps=[1, 4], temperatures=[1.0, 0.3], coolings=[1.0, 0.5], what="frontier")
    report = E.evaluate(settings(ckpt=paths, evaluator=trained["ar"], **kw))
    *rows, _ = report["frontier"]
    # nothing falls in one step, nor in a GPT
    lines = [(r["steps"], r["cooling"]) for r in rows if r["temperature"] == 1.0]
    assert lines == [(1, 1.0), (4, 1.0), (4, 0.5), (16, 1.0)]
    falling, uniform = (
        next(r for r in rows if (r["steps"], r["temperature"], r["cooling"]) == (4, 1.0, c))
        for c in (0.5, 1.0)
    )
    assert falling["entropy"] < uniform["entropy"]
    # the teacher's falling temperature is compared with its uniform one
    assert [(r["steps"], r["cooling"]) for r in report["gains"]] == [(4, 0.5)]
    write_report(report, str(tmp_path))
    assert is_a_picture(tmp_path / "frontier.png")


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "s_per_sample"} for row in rows]


def test_evaluating_again_gives_the_same_numbers(trained):
    cfg = settings(ckpt=trained["diffusion"], evaluator=trained["ar"], steps=[4])
    once, again = (without_seconds(E.evaluate(cfg)["rows"]) for _ in range(2))
    assert once == again


def test_evaluation_on_two_processes_says_the_same(trained, tmp_path):
    args = [f"--ckpt={trained['diffusion']},{trained['ar']}", f"--evaluator={trained['ar']}"]
    args += ["--what=nelbo,genppl,selfbleu", "--steps=4", "--num_samples=6", "--batch_size=2"]
    args += ["--eval_blocks=9", "--device=cpu", "--dtype=float32"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    reports = []
    for n, command in ((1, []), (2, launcher)):
        run(*command, "eval.py", *args, f"--out={tmp_path}/{n}", env={"OMP_NUM_THREADS": "1"})
        reports.append(json.loads((tmp_path / str(n) / "eval.json").read_text()))
    one, two = reports
    assert without_seconds(one["rows"]) == without_seconds(two["rows"])
    assert one["likelihood"] == two["likelihood"] and (one["processes"], two["processes"]) == (1, 2)


def test_mistakes_end_before_any_work(trained, pydoc, tmp_path, error_of):
    def said(**kw):
        return error_of(E.evaluate, settings(**{"ckpt": trained["ar"], **kw}))

    assert "'fid'" in said(what="nelbo,fid")
    assert "steps is [4, 0]" in said(steps=[4, 0])
    assert "latency_batch is [0]" in said(latency_batch=[0])
    assert "ar_top_p is []" in said(ar_top_p=[])
    assert "ar_top_p is [1.5]" in said(ar_top_p=[1.5])
    assert "length is -5" in said(length=-5)
    assert "length is 1" in said(length=1)
    assert "temperature is -1" in said(temperature=-1.0)
    assert "'best'" in said(sampler="best")
    assert "'maybe'" in said(compile="maybe")
    for knob in ("num_samples", "batch_size", "draws", "eval_blocks"):
        assert f"{knob} is 0" in said(**{knob: 0})
    both = dict(ckpt=trained["diffusion"], evaluator=trained["diffusion"])
    assert "must be autoregressive" in said(**both)
    assert "another vocabulary" in said(dataset=pydoc, what="nelbo")
    assert "nothing to evaluate" in said(ckpt="")
    assert "at least two" in said(what="frontier", temperatures=[1.0])
    frontier = dict(what="frontier", ckpt=trained["diffusion"], evaluator=trained["ar"])
    assert "at least 4 tokens" in said(**frontier, length=3)
    other = load_checkpoint(trained["ar"])
    other["meta"] = {"tokenizer": "gpt2", "vocab_size": 8}
    save_checkpoint(tmp_path / "other.pt", other)
    assert "another vocabulary" in said(
        ckpt=trained["diffusion"], evaluator=str(tmp_path / "other.pt")
    )


# --------------------------------------------------------------------------------------------------
# samples in files


def save(path, model, **about):
    """Writes the samples that eval.py draws of a checkpoint into a file -> (n, L) int64."""
    own = dict(steps=[4], num_samples=6, batch_size=2, dtype="float32")
    knobs_too = {k: v for k, v in about.items() if k in ("steps", "temperature", "length")}
    cfg = settings(**own | knobs_too, ckpt=model)
    models = E.load_models(cfg, "cpu")
    length = E.text_length(cfg, models, [])
    ((x, first_line),) = E.draw_texts(models, length, cfg, [cfg.temperature], [1.0], [cfg.top_p])
    checkpoint = models[model][1]
    first_line |= {"meta": checkpoint["meta"], "dataset": checkpoint["config"]["dataset"]}
    first_line |= {k: v for k, v in about.items() if k not in knobs_too}
    data.write_jsonl(path, [first_line, *({"tokens": row} for row in x.tolist())])
    return x


def test_saved_samples_are_measured_as_those_drawn_now(trained, tmp_path):
    path = tmp_path / "a.jsonl"
    save(path, trained["diffusion"])
    kw = dict(evaluator=trained["ar"], dtype="float32", what="genppl,selfbleu")
    kw |= dict(num_samples=6, batch_size=2, steps=[4], samples=str(path))
    drawn, read, real = E.evaluate(settings(ckpt=trained["diffusion"], **kw))["rows"]
    assert drawn.pop("s_per_sample") > 0 and read.pop("s_per_sample") > 0
    assert drawn == read and drawn["model"] == trained["diffusion"]
    alone = E.evaluate(settings(ckpt="", **kw))["rows"]
    assert without_seconds(alone) == [read, real]


def test_the_frontier_of_saved_samples_at_several_temperatures(trained, tmp_path):
    """Those of one checkpoint and number of steps are one line, compared with the first model's."""
    for t in (1.0, 0.5):
        for k in (4, 8):
            path = tmp_path / f"{k}_{t}.jsonl"
            save(path, trained["diffusion"], ckpt="student", steps=[k], temperature=t)
    kw = dict(what="frontier", evaluator=trained["ar"], samples=f"{tmp_path}/*.jsonl")
    kw |= dict(steps=[4], temperatures=[1.0, 0.5], num_samples=6, batch_size=2, dtype="float32")
    report = E.evaluate(settings(ckpt=trained["diffusion"], **kw))
    points = [(r["model"], r["steps"], r["temperature"]) for r in report["frontier"]]
    student = [("student", k, t) for k in (4, 8) for t in (0.5, 1.0)]
    assert points == [(trained["diffusion"], 4, t) for t in (1.0, 0.5)] + student + [
        ("real text", None, None)
    ]
    ((ratio, n_steps, model),) = [(r["ratio"], r["steps"], r["model"]) for r in report["gains"]]
    assert (n_steps, model) == (4, "student") and ratio == pytest.approx(1)  # the same texts


def test_files_alone_have_their_first_as_the_teacher(trained, tmp_path):
    paths = []
    for name, t in (("teacher", 1.0), ("teacher", 0.5), ("student", 1.0)):
        paths.append(str(tmp_path / f"{name}_{t}.jsonl"))
        save(paths[-1], trained["diffusion"], ckpt=name, temperature=t)
    kw = dict(ckpt="", what="frontier", evaluator=trained["ar"], out=str(tmp_path / "out"))
    E.main(settings(samples=",".join(paths), **kw))
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert [(r["model"], r["ratio"]) for r in report["gains"]] == [("student", pytest.approx(1))]
    assert is_a_picture(tmp_path / "out" / "frontier.png")
    (report,) = [E.evaluate(settings(samples=",".join(paths[1:]), **kw))]
    assert report["gains"] == []  # one temperature is no frontier


def test_saved_samples_need_no_steps(trained, tmp_path):
    path = tmp_path / "a.jsonl"
    save(path, trained["diffusion"])
    first, *texts = data.read_jsonl(path)
    data.write_jsonl(path, [first | {"steps": None, "ckpt": "elsewhere"}, *texts])
    kw = dict(what="genppl,frontier", evaluator=trained["ar"], samples=str(path))
    E.main(settings(ckpt="", **kw, out=str(tmp_path / "alone")))
    report = json.loads((tmp_path / "alone" / "eval.json").read_text())
    assert report["gains"] == [] and [r["steps"] for r in report["frontier"]] == [None, None]
    kw |= dict(steps=[2], temperatures=[1.0, 0.5], out=str(tmp_path / "beside"))
    E.main(settings(ckpt=trained["diffusion"], **kw))
    assert is_a_picture(tmp_path / "beside" / "frontier.png")


def test_saved_samples_of_a_timed_model_at_other_steps_have_no_seconds(trained, tmp_path):
    save(tmp_path / "a.jsonl", trained["diffusion"], steps=[8])
    kw = dict(what="genppl,latency", evaluator=trained["ar"], steps=[2], latency_batch=[1])
    kw |= dict(samples=f"{tmp_path}/a.jsonl", ckpt=trained["diffusion"], out=str(tmp_path))
    E.main(settings(**kw))
    assert is_a_picture(tmp_path / "latency.png")


def test_self_bleu_is_of_as_many_samples_as_there_are_real_texts(trained, tmp_path, monkeypatch):
    path = str(tmp_path / "a.jsonl")
    save(path, trained["diffusion"])
    about = data.read_jsonl(path)[0]
    x = torch.randint(2, (6, 16), generator=seeded(0))  # alike enough for 4-grams in common
    data.write_jsonl(path, [about, *({"tokens": row} for row in x.tolist())])
    blocks = data.blocks
    monkeypatch.setattr(data, "blocks", lambda tokens, length, n: blocks(tokens, length, min(n, 3)))
    row, real = E.evaluate(settings(samples=path, ckpt="", what="selfbleu"))["rows"]
    assert (row["texts"], real["texts"]) == (6, 3)
    assert row["self_bleu"] == metrics.self_bleu(x[[0, 2, 5]].tolist())
    assert row["self_bleu"] != metrics.self_bleu(x.tolist())
    continued = {"continuations": 3, "prefix": 0}
    assert E.self_bleu_of(x, continued, 2) == metrics.self_bleu(x[[0, 3]].tolist())


def test_continuations_are_compared_with_the_text_that_they_continue(
    trained, markov, tmp_path, error_of
):
    texts = data.blocks(data.load(markov).val, 12, 2)
    for name, ckpt in trained.items():
        save(tmp_path / f"{name}.jsonl", ckpt, prefix=5, continuations=3, length=12)
    both = f"{tmp_path}/diffusion.jsonl,{tmp_path}/ar.jsonl"
    kw = dict(evaluator=trained["ar"], what="genppl")
    report = E.evaluate(settings(samples=both, ckpt="", **kw))
    evaluator = load_model(trained["ar"])[0]
    with torch.no_grad():
        nats = -log_probs(evaluator, texts)[:, 4:].mean().item()
    assert report["rows"][-1]["genppl"] == pytest.approx(math.exp(nats))
    save(tmp_path / "other.jsonl", trained["ar"], prefix=4, length=12)
    three = f"{both},{tmp_path}/other.jsonl"
    said = error_of(E.evaluate, settings(samples=three, ckpt="", **kw))
    assert "do not compare (12 tokens, 4 of them a prefix, 1 for each; 12 tokens, 5" in said
    beside = settings(samples=both, ckpt=trained["ar"], **kw)
    assert "Evaluate them alone" in error_of(E.evaluate, beside)


def test_damaged_files_of_samples_end_in_one_line(trained, tmp_path, error_of):
    save(tmp_path / "a.jsonl", trained["ar"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    for name, text in {
        "cut": "\n".join(lines)[:-30],
        "odd": "\n".join([lines[0], '{"tokens": [1, 2]}', '{"tokens": [1]}']),
        "big": "\n".join([lines[0], '{"tokens": [1, 99]}']),
        "empty": "",
        "list": "[]",
        "about": '{"ckpt": "a.pt"}\n{"tokens": [1, 2]}',
    }.items():
        (tmp_path / name).write_text(text)
        assert "holds no samples" in error_of(data.load_samples, str(tmp_path / name))


def test_mistakes_with_samples_end_in_one_line(trained, tmp_path, error_of):
    path = str(tmp_path / "a.jsonl")
    save(path, trained["ar"])
    other = load_checkpoint(trained["ar"])
    other["meta"] = {"tokenizer": "gpt2", "vocab_size": 8}
    save_checkpoint(tmp_path / "other.pt", other)

    def said(**kw):
        return error_of(E.evaluate, settings(**{"samples": path, "ckpt": "", **kw}))

    assert "another vocabulary" in said(what="genppl", evaluator=str(tmp_path / "other.pt"))
    assert "another vocabulary" in said(what="genppl", ckpt=str(tmp_path / "other.pt"))
    assert "nelbo needs a model" in said(what="genppl,nelbo")
    assert "16 tokens" in said(what="genppl", length=12)


# --------------------------------------------------------------------------------------------------
# drafters


@pytest.fixture(scope="module")
def some_drafters(markov, tmp_path_factory):
    """Paths of an n-gram and an LSTM for the GPT of `trained`."""
    folder = tmp_path_factory.mktemp("drafters")
    train.main(knobs(folder / "ngram", dataset=markov, arch="ngram", ngram_n=3))
    small = dict(arch="lstm", n_layer=1, block_size=48)
    train.main(knobs(folder / "lstm", dataset=markov, objective="ar", **small))
    return [str(folder / "ngram" / "ngram.txt"), str(folder / "lstm" / "ckpt.pt")]


@pytest.fixture(scope="module")
def long_gpt(markov, tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    train.main(knobs(folder, dataset=markov, objective="ar", block_size=48))
    return str(folder / "ckpt.pt")


def test_the_table_of_drafters(long_gpt, some_drafters, tmp_path, capsys):
    paths = [*some_drafters, long_gpt, "lookup"]
    kw = dict(what="acceptance", ckpt=long_gpt, draft=",".join(paths), num_samples=12)
    E.main(settings(**kw, out=str(tmp_path / "out"), dtype="float32"))
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["drafters"]
    assert [r["drafter"] for r in rows] == paths
    for r in rows:
        assert 0 <= r["alpha"] <= 1.0001 and r["speedup"] > 0 and r["c"] > 0
        assert len(r["counted_at"]) == r["gamma"] in metrics.GAMMAS
        speed = metrics.predicted_speedup(
            r["alpha"], r["c"], r["gamma"], r["verify"], r["propose_rate"]
        )
        assert r["predicted"] == pytest.approx(speed)
        assert 0 <= r["rejected"] <= r["drafts"]
    for r in rows[:3]:
        assert abs(r["alpha"] - r["counted_at"][0]) < 0.15  # two estimates of one number
    own = rows[2]
    assert own["alpha"] == pytest.approx(1) and own["alpha_counted"] == 1
    assert is_a_picture(tmp_path / "out" / "drafters.png")
    assert "tokens/forward" in capsys.readouterr().out


def test_the_table_of_drafters_after_prompts(long_gpt, tmp_path, error_of):
    letters = load_checkpoint(long_gpt)["meta"]["itos"]
    lines = [{"prompt": letters[i % 8] * 10, "reference": "x"} for i in range(9)]
    data.write_jsonl(tmp_path / "prompts.jsonl", lines)
    kw = dict(what="acceptance", ckpt=long_gpt, draft="lookup", num_samples=8)
    kw |= dict(prompts=str(tmp_path / "prompts.jsonl"), dataset="none")  # which is not needed
    (row,) = E.evaluate(settings(**kw))["drafters"]
    assert row["drafter"] == "lookup"
    data.write_jsonl(kw["prompts"], [line | {"prompt": letters[0] * 40} for line in lines])
    assert "leave no room in 36" in error_of(E.evaluate, settings(**kw, length=36))


def test_mistakes_with_drafters(trained, long_gpt, pydoc, tmp_path, error_of):
    def said(draft, **kw):
        cfg = {"ckpt": long_gpt, "draft": draft, "what": "acceptance", "num_samples": 8, **kw}
        return error_of(E.evaluate, settings(**cfg))

    assert "acceptance needs drafters" in said("")
    assert "There is no n-gram file" in said("none.txt")
    assert "There is no checkpoint" in said("none.pt")
    assert "this is a diffusion model" in said("lookup", ckpt=trained["diffusion"])
    assert "num_samples is 4" in said("lookup", num_samples=4)
    assert "one target" in said("lookup", ckpt=f"{trained['ar']},{trained['diffusion']}")
    assert "--length=16" in said(trained["ar"])  # the context of the drafter
    assert "length is 20" in said("lookup", length=20)
    assert "length is 60" in said("lookup", length=60)
    train.main(knobs(tmp_path, dataset=pydoc, arch="ngram", ngram_n=1))
    assert "another vocabulary" in said(f"{tmp_path}/ngram.txt")


# --------------------------------------------------------------------------------------------------
# what reads eval.json


def test_the_gains_of_several_seeds_become_a_plot(tmp_path):
    for seed, ratio in (("a", 0.5), ("b", 0.72)):
        own = {"steps": 2, "made_for": 2, "tokens_per_step": 8.0}
        own |= {"ratio": ratio, "low": ratio - 0.1, "high": 1.0}
        outside = own | {"steps": 4, "made_for": 4, "tokens_per_step": 4.0, "ratio": None}
        worse = own | {"cooling": 0.3, "ratio": 0.9}
        rows = [own, worse, own | {"steps": 1}, outside]
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "eval.json").write_text(json.dumps({"gains": rows}))
    out, _ = run("lessons/gains.py", f"{tmp_path}/gains.png", f"{tmp_path}/a", f"{tmp_path}/b")
    assert out.split() == ["8", "tokens", "a", "step:", "0.600"]  # the geometric mean
    assert is_a_picture(tmp_path / "gains.png")
