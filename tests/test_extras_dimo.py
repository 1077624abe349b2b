"""
python -m pytest tests/test_extras_dimo.py          Di[M]O: its losses, its start, its runs
"""

import itertools
import json
import math
import types

import pytest
import torch
from conftest import knobs, run, tiny_model

import data
import loop
import model as M
import train
from distill import spread_state
from drafters import load_model
from extras import dimo as D
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded


def dimo_student(V=7, **kw):
    """A student that has left its teacher, and a fake that is neither."""
    student = D.student_of(tiny_model(V=V, seed=1, **kw), torch.full((V,), 1 / V))
    student.fake.load_state_dict(tiny_model(V=V, seed=2, **kw).state_dict())
    return student.train()


# --------------------------------------------------------------------------------------------------
# literally, from the paper


def dense_losses(student, teacher, start, y, yt):
    """
    -> Di[M]O's two losses for a text y that the student wrote from `start`, and yt, y with masks,
    all B x T x V: the fake's cross-entropy, and sum over v of p(v) (log fake(v) - log teacher(v))
    with the bracket fixed.
    """
    masked = yt == student.mask_id
    log_fake = student.fake(yt).log_softmax(-1)
    log_teacher = teacher(yt).log_softmax(-1)
    nats = -log_fake.gather(-1, y[..., None]).squeeze(-1)
    p = student(start).softmax(-1)
    gap = (p * (log_fake - log_teacher).detach()).sum(-1)
    n = masked.sum()
    return (nats * masked).sum() / n, (gap * masked).sum() / n


@torch.no_grad()
def exact_two_steps(student, T):
    """-> {tokens: probability} of two steps of `spread`, of which the first sees a random start."""
    V = student.config.vocab_size
    mask_id = student.mask_id
    chance_of = {mask_id: 0.5} | {v: student.frequency[v].item() / 2 for v in range(V)}
    exact = dict.fromkeys(itertools.product(range(V), repeat=T), 0.0)
    for start in itertools.product(chance_of, repeat=T):
        weight = math.prod(chance_of[v] for v in start)
        p = student(torch.tensor([start]))[0].softmax(-1)  # (T, V)
        for positions in (range(0, T, 2), range(1, T, 2)):  # either comes first
            later = [i for i in range(T) if i not in positions]
            for x in exact:
                shown = torch.tensor([[mask_id if i in later else x[i] for i in range(T)]])
                p_later = student(shown)[0].softmax(-1)
                chance = math.prod(p[i, x[i]].item() for i in positions)
                chance *= math.prod(p_later[i, x[i]].item() for i in later)
                exact[x] += weight * chance / 2
    return exact


@torch.no_grad()
def exact_distribution(student, T):
    """-> {tokens: probability} of one step from a half random start."""
    V = student.config.vocab_size
    mask_id = student.mask_id
    chance_of = {mask_id: 0.5} | {v: student.frequency[v].item() / 2 for v in range(V)}
    exact = dict.fromkeys(itertools.product(range(V), repeat=T), 0.0)
    for start in itertools.product(chance_of, repeat=T):
        weight = math.prod(chance_of[v] for v in start)
        p = student(torch.tensor([start]))[0].softmax(-1)  # (T, V)
        for x in exact:
            exact[x] += weight * math.prod(p[i, v].item() for i, v in enumerate(x))
    return exact


def total_variation(rows, exact):
    """(n, T) int64, {tokens: probability} -> half the sum of the differences."""
    found = dict.fromkeys(exact, 0.0)
    for row in rows.tolist():
        found[tuple(row)] += 1 / len(rows)
    return sum(abs(found[x] - exact[x]) for x in exact) / 2


# --------------------------------------------------------------------------------------------------
# the losses


