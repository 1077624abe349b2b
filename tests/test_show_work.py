"""
python -m pytest tests/test_show_work.py          what lessons/show_work.py prints, at toy size
"""

import os
import re
import runpy
import types

import pytest
import reference
import torch
from conftest import ROOT, save_tiny

from model import diffusion_loss, masked_nll
from plumbing.randomness import seeded

W = types.SimpleNamespace(**runpy.run_path(os.path.join(ROOT, "lessons", "show_work.py")))
LETTERS = list("abcdefg")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """-> [paths of a diffusion model and a GPT], the diffusion model."""
    folder = tmp_path_factory.mktemp("models")
    model = save_tiny(folder / "d.pt", LETTERS, causal=False)
    save_tiny(folder / "ar.pt", LETTERS, causal=True, seed=1)
    return [str(folder / "d.pt"), str(folder / "ar.pt")], model


def numbers(name, text):
    return [float(x) for x in re.findall(rf"{re.escape(name)} +(-?[\d.]+)", text)]


def parts_of(seed, models, capsys):
    """-> what is shown of the loss, the sampler and the speculation."""
    W.main("abcdefgabcdefg", *models[0], seed)
    return re.split(r"^[23]\. ", capsys.readouterr().out, flags=re.M)


@pytest.mark.parametrize("seed", "123")
def test_the_loss_that_is_shown_is_the_functions(seed, models, capsys):
    loss, steps, _ = parts_of(seed, models, capsys)
    _, model = models
    x0 = torch.arange(14)[None] % 7
    expected = diffusion_loss(model, x0, seeded(seed, "loss")).item()
    assert numbers("The sum,", loss)[0] == pytest.approx(expected, abs=1e-3)
    assert sum(numbers("adds", loss)) == pytest.approx(expected, abs=0.01)
    outer, inner = W.inside(
        lambda: diffusion_loss(model, x0, seeded(seed, "loss")), diffusion_loss, masked_nll
    )
    dense = reference.diffusion_loss(model, x0, inner["xt"], outer["t"]).item()
    assert expected == pytest.approx(dense, abs=1e-3)
    n_masked = int(outer["masked"].sum())
    assert loss.count(" adds ") == steps.count(" drawn, ") == n_masked > 0


def test_the_steps_that_are_shown_unmask_everything(models, capsys):
    _, steps, _ = parts_of("1", models, capsys)
    assert "0.50, 1.00" in steps and "░" not in steps.strip().splitlines()[-1]


def test_the_round_that_is_shown_is_verifys(models, capsys):
    n_rejected = 0
    for seed in "123456":
        _, _, speculation = parts_of(seed, models, capsys)
        names = (" q", " p", "min(1, p / q)", " u")
        rows = list(zip(*(numbers(name, speculation) for name in names), strict=True))
        verdicts = re.findall("accepted|rejected|not tested", speculation)
        assert len(verdicts) == len(rows) == 4
        for (q, p, chance, u), verdict in zip(rows, verdicts, strict=True):
            assert chance == pytest.approx(min(1, p / q), abs=0.002 / q)
            if verdict == "accepted":
                assert u <= chance
            if verdict == "rejected":
                assert u >= chance
        assert verdicts == sorted(verdicts, key=["accepted", "rejected", "not tested"].index)
        assert ("rejected" in verdicts) == ("residual" in speculation)
        assert verdicts.count("rejected") <= 1
        n_rejected += verdicts.count("rejected")
    assert n_rejected > 0


def test_a_text_or_model_that_does_not_fit_raises(models, error_of):
    (diffusion, gpt), _ = models
    assert "must be a diffusion model and a GPT" in error_of(W.main, "abc", gpt, diffusion)
    assert "from 2 to 16" in error_of(W.main, "a", diffusion, gpt)
    assert "from 2 to 16" in error_of(W.main, "a" * 17, diffusion, gpt)
