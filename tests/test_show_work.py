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

from model import diffusion_loss
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


def test_what_is_shown_is_what_the_functions_computed(models, capsys):
    paths, model = models
    refused = set()
    for seed in "123456":
        W.main("abcdefgabcdefg", *paths, seed)
        loss, reverse, speculation = re.split(r"^[23]\. ", capsys.readouterr().out, flags=re.M)
        x0, noise = torch.arange(14)[None] % 7, lambda: seeded(seed, "loss")  # noqa: B023
        held = W.inside(diffusion_loss, lambda: diffusion_loss(model, x0, noise()))  # noqa: B023
        total = numbers("The sum,", loss)[0]
        assert total == pytest.approx(diffusion_loss(model, x0, noise()).item(), abs=1e-3)
        assert total == pytest.approx(
            reference.diffusion_loss(model, x0, held["xt"], held["t"]).item(), abs=1e-3
        )
        assert sum(numbers("adds", loss)) == pytest.approx(total, abs=0.01)
        assert (
            loss.count(" adds ")
            == reverse.count(" drawn, ")
            == int((held["xt"] == model.mask_id).sum())
            > 0
        )
        assert "0.50, 1.00" in reverse and "░" not in reverse.strip().splitlines()[-1]
        q, p, chance = (numbers(name, speculation) for name in (" q", " p", "min(1, p / q)"))
        for q_x, p_x, c in zip(q, p, chance, strict=True):
            assert c == pytest.approx(min(1, p_x / q_x), abs=0.002 / q_x)
        judged = re.findall("accepted|refused|not judged", speculation)
        assert len(judged) == len(q) == 4 and judged == sorted(
            judged, key=["accepted", "refused", "not judged"].index
        )
        assert ("refused" in judged) == ("residual" in speculation) and judged.count("refused") <= 1
        refused.add("refused" in judged)
    assert True in refused


def test_a_text_or_model_that_does_not_fit_is_refused(models, refused):
    (diffusion, gpt), _ = models
    assert "must be a diffusion model and a GPT" in refused(W.main, "abc", gpt, diffusion)
    assert "from 2 to 16" in refused(W.main, "a", diffusion, gpt)
    assert "from 2 to 16" in refused(W.main, "a" * 17, diffusion, gpt)