def test_the_losses_equal_the_dense_ones_and_the_networks_take_turns(monkeypatch):
    teacher = tiny_model(seed=3).requires_grad_(False)
    student = dimo_student()
    seen = {}

    def watched(name, f):
        def call(*args):
            seen[name] = args[0], f(*args)
            return seen[name][1]

        return call

    monkeypatch.setattr(D, "half_random", watched("start", D.half_random))
    monkeypatch.setattr(D, "masked_at_random", watched("masked", D.masked_at_random))
    x0 = torch.zeros(5, 16, dtype=torch.long)
    parameters = dict(student.named_parameters())
    turns = []
    for turn in range(1, 10):
        ours = D.dimo_loss(student, x0, seeded(turn), teacher, stay_weight=0, fake_first=3)
        y, masked = seen["masked"]
        yt = y.masked_fill(masked, student.mask_id)
        theirs_fake, theirs_student = dense_losses(student, teacher, seen["start"][1], y, yt)
        is_students = turn > 3 and turn % 3 == 0
        theirs = theirs_student if is_students else theirs_fake
        torch.testing.assert_close(ours, theirs)

        grads = torch.autograd.grad(ours, list(parameters.values()), allow_unused=True)
        learns = [n for n, g in zip(parameters, grads, strict=True) if g is not None]
        assert learns == [n for n in parameters if n.startswith("fake.") != is_students]
        expected = torch.autograd.grad(theirs, [parameters[n] for n in learns])
        for grad, other in zip([g for g in grads if g is not None], expected, strict=True):
            torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-4)
        turns.append("student" if is_students else "fake")
    assert turns == ["fake"] * 5 + ["student", "fake", "fake", "student"]

    student.eval()
    D.dimo_loss(student, x0, seeded(0), teacher)
    assert student.turn == 9  # a validation is nobody's turn


def test_the_student_stays_its_teacher_where_text_is_shown():
    """stay_loss is KL(student || teacher) at the positions of one of 4 steps, and 0 for a copy."""
    teacher = tiny_model(seed=3).requires_grad_(False)
    x0 = torch.randint(7, (8, 16), generator=seeded(1))
    copy = D.student_of(teacher, torch.full((7,), 1 / 7)).train()
    assert D.stay_loss(copy, x0, seeded(2), teacher).item() == pytest.approx(0, abs=1e-6)

    student = dimo_student()
    xt, step_of = spread_state(x0, 1 / 4, 1, student.mask_id, seeded(2))
    log_p = student(xt).log_softmax(-1)
    dense = (log_p.exp() * (log_p - teacher(xt).log_softmax(-1))).sum(-1)
    ours = D.stay_loss(student, x0, seeded(2), teacher)
    torch.testing.assert_close(ours, dense[step_of > 0].mean())
    n_shown = (xt != student.mask_id).sum(1)
    assert sorted(n_shown.tolist()) == [0, 0, 4, 4, 8, 8, 12, 12]  # of 16

    turn = dict(fake_first=0, fake_turns=0)
    both = D.dimo_loss(student, x0, seeded(3), teacher, stay_weight=0.5, **turn)
    generator = seeded(3)
    matching = D.student_loss(student, 8, 16, generator, teacher)
    stay = D.stay_loss(student, x0, generator, teacher)
    torch.testing.assert_close(both, matching + 0.5 * stay)


def test_teacher_and_fake_get_no_gradient_from_the_student():
    teacher = tiny_model(seed=3)
    student = dimo_student()
    D.student_loss(student, 4, 16, seeded(0), teacher).backward()
    assert all(p.grad is None for p in [*teacher.parameters(), *student.fake.parameters()])


def test_a_half_random_start_has_its_distribution_and_so_has_the_text_from_it():
    student = dimo_student(V=2, block_size=3).eval()
    student.frequency.copy_(torch.tensor([0.2, 0.8]))
    n = 60_000
    start = D.half_random(student, n, 3, seeded(5))
    fractions = [(start[:, i] == v).float().mean().item() for i in range(3) for v in range(3)]
    assert fractions == pytest.approx([0.1, 0.4, 0.5] * 3, abs=0.01)
    exact = exact_distribution(student, 3)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        _, y = D.write(student, n, 3, seeded(6))
    assert total_variation(y, exact) < 0.014
    masks = torch.full((n, 3), student.mask_id)
    factorized = M.unmask(student, masks, 1, "spread", generator=seeded(7))
    assert total_variation(factorized, exact) > 0.02  # it is another distribution
    y = D.write_in_steps(student, n, 3, 1, seeded(8))
    assert total_variation(y, exact) < 0.014


