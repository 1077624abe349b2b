"""
python -m pytest tests/test_extras_diffusion_drafter.py          a diffusion model drafts for a GPT
"""

import types

import pytest
import torch
from conftest import run, save_tiny, tiny_model
from test_speculative import Paths, distance, exact_distribution

import extras.diffusion_drafter as D
from extras.diffusion_drafter import Diffusion
from plumbing.randomness import seeded
from speculative import generate, speculate

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
LETTERS = list("abcdefg")
PROMPT = [0, 1, 1, 0, 1]


def make_drafter(V, steps=1, block_size=16):
    return Diffusion(tiny_model(V=V, seed=2, block_size=block_size), steps)


def drafted_distribution(monkeypatch, target, drafter, prompt, n_new, **options):
    paths = Paths(monkeypatch)
    x = torch.tensor(prompt)

    def draw(p, generator=None):
        """(n, V) -> (n): a group of drafts, one after the other."""
        return torch.stack([paths.draw(row) for row in p])

    monkeypatch.setattr(D, "draw", draw)
    return paths.distribution(
        lambda: tuple(speculate(target, drafter, x, n_new, **options).tolist())
    )


@pytest.mark.parametrize("steps, block_size", [(1, 16), (2, 16), (4, 16), (1, 4), (2, 2)])
@pytest.mark.parametrize("gamma", [1, 3])
@pytest.mark.parametrize("prompt", [[1], PROMPT])
def test_the_text_has_the_gpts_distribution(steps, block_size, gamma, prompt, monkeypatch):
    """Also where the drafter's context is shorter than the text, or than the draft."""
    target = tiny_model(V=2, causal=True, seed=1)
    drafter = make_drafter(2, steps, block_size)
    found = drafted_distribution(monkeypatch, target, drafter, prompt, 4, gamma=gamma)
    assert sum(found.values()) == pytest.approx(1)
    assert distance(found, exact_distribution(target, prompt, 4)) < 1e-5


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.8}])
def test_it_has_it_with_temperature_top_k_and_top_p(settings, monkeypatch):
    target = tiny_model(V=3, causal=True, seed=1)
    options = {"gamma": 2, **settings}
    found = drafted_distribution(monkeypatch, target, make_drafter(3, 2), PROMPT, 3, **options)
    assert distance(found, exact_distribution(target, PROMPT, 3, **settings)) < 1e-5


def test_it_has_it_with_an_end_of_text_inside_a_draft(monkeypatch):
    target = tiny_model(V=2, causal=True, seed=1)
    options = {"gamma": 3, "eos": 1}
    found = drafted_distribution(monkeypatch, target, make_drafter(2), PROMPT, 4, **options)
    assert distance(found, exact_distribution(target, PROMPT, 4, eos=1)) < 1e-5


@pytest.mark.parametrize("steps", [1, 2])
def test_greedy_text_equals_the_gpts(steps):
    target = tiny_model(V=3, causal=True, seed=1, block_size=32)
    drafter = make_drafter(3, steps)
    prompt = torch.tensor([0, 1, 2])
    found = speculate(target, drafter, prompt, 29, gamma=4, temperature=0)
    assert torch.equal(found, generate(target, prompt[None], 29, temperature=0)[0])


def test_a_group_sees_what_is_to_its_left_and_q_is_what_it_was_drawn_from():
    model = tiny_model(V=7)
    x = torch.tensor([1, 2, 3])
    drafts, q = Diffusion(model, steps=2).propose(x, 4, PLAIN, seeded(0))
    first = model(torch.tensor([[1, 2, 3, 7, 7, 7, 7]]))[0, 3:5].softmax(-1)
    second = model(torch.tensor([[1, 2, 3, *drafts[:2].tolist(), 7, 7]]))[0, 5:].softmax(-1)
    torch.testing.assert_close(torch.stack(q), torch.cat([first, second]))
    assert len(drafts) == 4 and drafts.max() < 7


def test_it_proposes_as_many_as_its_context_has_room_for():
    drafter = make_drafter(7, block_size=4)
    x = torch.zeros(9, dtype=torch.int64)
    for n, expected in ((0, 0), (1, 1), (3, 3), (8, 3)):
        drafts, q = drafter.propose(x, n, PLAIN, seeded(0))
        assert len(drafts) == len(q) == expected


def test_a_draft_in_any_order_raises_with_the_reason(error_of):
    model = tiny_model(V=7)
    said = error_of(Diffusion, model, steps=2, order="any")
    assert "q(x_j | x before j)" in said and "lossless" in said
    Diffusion(model, steps=1, order="any")  # one step has no order
    assert "'right'" in error_of(Diffusion, model, order="right")
    assert "at least 1" in error_of(Diffusion, model, steps=0)


# --------------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """-> the paths of a GPT and a diffusion model of the same letters."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "ar.pt", LETTERS, causal=True, block_size=32)
    save_tiny(folder / "d.pt", LETTERS, seed=1)
    return str(folder / "ar.pt"), str(folder / "d.pt")


def knobs(models, **changes):
    own = {"ckpt": models[0], "drafter": models[1], "device": "cpu", "num_samples": 2}
    return types.SimpleNamespace(**{**vars(D.cfg), **own, **changes})


def test_the_command_prints_texts_and_what_the_drafts_were_good_for(models):
    ckpt, drafter = models
    options = ("--prompt=abc", "--gamma=3", "--draft_steps=2", "--num_samples=2")
    out, _ = run(
        "-m", "extras.diffusion_drafter", f"--ckpt={ckpt}", f"--drafter={drafter}", *options
    )
    assert out.count("--- sample ") == 2 and "\nabc" in out
    assert "% of the tokens were drafted; gamma 3, alpha 0." in out
    assert "tokens per forward pass of the target" in out


def test_the_table_has_a_row_for_every_gamma(models, capsys):
    D.main(knobs(models, table=True, prompt="ab"))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [int(row.split()[0]) for row in rows] == list(D.GAMMAS)
    for row in rows:
        gamma, alpha, tokens, speed, *by_position = map(float, row.split())
        assert 0 <= alpha <= 1 and 1 <= tokens <= gamma + 1 and speed > 0
        assert len(by_position) <= gamma


def test_models_and_prompts_that_do_not_fit_raise(models, tmp_path, error_of):
    ckpt, drafter = models
    swapped = knobs(models, ckpt=drafter, drafter=ckpt)
    assert "must be a GPT and" in error_of(D.main, swapped)
    save_tiny(tmp_path / "other.pt", list("ABCDEFG"))
    other = knobs(models, drafter=str(tmp_path / "other.pt"))
    assert "another vocabulary" in error_of(D.main, other)
    assert "no room" in error_of(D.main, knobs(models, prompt="a" * 32))
    assert "33 tokens do not fit" in error_of(D.main, knobs(models, length=33))
    assert "gamma is 0" in error_of(D.main, knobs(models, gamma=0))
    assert "draft_steps is 0" in error_of(D.main, knobs(models, draft_steps=0))
    assert "temperature is -1" in error_of(D.main, knobs(models, temperature=-1.0))
    assert "top_p is 0" in error_of(D.main, knobs(models, top_p=0.0))
    assert "top_k is -1" in error_of(D.main, knobs(models, top_k=-1))
