"""
python -m pytest tests/test_extras_lambada.py
"""

import json
import math

import numpy as np
import pytest
import reference
import torch
from conftest import run, tiny_model

import model as M
from extras import lambada as L
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_the_last_word_of_a_passage(causal):
    V = 4
    model = tiny_model(V=V, causal=causal)
    # the last one is cut to 16 tokens
    passages = [([1, 2, 3], [0, 2]), ([2], [1]), (list(range(4)) * 4, [3, 1, 0])]
    got = L.lambada(model, passages, draws=3000, seed=1337)
    hits = []
    nats = []
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
    model = tiny_model(V=4)
    x0 = torch.tensor([[3, 0, 1]])
    exact = math.log(L.lambada(model, [([], [3, 0, 1])], draws=4, seed=0)["ppl"]) / 3
    drawn = np.mean([M.nelbo(model, x0.expand(99, 3), seeded(i)).item() for i in range(60)])
    assert drawn == pytest.approx(exact, rel=0.02)


@torch.no_grad()
def test_the_sets_of_a_long_word_are_read_32_at_a_time(monkeypatch):
    model = tiny_model(V=4)
    x = torch.randint(4, (12,), generator=seeded(0))
    sets = L.all_sets(7)  # 127 of them
    whole = [L.masked_word(model, x, one[None])[0] for one in sets]
    sizes = []

    def watched(model, x, m):
        sizes.append(len(x))
        return log_p_of_last(model, x, m)

    log_p_of_last = L.log_p_of_last
    monkeypatch.setattr(L, "log_p_of_last", watched)
    nats, predicted = L.masked_word(model, x, sets)
    torch.testing.assert_close(nats, torch.cat(whole))
    assert sizes == [32, 32, 32, 31]
    assert predicted.equal(L.masked_word(model, x, sets[-1:])[1])


def test_a_long_word_counts_for_the_accuracy_only(error_of):
    model = tiny_model(V=4, causal=False)
    passages = [([0], [1]), ([0], [1] * 9), ([0], [1] * 16)]
    row = L.lambada(model, passages, draws=4, seed=0)
    assert (row["passages"], row["words_in_ppl"]) == (2, 1)  # the third leaves no room
    assert "No passage ends" in error_of(L.lambada, model, [([0], [1] * 9)], draws=4, seed=0)


def passages_of(meta, folder, word_length=9):
    letters = meta["itos"]
    lines = [
        {"context": letters[0] + letters[1], "word": letters[2]},
        {"context": letters[3], "word": letters[4] * word_length},
    ]
    (folder / "meta.json").write_text(json.dumps(meta))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "passages.jsonl").write_text(text)


def test_the_command_prints_and_saves_every_model(trained, tmp_path):
    passages_of(load_checkpoint(trained["ar"])["meta"], tmp_path)
    ckpt = f"--ckpt={','.join(trained.values())}"
    out = tmp_path / "out" / "lambada.json"
    how = (ckpt, f"--passages={tmp_path}", f"--out={out}", "--device=cpu")
    said, _ = run("-m", "extras.lambada", *how)
    assert said.count("LAMBADA accuracy") == 2 and said.count("Monte Carlo") == 1
    report = json.loads(out.read_text())
    assert list(report) == list(trained.values())
    # 2^9 sets are too many: the second word is out for both
    assert [r["words_in_ppl"] for r in report.values()] == [1, 1]


def test_two_processes_find_the_same(trained, tmp_path):
    passages_of(load_checkpoint(trained["ar"])["meta"], tmp_path, word_length=2)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    reports = []
    for n, command in ((1, []), (2, launcher)):
        how = [f"--ckpt={trained['diffusion']}", f"--passages={tmp_path}", "--device=cpu"]
        out = tmp_path / f"{n}.json"
        run(*command, "-m", "extras.lambada", *how, f"--out={out}", env={"OMP_NUM_THREADS": "1"})
        reports.append(json.loads(out.read_text()))
    assert reports[0] == reports[1]


def test_mistakes_end_in_one_line(trained, tmp_path, error_of):
    meta = load_checkpoint(trained["ar"])["meta"]
    cfg = type(L.cfg)(**{**vars(L.cfg), "ckpt": trained["ar"], "passages": str(tmp_path)})
    assert "meta.json is missing" in error_of(L.main, cfg)
    passages_of(meta, tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "itos": meta["itos"][::-1]}))
    assert "another vocabulary" in error_of(L.main, cfg)
    (tmp_path / "passages.jsonl").write_text("{")
    assert "is damaged" in error_of(L.main, cfg)
    (tmp_path / "passages.jsonl").unlink()
    assert "passages.jsonl is missing" in error_of(L.main, cfg)