def test_two_steps_have_their_distribution_and_noise_only_in_the_first():
    student = dimo_student(V=2, block_size=3, pos="learned").eval()
    student.frequency.copy_(torch.tensor([0.2, 0.8]))
    exact = exact_two_steps(student, 3)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    n = 60_000
    assert total_variation(D.write_in_steps(student, n, 3, 2, seeded(6)), exact) < 0.014
    one_step = D.write_in_steps(student, n, 3, 1, seeded(6))
    assert total_variation(one_step, exact) > 0.02  # it is another distribution
    without_noise = torch.full((n, 3), student.mask_id)
    without_noise = M.unmask(student, without_noise, 2, "spread", generator=seeded(7))
    assert total_variation(without_noise, exact) > 0.02


def test_a_dimo_student_makes_two_coins_agree_in_one_step_and_in_two():
    """
    A factorized student gets half of them right in one step. The teacher knows the distribution:
    what one coin shows, the other does.
    """
    torch.manual_seed(1)
    config = M.GPTConfig(block_size=2, vocab_size=2, n_layer=1, n_head=1, n_embd=16, causal=False)
    teacher = M.GPT(config)
    coins = torch.randint(2, (64, 1), generator=seeded(0)).expand(-1, 2).contiguous()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
    for i in range(150):
        M.diffusion_loss(teacher, coins, seeded(i), 0.5).backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher.eval().requires_grad_(False)
    student = D.student_of(teacher, torch.tensor([0.5, 0.5])).train()
    betas = (0.9, 0.99)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, betas=betas, weight_decay=0.0)
    for i in range(450):
        D.dimo_loss(student, coins, seeded(i), teacher).backward()
        optimizer.step()
        optimizer.zero_grad()

    masks = torch.full((2000, 2), teacher.mask_id)
    factorized = M.unmask(teacher, masks, 1, "spread", generator=seeded(1))
    coupled, in_two = (D.write_in_steps(student.eval(), 2000, 2, k, seeded(1)) for k in (1, 2))
    texts = (factorized, coupled, in_two)
    agree = [(x[:, 0] == x[:, 1]).float().mean().item() for x in texts]
    assert abs(agree[0] - 0.5) < 0.05 and agree[1] > 0.8 and agree[2] > 0.95
    assert 0.3 < coupled.float().mean() < 0.7 and 0.3 < in_two.float().mean() < 0.7


def test_frequencies_are_fractions_of_the_corpus():
    tokens = torch.tensor([0, 2, 2, 2]).numpy()
    assert D.frequencies(tokens, 4).tolist() == [0.25, 0, 0.75, 0]


# --------------------------------------------------------------------------------------------------
# the runs


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    """The path of a small diffusion model that has learned a little of the markov language."""
    folder = tmp_path_factory.mktemp("teacher")
    train.main(knobs(folder, dataset=markov, max_iters=100, learning_rate=3e-3))
    return str(folder / "ckpt.pt")


def settings(teacher, out_dir, **kw):
    """Knobs of a run in which the student has a few turns: its first one is the 63rd."""
    small = dict(max_iters=80, eval_interval=16, eval_iters=1, batch_size=4, warmup_iters=2)
    small |= dict(learning_rate=1e-3, ema=0.9, device="cpu")
    small |= dict(teacher=str(teacher), out_dir=str(out_dir))
    return types.SimpleNamespace(**{**vars(D.cfg), **small, **kw})


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("student")
    D.main(settings(teacher, folder))
    return folder


