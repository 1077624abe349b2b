"""
python -m pytest tests/test_extras_save_samples.py          samples in a file, on any number of GPUs
"""

import types

import pytest
import torch
from conftest import knobs, run, save_tiny

import data
import train
from drafters import load_model
from extras import save_samples
from plumbing.checkpoints import load_checkpoint, save_checkpoint
from speculative import draw_many, empty_templates


@pytest.fixture(scope="module")
def trained(markov, tmp_path_factory):
    """Checkpoints of a diffusion model and of a GPT, a few steps old."""
    out = {}
    for objective in ("diffusion", "ar"):
        folder = tmp_path_factory.mktemp(objective)
        train.main(knobs(folder, dataset=markov, objective=objective))
        out[objective] = str(folder / "ckpt.pt")
    return out


FEW = dict(num_samples=6, batch_size=2, steps=4, device="cpu", dtype="float32")


def save(path, ckpt, **changed):
    """Writes six samples in batches of two."""
    own = {"ckpt": str(ckpt), "out": str(path), **FEW, **changed}
    save_samples.main(types.SimpleNamespace(**{**vars(save_samples.cfg), **own}))


def test_two_processes_write_the_file_that_one_writes(trained, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, ckpt in trained.items():
        save(tmp_path / f"{name}_1.jsonl", ckpt)
        own = [f"--{key}={value}" for key, value in FEW.items()]
        own += [f"--ckpt={ckpt}", f"--out={tmp_path}/{name}_2.jsonl"]
        run(*launcher, "-m", "extras.save_samples", *own, env={"OMP_NUM_THREADS": "1"})
        one, two = (tmp_path / f"{name}_{n}.jsonl" for n in (1, 2))
        assert one.read_text() == two.read_text() and len(one.read_text().splitlines()) == 7


def test_a_file_says_what_its_samples_are_and_holds_those_of_draw_many(trained, tmp_path):
    for name, ckpt in trained.items():
        save(tmp_path / "a.jsonl", ckpt, temperature=0.7, seed=3)
        x, about = data.load_samples(tmp_path / "a.jsonl")
        model, checkpoint = load_model(ckpt)
        templates = empty_templates(model, checkpoint["meta"], 6, 16)
        assert x.equal(draw_many(model, templates, 2, 3, n_steps=4, temperature=0.7))
        assert about["temperature"] == 0.7 and about["steps"] == (16 if name == "ar" else 4)
        assert about["causal"] == (name == "ar") and about["prefix"] == 0 and about["top_p"] == 1
        assert about["sampler"] == (None if name == "ar" else "spread")
        assert about["meta"] == checkpoint["meta"] and about["ckpt"] == ckpt


def test_continuations_begin_with_validation_text(trained, markov, tmp_path):
    for name, ckpt in trained.items():
        save(tmp_path / f"{name}.jsonl", ckpt, prefix=5, length=12, continuations=3)
        x, about = data.load_samples(tmp_path / f"{name}.jsonl")
        texts = data.blocks(data.load(markov).val, 12, 2)
        assert x.shape == (6, 12) and torch.equal(x[:, :5], texts.repeat_interleave(3, 0)[:, :5])
        assert len({tuple(row) for row in x[:3].tolist()}) > 1
        assert (about["prefix"], about["continuations"]) == (5, 3)


def test_a_students_own_sampler_and_steps_are_taken_and_said(trained, tmp_path):
    student = load_checkpoint(trained["diffusion"])
    student["made_for"] = {"sampler": "ancestral", "steps": 2}
    save_checkpoint(tmp_path / "student.pt", student)
    save(tmp_path / "a.jsonl", tmp_path / "student.pt", steps=0)
    about = data.load_samples(tmp_path / "a.jsonl")[1]
    assert (about["sampler"], about["steps"]) == ("ancestral", 2)


def test_mistakes_leave_no_file(trained, tmp_path, error_of, monkeypatch):
    save_tiny(tmp_path / "other.pt", list("abc"), causal=True)
    for words, changed in {
        "prefix is 16": dict(prefix=16),
        "prefix is -1": dict(prefix=-1),
        "does not divide into 4": dict(continuations=4),
        "batch_size is 0": dict(batch_size=0),
        "continuations is 0": dict(continuations=0),
        "num_samples is 0": dict(num_samples=0),
        "none/meta.json": dict(prefix=4, dataset="none"),
        "fewer than 6": dict(prefix=4, length=9000),
        "There is no checkpoint": dict(ckpt=f"{tmp_path}/none.pt"),
        "--out=FILE": dict(out=""),
    }.items():
        own = {"path": tmp_path / "x.jsonl", "ckpt": trained["ar"]}
        if "out" in changed:
            own["path"] = changed.pop("out")
        assert words in error_of(save, **{**own, **changed})
    wrong = dict(prefix=4, dataset=load_checkpoint(trained["ar"])["config"]["dataset"])
    assert "another vocabulary" in error_of(
        save, tmp_path / "x.jsonl", tmp_path / "other.pt", **wrong
    )
    assert not (tmp_path / "x.jsonl").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(save_samples, "draw_many", None)  # it raises before any work
    assert "Cannot write" in error_of(save, tmp_path / "file" / "x.jsonl", trained["ar"])