def leaves(checkpoint):
    names = ("model", "ema", "optimizer", "step")
    return torch.utils._pytree.tree_leaves([checkpoint[name] for name in names])


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    teacher, student, tmp_path, monkeypatch
):
    real = loop.save_checkpoint
    saves = []

    def stopped(*args):
        saves.append(1)
        if len(saves) == 5:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(loop, "save_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        D.main(settings(teacher, tmp_path))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "ckpt.pt")["step"] == 64
    D.main(settings(teacher, tmp_path, init_from="resume"))
    whole = load_checkpoint(student / "ckpt.pt")
    parts = load_checkpoint(tmp_path / "ckpt.pt")
    for x, y in zip(leaves(whole), leaves(parts), strict=True):
        assert torch.equal(x, y) if torch.is_tensor(x) else x == y
    assert whole["step"] == 80 and whole["model"]["turn"] == 80
    weight = load_checkpoint(teacher)["model"]["wte.weight"]
    assert not torch.equal(whole["model"]["wte.weight"], weight)  # it did learn


def test_saved_samples_are_those_that_eval_reads(student, tmp_path):
    ckpt = f"--ckpt={student}/ckpt.pt"
    command = ["-m", "extras.dimo", "--task=sample", ckpt, "--device=cpu"]
    args = ["--num_samples=5", "--batch_size=2", "--temperature=0.8", "--steps=2"]
    out, _ = run(*command, *args, f"--save={tmp_path}/x.jsonl")
    assert "5 samples saved" in out
    x, about = data.load_samples(str(tmp_path / "x.jsonl"))
    assert x.shape == (5, 16) and x.min() >= 0 and x.max() < 8
    assert (about["temperature"], about["steps"], about["causal"]) == (0.8, 2, False)
    assert (about["sampler"], about["top_k"], about["prefix"]) == ("dimo", 0, 0)
    run(*command, *args, f"--save={tmp_path}/again.jsonl")
    assert torch.equal(x, data.load_samples(str(tmp_path / "again.jsonl"))[0])
    with open(tmp_path / "x.jsonl") as f:
        texts = [json.loads(line)["text"] for line in f.readlines()[1:]]
    printed, _ = run(*command, *args)
    assert all(text in printed for text in texts)


def test_the_core_does_not_take_a_student_for_a_diffusion_model(student, error_of):
    assert "another model's" in error_of(load_model, str(student / "ckpt.pt"))


def test_mistakes_are_said_before_any_work(
    teacher, student, markov, pydoc, tmp_path, monkeypatch, error_of
):
    def said(**kw):
        words = error_of(D.main, settings(kw.pop("teacher", teacher), tmp_path / "out", **kw))
        assert not (tmp_path / "out").exists()
        return words

    assert "'sft'" in said(task="sft")
    assert "'scratch'" in said(init_from="scratch")
    assert "has 0 steps" in said(max_iters=0)
    assert "another vocabulary" in said(dataset=pydoc)
    assert "There is no checkpoint" in said(teacher=tmp_path / "none.pt")
    assert "nothing to resume" in said(init_from="resume")
    train.main(knobs(tmp_path / "ar", dataset=markov, objective="ar", max_iters=1))
    assert "is a GPT" in said(teacher=tmp_path / "ar" / "ckpt.pt")
    assert "already holds a run" in error_of(D.main, settings(teacher, student))
    other = settings(teacher, student, init_from="resume", batch_size=2)
    assert "batch_size 4, not 2" in error_of(D.main, other)
    sample = dict(task="sample", ckpt=str(student / "ckpt.pt"))
    assert "not a student of Di[M]O" in said(**(sample | {"ckpt": teacher}))
    none = tmp_path / "none.pt"
    assert "extras.dimo config/dimo_pydoc.py" in said(**(sample | {"ckpt": str(none)}))
    assert "num_samples is 0" in said(**sample, num_samples=0)
    assert "steps is 0" in said(**sample, steps=0)
    assert "temperature is -1.0" in said(**sample, temperature=-1.0)
    assert "top_p is 0.0" in said(**sample, top_p=0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "in one process" in said()
