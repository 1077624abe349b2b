"""
python -m pytest tests/test_distill.py

SDTT and drafters: states, targets, losses, rounds, resume
"""

import copy
import json
import math
import os
import types

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import TINY, knobs, run, tiny_model, way_to

import data
import distill as D
import drafters
import loop
import train
from distill import divergence_between
from drafters import load_model
from model import ancestral_steps, unmask
from plumbing import checkpoints
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded
from speculative import draw_samples

KINDS = ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd", "nla")
numerics = pytest.mark.numerics
slow = pytest.mark.slow


# --------------------------------------------------------------------------------------------------
# SDTT's states: what is masked, and which step unmasks it


def at_time(t, monkeypatch):
    """All rows of a batch are at time t."""
    monkeypatch.setattr(D, "stratified", lambda B, *_: torch.full((B, 1), 1 - t))


@numerics
@pytest.mark.parametrize(
    "t, dt, k", [(1.0, 1 / 8, 2), (0.5, 1 / 8, 2), (0.7, 0.1, 4), (0.1, 0.2, 2)]
)
def test_an_ancestral_state_masks_with_t_and_unmasks_dt_over_t(t, dt, k, monkeypatch):
    """The released code's time grid unmasks 0.70 to 0.83 of this."""
    at_time(t, monkeypatch)
    x0 = torch.randint(7, (4, 50_000), generator=seeded(0))
    xt, step_of = D.ancestral_state(x0, dt, k, 7, seeded(1))
    masked = xt == 7
    assert torch.equal(step_of > 0, masked)
    assert torch.equal(xt[~masked], x0[~masked])
    assert masked.float().mean().item() == pytest.approx(t, abs=0.01)
    left = 1.0  # of those that are masked at t
    for step in range(1, k):
        t_i = t - (step - 1) * dt
        fraction = min(dt / t_i, 1) if t_i > 0 else 0
        measured = (step_of == step).sum() / masked.sum()
        assert measured.item() == pytest.approx(left * fraction, abs=0.01)
        left *= 1 - fraction
    measured = (step_of == k).sum() / masked.sum()
    assert measured.item() == pytest.approx(left, abs=0.01)  # all others are the last step's


def test_the_times_of_a_batch_lie_evenly_in_0_to_1(monkeypatch):
    seen = []
    monkeypatch.setattr(
        D, "ancestral_steps", lambda u, t, *a: seen.append(t) or ancestral_steps(u, t, *a)
    )
    D.ancestral_state(torch.zeros(64, 8, dtype=torch.long), 1 / 8, 2, 7, seeded(0))
    times = seen[0].flatten().sort().values
    assert times[0] > 0 and times[-1] <= 1
    torch.testing.assert_close(times.diff(), torch.full((63,), 1 / 64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("K, k", [(1, 2), (2, 2), (4, 2), (4, 4), (8, 2)])
def test_a_spread_state_is_one_step_of_a_student_that_samples_with_spread(K, k):
    x0 = torch.randint(7, (12, 16), generator=seeded(0))
    xt, step_of = D.spread_state(x0, 1 / (k * K), k, 7, seeded(1))
    n_masked = set()
    for b in range(len(x0)):
        masked = [i for i in range(16) if xt[b, i] == 7]
        supervised = [i for i in range(16) if step_of[b, i] > 0]
        assert all(xt[b, i] == x0[b, i] for i in range(16) if i not in masked)
        assert set(supervised) <= set(masked)
        # one residue modulo K is supervised, others are masked as a whole, or shown as a whole
        assert len({i % K for i in supervised}) == 1
        assert len(supervised) == 16 // K
        assert len({i % K for i in masked}) == len(masked) * K // 16
        for step in range(1, k + 1):
            part = [i for i in supervised if step_of[b, i] == step]
            assert len({i % (k * K) for i in part}) == 1
            assert len(part) == 16 // (k * K)
        n_masked.add(len(masked))
    assert len(n_masked) == K  # every step of the student occurs


# --------------------------------------------------------------------------------------------------
# SDTT's targets


def pick(log_p, *_):
    """The token at 0.37 of the cumulative distribution: a draw that both versions can make."""
    cdf = log_p.double().softmax(-1).cumsum(-1)
    return (cdf < 0.37).sum(-1).clamp(max=log_p.size(-1) - 1)


def pick_tokens(model, h, generator=None):
    """In place of draw_tokens."""
    return pick(model.head(h))


@numerics
@torch.no_grad()
@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("dt", [1 / 4, 1 / 32])
def test_targets_equal_those_of_the_dense_algorithm_1(k, dt, monkeypatch):
    """At both ends of time, with fewer steps left than k, and a row with nothing masked."""
    teacher = tiny_model(tie_weights=False, head_bias=True)
    teacher.head_bias.normal_()
    t = torch.tensor([1.0, 0.9, 0.5, 0.26, 0.1, 0.05, 0.0])[:, None]
    x0 = torch.randint(7, (7, 16), generator=seeded(0))
    u = torch.rand(7, 16, generator=seeded(1))
    u[5, 4] = 0.01  # else a time of 0.05 might mask nothing
    step_of = ancestral_steps(u, t, dt, k)
    masked = step_of > 0
    xt = x0.masked_fill(masked, 7)
    monkeypatch.setattr(D, "draw_tokens", pick_tokens)
    targets = D.sdtt_targets(teacher, xt, step_of, k, seeded(2))
    literal = reference.sdtt_targets(
        teacher, xt, t, dt, k, lambda t_i, s_i: (s_i <= u) & (u < t_i), pick
    )
    log_p = teacher.head(targets[masked]).log_softmax(-1)
    torch.testing.assert_close(log_p, literal[masked], atol=1e-5, rtol=1e-5)
    assert (targets[~masked] == 0).all()
    assert not masked[6].any() and masked[5].any()


@numerics
@torch.no_grad()
@pytest.mark.parametrize("t, dt, k", [(0.9, 0.3, 2), (1.0, 0.25, 3), (0.5, 0.4, 2), (0.9, 0.2, 3)])
def test_targets_follow_the_distribution_of_algorithm_1(t, dt, k, monkeypatch):
    """Their mean equals the one over every path, also where the last step passes zero."""
    teacher = tiny_model(V=3, block_size=3, seed=2)
    n = 20_000
    xt = torch.tensor([3, 1, 3])
    exact = reference.expected_sdtt_targets(teacher, xt, t, dt, k)
    u = t * torch.rand(n, 3, generator=seeded(0))
    u[:, 1] = 1  # not masked
    step_of = ancestral_steps(u, t, dt, k)
    targets = D.sdtt_targets(teacher, xt.expand(n, 3), step_of, k, seeded(1))
    p = teacher.head(targets).softmax(-1)[:, [0, 2]]  # (n, 2, V)
    assert (p.mean(0) - exact[[0, 2]]).abs().max() < 5 * p.std(0).max() / math.sqrt(n)
    assert p.std(0).max() > 0.01  # the targets do vary from path to path


@numerics
@torch.no_grad()
@pytest.mark.parametrize("K, k", [(1, 2), (2, 2), (4, 2), (4, 4), (8, 2)])
def test_spread_targets_equal_the_literal_ones(K, k, monkeypatch):
    teacher = tiny_model()
    x0 = torch.randint(7, (12, 16), generator=seeded(0))
    xt, step_of = D.spread_state(x0, 1 / (k * K), k, 7, seeded(1))
    monkeypatch.setattr(D, "draw_tokens", pick_tokens)
    log_p = teacher.head(D.sdtt_targets(teacher, xt, step_of, k, seeded(2))).log_softmax(-1)
    for b in range(len(x0)):
        supervised = step_of[b] > 0
        parts = [(step_of[b] == step).nonzero().flatten().tolist() for step in range(1, k + 1)]
        literal = reference.spread_targets(teacher, xt[b : b + 1], parts, pick)
        torch.testing.assert_close(log_p[b][supervised], literal[supervised], atol=1e-5, rtol=1e-5)


@numerics
@torch.no_grad()
def test_spread_targets_follow_their_distribution():
    """Their mean equals the one over both orders of the parts and every token that is drawn."""
    teacher = tiny_model(V=3, block_size=4)
    n = 20_000
    xt = torch.full((n, 4), 3)
    _, step_of = D.spread_state(xt, 1 / 2, 2, 3, seeded(0))
    p = teacher.head(D.sdtt_targets(teacher, xt, step_of, 2, seeded(1))).softmax(-1)
    exact = reference.expected_spread_targets(teacher, xt[0], [[0, 2], [1, 3]])
    assert (p.mean(0) - exact).abs().max() < 5 * p.std(0).max() / math.sqrt(n)


@torch.no_grad()
def test_only_rows_that_a_step_unmasks_are_read_and_last_draws_not_made(monkeypatch):
    teacher = tiny_model()
    at_time(0.5, monkeypatch)
    x0 = torch.randint(7, (40, 16), generator=seeded(0))
    xt, step_of = D.ancestral_state(x0, 1 / 64, 2, 7, seeded(1))
    rows = []
    drawn = []
    hidden = teacher.hidden
    monkeypatch.setattr(teacher, "hidden", lambda z: rows.append(len(z)) or hidden(z))
    monkeypatch.setattr(D, "draw_tokens", lambda *a: drawn.append(len(a[1])) or pick_tokens(*a))
    D.sdtt_targets(teacher, xt, step_of, 2, seeded(0))
    # 8 masked tokens a row, each unmasked by the first step in 1 case of 32
    assert rows == [int((step_of == 1).any(dim=1).sum()), 40]
    assert 0 < rows[0] < 20
    assert drawn == [int((step_of == 1).sum())]
    rows.clear()
    D.sdtt_targets(teacher, x0, torch.zeros_like(x0), 2, seeded(0))
    assert rows == []


# --------------------------------------------------------------------------------------------------
# divergences and losses


@numerics
@pytest.mark.parametrize("name", KINDS)
def test_divergences_equal_their_definition_and_are_zero_at_equality(name):
    log_p, log_q = torch.randn(2, 5, 7, generator=seeded(0)).mul(3).log_softmax(-1)
    got = divergence_between(log_p, log_q, name)
    pairs = zip(log_p.tolist(), log_q.tolist(), strict=True)
    literal = [reference.divergence(p, q, name) for p, q in pairs]
    torch.testing.assert_close(got, torch.tensor(literal), rtol=1e-4, atol=1e-5)
    assert (got > 0).all()
    assert divergence_between(log_p, log_p, name).abs().max() < 1e-6


def test_divergences_by_hand():
    log_p = torch.tensor([0.5, 0.5]).log()
    log_q = torch.tensor([0.25, 0.75]).log()
    by_hand = {
        "tvd": 0.25,  # on probabilities, halved: in [0, 1]
        "nla": -math.log(0.75),
        "kl_bwd": 0.5 * math.log(4 / 3),  # student first
        "kl_fwd": 0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        "mse": math.log(2) ** 2 + math.log(1.5) ** 2,  # a sum over V
    }
    for name, value in by_hand.items():
        assert divergence_between(log_p, log_q, name).item() == pytest.approx(value)
    jsd = divergence_between(log_p, log_q, "jsd")
    assert jsd.item() == pytest.approx(divergence_between(log_q, log_p, "jsd").item())


def test_divergences_of_distributions_far_apart_stay_finite():
    log_p = torch.tensor([0.0, -200.0])
    log_q = torch.tensor([-200.0, 0.0])
    assert divergence_between(log_p, log_q, "jsd").item() == pytest.approx(math.log(2))
    assert divergence_between(log_p, log_q, "tvd").item() == pytest.approx(1.0)
    assert divergence_between(log_p, log_q, "kl_bwd").item() == pytest.approx(200)


def test_nla_is_the_log_of_the_acceptance():
    log_p, log_q = torch.randn(2, 9, 7, generator=seeded(0)).log_softmax(-1)
    acceptance = 1 - divergence_between(log_p, log_q, "tvd")
    torch.testing.assert_close(divergence_between(log_p, log_q, "nla"), -acceptance.log())


def assert_gradients_equal(model, loss, dense):
    """Two losses of a model: equal, with equal gradients."""
    torch.testing.assert_close(loss, dense)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for gradient, literal in zip(gradients, torch.autograd.grad(dense, parameters), strict=True):
        torch.testing.assert_close(gradient, literal, rtol=1e-4, atol=1e-5)


@numerics
@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("sampler", ["ancestral", "spread"])
def test_the_sdtt_loss_and_its_gradient_equal_the_dense_ones(sampler, divergence, monkeypatch):
    """Student and teacher have different heads, and widths."""
    teacher = tiny_model(seed=1, n_embd=32, tie_weights=False, head_bias=True)
    teacher.head_bias.data.normal_()
    student = tiny_model(seed=2)
    x0 = torch.randint(7, (6, 16), generator=seeded(0))
    seen = {}
    sdtt_targets = D.sdtt_targets

    def spy(teacher, xt, step_of, *args):
        seen["xt"] = xt
        seen["supervised"] = step_of > 0
        seen["targets"] = sdtt_targets(teacher, xt, step_of, *args)
        return seen["targets"]

    monkeypatch.setattr(D, "sdtt_targets", spy)
    before = copy.deepcopy(teacher.state_dict())
    loss = D.sdtt_loss(student, x0, seeded(2), teacher, 1 / 8, sampler, divergence=divergence)
    log_student = student(seen["xt"]).log_softmax(-1)  # (B, T, V)
    log_teacher = teacher.head(seen["targets"]).log_softmax(-1).detach()
    dense = divergence_between(log_student, log_teacher, divergence)  # (B, T)
    dense = (dense * seen["supervised"]).sum() / seen["supervised"].sum()
    assert_gradients_equal(student, loss, dense)

    loss = D.sdtt_loss(student, x0, seeded(2), teacher, 1 / 8, sampler, divergence=divergence)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_batch_in_which_nothing_is_masked_has_loss_0_and_a_gradient(monkeypatch):
    at_time(0.0, monkeypatch)
    student = tiny_model()
    x0 = torch.randint(7, (2, 16), generator=seeded(0))
    loss = D.sdtt_loss(student, x0, seeded(0), tiny_model(seed=1), 1 / 8, "ancestral")
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in student.parameters())


def test_one_step_of_the_teacher_has_nothing_to_teach_its_copy():
    model = tiny_model()
    x0 = torch.randint(7, (4, 16), generator=seeded(0))
    assert D.sdtt_loss(model, x0, seeded(0), model, 1 / 8, "ancestral", k=1).item() < 1e-6
    assert D.sdtt_loss(model, x0, seeded(0), model, 1 / 8, "ancestral", k=2).item() > 1e-3


@numerics
@pytest.mark.parametrize("divergence", sorted(set(KINDS) - {"mse"}))
def test_the_kd_loss_and_its_gradient_equal_the_dense_ones(divergence):
    target = tiny_model(causal=True, seed=0)
    drafter = tiny_model(causal=True, arch="lstm", seed=1)
    batch = torch.randint(7, (3, 17), generator=seeded(0))
    loss = D.kd_loss(drafter, batch, None, target, divergence, temperature=2.0, ce_weight=0.3)
    logits = drafter(batch[:, :-1])
    log_drafter = (logits / 2).log_softmax(-1)
    log_target = (target(batch[:, :-1]).detach() / 2).log_softmax(-1)
    dense = 4 * divergence_between(log_drafter, log_target, divergence).mean()
    dense = dense + 0.3 * F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert_gradients_equal(drafter, loss, dense)
    D.kd_loss(drafter, batch, None, target, divergence).backward()
    assert all(p.grad is None for p in target.parameters())


# --------------------------------------------------------------------------------------------------
# rounds


def settings(teacher, out_dir, **kw):
    """distill.py's knobs for two rounds of 4 steps."""
    tiny = {name: value for name, value in TINY.items() if name in vars(D.cfg)}
    tiny |= dict(iters_per_round=4, orig_steps=8, rounds=2, eval_interval=2, eval_iters=1)
    tiny |= dict(learning_rate=1e-3, ema=0.9, gradient_accumulation_steps=1)
    tiny |= dict(teacher=str(teacher), out_dir=str(out_dir))
    return types.SimpleNamespace(**{**vars(D.cfg), **tiny, **kw})


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    """The path of a small diffusion model of the markov language, trained for a moment."""
    folder = tmp_path_factory.mktemp("teacher")
    train.main(knobs(folder, dataset=markov, learning_rate=1e-2, ema=0.9, max_iters=20))
    return str(folder / "ckpt.pt")


@pytest.fixture(scope="module")
def trained_teacher(markov, tmp_path_factory):
    """The path of a small diffusion model that has learned the markov language."""
    folder = tmp_path_factory.mktemp("trained_teacher")
    kw = dict(n_embd=64, batch_size=64, max_iters=800, eval_interval=800, learning_rate=3e-3)
    train.main(knobs(folder, dataset=markov, warmup_iters=20, ema=0.99, **kw))
    return str(folder / "ckpt.pt")


def leaves(checkpoint):
    kept = [checkpoint[key] for key in ("model", "ema", "optimizer", "step")]
    return torch.utils._pytree.tree_leaves(kept)


def all_equal(one, other):
    for a, b in zip(one, other, strict=True):
        if not (torch.equal(a, b) if torch.is_tensor(a) else a == b):
            return False
    return True


def equal_runs(one, other, name):
    """Two folders' checkpoints of that name, bit for bit."""
    return all_equal(leaves(load_checkpoint(one / name)), leaves(load_checkpoint(other / name)))


def log_of(folder):
    """-> log.jsonl without what differs from run to run."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


def stop_after(n, f):
    """f, whose next call after n of them is not made, as if killed."""
    calls = []

    def call(*args, **kw):
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return f(*args, **kw)

    return call


VARIANTS = [
    {},
    {"sampler": "spread"},
    pytest.param({"reset_optimizer": False}, marks=slow),
    pytest.param({"ema_teacher": False, "dropout": 0.1}, marks=slow),
    pytest.param({"ema": 0.0}, marks=slow),
]


@pytest.mark.parametrize("kw", VARIANTS)
def test_a_run_stopped_within_round_2_ends_bit_identical(kw, teacher, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    D.main(settings(teacher, whole, **kw))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "batch", stop_after(7, data.batch))
        D.main(settings(teacher, parts, **kw))  # in step 4 of round 2, whose step 2 is saved
    assert load_checkpoint(parts / "round_2.pt")["step"] == 2
    D.main(settings(teacher, parts, init_from="resume", **kw))
    for name in ("round_1.pt", "round_2.pt"):
        assert equal_runs(whole, parts, name)
        assert load_checkpoint(parts / name)["step"] == 4
    assert log_of(whole) == log_of(parts)
    assert [r["step"] for r in log_of(parts) if "val_loss" in r] == [2, 4, 6, 8]


@pytest.mark.parametrize("reset", [True, pytest.param(False, marks=slow)])
def test_rounds_can_be_added_and_finished_ones_stay(reset, teacher, tmp_path):
    one = tmp_path / "one"
    other = tmp_path / "other"
    D.main(settings(teacher, one, rounds=1, reset_optimizer=reset))
    written = os.stat(one / "round_1.pt").st_mtime_ns
    D.main(settings(teacher, one, rounds=2, init_from="resume", reset_optimizer=reset))
    assert os.stat(one / "round_1.pt").st_mtime_ns == written
    D.main(settings(teacher, other, rounds=2, reset_optimizer=reset))
    assert equal_runs(one, other, "round_2.pt")


@pytest.mark.parametrize("ema_teacher", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_round_starts_where_the_last_one_ended(
    ema_teacher, reset, teacher, tmp_path, monkeypatch
):
    """Its teacher and its student are the last student, averaged or not; dt is k times as long."""
    seen = []

    def fit(student, loss, get_batch, cfg, on_eval, save, resume, *, steps_before):
        of_teacher = loss.keywords["teacher"].state_dict()
        seen.append((loss.keywords["dt"], copy.deepcopy(of_teacher), copy.deepcopy(resume)))
        assert all_equal(student.state_dict().values(), of_teacher.values())
        assert steps_before == 4 * (len(seen) - 1)
        return loop.fit(
            student, loss, get_batch, cfg, on_eval, save, resume, steps_before=steps_before
        )

    monkeypatch.setattr(D, "fit", fit)
    kw = dict(ema_teacher=ema_teacher, reset_optimizer=reset, gradient_accumulation_steps=2)
    D.main(settings(teacher, tmp_path, **kw))
    (first_dt, first, none), (second_dt, second, carried) = seen
    assert (first_dt, second_dt, none) == (1 / 8, 1 / 4, None)
    saved = load_checkpoint(tmp_path / "round_1.pt")
    expected = saved["ema" if ema_teacher else "model"]
    for name, weight in expected.items():
        assert torch.equal(weight, second[name])
        assert not torch.equal(first[name], second[name])
    assert (carried is None) == reset
    if carried:  # the moments as they were saved; the average begins at the student's own weights
        moments = [torch.utils._pytree.tree_leaves(c["optimizer"]) for c in (carried, saved)]
        assert all_equal(*moments)
        assert carried["step"] == 0
        assert all(torch.equal(expected[name], carried["ema"][name]) for name in expected)


def test_effective_steps_are_printed(teacher, tmp_path, capsys):
    D.main(settings(teacher, tmp_path, orig_steps=64, teacher_steps=4, iters_per_round=2))
    said = capsys.readouterr().out
    assert "4 teacher steps of 1/64 become one; the student aims at 16 steps" in said
    assert "4 teacher steps of 1/16 become one; the student aims at 4 steps" in said


def test_each_round_divides_the_steps_by_k(error_of):
    paper = [(2**r / 1024, 1024 // 2 ** (r + 1)) for r in range(7)]
    assert D.plan_rounds(1024, 2, 7) == paper
    assert D.plan_rounds(64, 4, 2) == [(1 / 64, 16), (1 / 16, 4)]
    assert D.plan_rounds(8, 2, 3)[-1] == (1 / 2, 1)
    said = error_of(D.plan_rounds, 8, 2, 4)
    assert "4 rounds: teacher_steps 2 divides orig_steps only 3 times (8 -> 4 -> 2 -> 1)." in said
    assert "1 rounds: teacher_steps 2 divides orig_steps only 0 times (9)." in error_of(
        D.plan_rounds, 9, 2, 1
    )


def test_a_round_prints_samples_in_the_steps_it_aims_at(teacher, tmp_path, capsys, monkeypatch):
    asked = []

    def spy(model, template, n_steps, sampler, **options):
        asked.append((n_steps, sampler))
        return draw_samples(model, template, n_steps, sampler, **options)

    monkeypatch.setattr(loop, "draw_samples", spy)
    D.main(settings(teacher, tmp_path, sample_interval=4))
    said = capsys.readouterr().out
    assert "--- step 4\n" in said and "--- step 8\n" in said
    assert asked == [(4, "ancestral"), (2, "ancestral")]
    made_for = load_checkpoint(tmp_path / "round_2.pt")["made_for"]
    assert made_for == {"steps": 2, "sampler": "ancestral"}


def test_a_student_may_be_the_teacher_of_another_run(teacher, tmp_path):
    D.main(settings(teacher, tmp_path / "a", rounds=1, iters_per_round=1))
    D.main(settings(tmp_path / "a" / "round_1.pt", tmp_path / "b", rounds=1, iters_per_round=1))
    assert load_checkpoint(tmp_path / "b" / "round_1.pt")["made_for"]["steps"] == 4


def test_mistakes_raise_before_any_work(teacher, pydoc, tmp_path, error_of):
    def said(**kw):
        message = error_of(D.main, settings(kw.pop("teacher", teacher), tmp_path / "out", **kw))
        assert not os.path.exists(tmp_path / "out")
        return message

    assert "divides orig_steps only 3 times" in said(rounds=4)
    assert "'kl'" in said(divergence="kl")
    assert "'kl_bwd'" in said(divergence="kl")
    assert "teacher_steps is 1" in said(teacher_steps=1)
    assert "orig_steps is 0" in said(orig_steps=0)
    assert "rounds is 0" in said(rounds=0)
    assert "'confidence'" in said(sampler="confidence")
    assert "there are 16 tokens to unmask" in said(sampler="spread", orig_steps=32)
    assert "The run has 0 steps" in said(iters_per_round=0)
    assert "There is no checkpoint" in said(teacher=tmp_path / "none.pt")
    assert "another vocabulary" in said(dataset=pydoc)
    assert "nothing to resume" in said(init_from="resume")
    (tmp_path / "cut.pt").write_bytes(open(teacher, "rb").read()[:5000])
    assert "damaged" in said(teacher=tmp_path / "cut.pt")
    assert "'sft'" in said(method="sft")


def test_a_run_is_neither_overwritten_nor_resumed_with_other_knobs(
    teacher, tmp_path, error_of, monkeypatch
):
    D.main(settings(teacher, tmp_path, iters_per_round=1))
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert "already holds a run" in error_of(D.main, settings(teacher, tmp_path))
    resume = dict(init_from="resume", iters_per_round=1)
    said = error_of(D.main, settings(teacher, tmp_path, **resume, divergence="tvd"))
    assert "divergence kl_bwd, not 'tvd'" in said
    other = load_checkpoint(teacher)
    path = str(tmp_path.parent / "other.pt")
    checkpoints.save_checkpoint(path, other | {"step": 3})
    with monkeypatch.context() as patch:
        patch.setattr(D, "load_model", lambda _, **kw: load_model(path, **kw))
        said = error_of(D.main, settings(teacher, tmp_path, **resume))
    assert "teacher_step 20, not 3" in said
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    os.remove(tmp_path / "round_1.pt")  # the later rounds have another teacher now
    assert "already holds a run" in error_of(D.main, settings(teacher, tmp_path))
    assert "already holds a run" in error_of(D.main, settings(teacher, os.path.dirname(teacher)))


@slow
def test_two_processes_distill_as_one(teacher, tmp_path):
    """
    Also with gradient accumulation. float32, equal except for the order of a sum, which Adam
    magnifies where a gradient is nearly zero.
    """
    kw = dict(teacher=teacher, rounds=2, iters_per_round=3, orig_steps=8, batch_size=4)
    kw |= dict(gradient_accumulation_steps=4, warmup_iters=1, learning_rate=1e-3, ema=0.9)
    kw |= dict(eval_iters=1, eval_interval=3, dtype="float32", device="cpu")
    args = ["distill.py", *(f"--{name}={value}" for name, value in kw.items())]
    run(*args, f"--out_dir={tmp_path}/one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    out, _ = run(*launcher, *args, f"--out_dir={tmp_path}/two", env={"OMP_NUM_THREADS": "1"})
    assert out.count("round 2 of 2") == 1
    for name in ("round_1.pt", "round_2.pt"):
        one = load_checkpoint(tmp_path / "one" / name)["ema"]
        two = load_checkpoint(tmp_path / "two" / name)["ema"]
        for n in one:
            torch.testing.assert_close(one[n], two[n], atol=5e-4, rtol=0)  # half a step of Adam


def perplexity_and_entropy(path, temperature, meta):
    """Of 512 texts in 2 steps, under the markov language itself."""
    model, _ = load_model(str(path))
    xt = torch.full((512, 16), model.mask_id)
    x = unmask(model, xt, 2, "spread", temperature=temperature, generator=seeded(0))
    P = torch.tensor(meta["transition"], dtype=torch.float64)
    perplexity = (-P[x[:, :-1], x[:, 1:]].log().mean()).exp().item()
    p = F.one_hot(x, len(P)).double().mean(dim=1)  # (512, V)
    return perplexity, -torch.xlogy(p, p).sum(-1).mean().item()


@slow
def test_distillation_makes_better_text_at_equal_steps_and_entropy(
    trained_teacher, markov, tmp_path
):
    """On a language that is known: better than the teacher at a temperature that costs as much."""
    kw = dict(orig_steps=16, rounds=3, iters_per_round=150, eval_interval=150, batch_size=64)
    kw |= dict(warmup_iters=10, learning_rate=1e-3, sampler="spread", ema=0.95)
    D.main(settings(trained_teacher, tmp_path, **kw))
    meta = data.load(markov).meta
    cool, cool_entropy = perplexity_and_entropy(trained_teacher, 0.9, meta)
    warm, warm_entropy = perplexity_and_entropy(trained_teacher, 1.0, meta)
    student, entropy = perplexity_and_entropy(tmp_path / "round_3.pt", 1.0, meta)
    # on the teacher's line, log perplexity against entropy
    way = (entropy - cool_entropy) / (warm_entropy - cool_entropy)
    same = math.exp((1 - way) * math.log(cool) + way * math.log(warm))
    # measured: 3.87 / 4.22 in float32, 3.95 / 4.21 in bfloat16
    assert -0.5 < way < 1.5
    assert student < 0.97 * same


# --------------------------------------------------------------------------------------------------
# drafters


@pytest.fixture(scope="module")
def target(markov, tmp_path_factory):
    """The path of a small GPT that has learned the markov language."""
    folder = tmp_path_factory.mktemp("target")
    kw = dict(n_embd=32, batch_size=32, max_iters=200, eval_interval=200, learning_rate=3e-3)
    train.main(knobs(folder, dataset=markov, objective="ar", warmup_iters=10, **kw))
    return str(folder / "ckpt.pt")


def kd_settings(target, out_dir, **kw):
    kw = dict(method="kd", n_embd=16, n_head=2, divergence="kl_fwd", pseudo_tokens=3000) | kw
    return settings(target, out_dir, **kw)


COMBINATIONS = [("lstm", "dataset")]
for name in ("lstm", "cnn", "gpt"):
    for source in ("dataset", "teacher", "student"):
        if (name, source) != ("lstm", "dataset"):
            COMBINATIONS.append(pytest.param(name, source, marks=slow))


@pytest.mark.parametrize("drafter, kd_data", COMBINATIONS)
def test_drafters_learn_their_target_from_every_kind_of_text(drafter, kd_data, target, tmp_path):
    kw = dict(kd_data=kd_data, drafter=drafter, batch_size=16, ema=0.0)
    kw |= dict(iters_per_round=60, learning_rate=1e-2, eval_interval=30)
    D.main(kd_settings(target, tmp_path, **kw))
    losses = [r["loss"] for r in log_of(tmp_path) if "loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    model, saved = load_model(str(tmp_path / "ckpt.pt"))
    assert model.config.arch == drafter
    assert saved["meta"]["vocab_size"] == 8


@pytest.mark.parametrize("kd_data", ["teacher", pytest.param("student", marks=slow)])
def test_distilling_a_drafter_that_is_stopped_ends_bit_identical(
    kd_data, target, tmp_path, monkeypatch
):
    kw = dict(kd_data=kd_data, drafter="lstm")
    D.main(kd_settings(target, tmp_path / "whole", **kw))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(D, "kd_loss", stop_after(4, D.kd_loss))  # 2 steps, their validation, 1 step
        D.main(kd_settings(target, tmp_path / "parts", **kw))
    D.main(kd_settings(target, tmp_path / "parts", **kw, init_from="resume"))
    assert equal_runs(tmp_path / "whole", tmp_path / "parts", "ckpt.pt")


def test_a_drafter_may_be_distilled_for_longer(target, tmp_path):
    D.main(kd_settings(target, tmp_path / "whole", iters_per_round=4))
    D.main(kd_settings(target, tmp_path / "parts", iters_per_round=2))
    D.main(kd_settings(target, tmp_path / "parts", iters_per_round=4, init_from="resume"))
    assert equal_runs(tmp_path / "whole", tmp_path / "parts", "ckpt.pt")


def test_pseudo_data_goes_on_where_it_was_cut_off(target, markov, tmp_path):
    model, _ = load_model(target)
    corpus = data.load(markov)
    cfg = kd_settings(target, tmp_path, pseudo_tokens=16 * 64 * 3)
    whole = D.write_pseudo_data(model, corpus, cfg, "cpu").copy()
    assert whole.shape == (192, 16)
    assert whole.max() < 8
    path = tmp_path / "pseudo.bin"
    in_chunk_2 = 16 * 64 * 2 + 77  # bytes; a token has 2
    path.write_bytes(path.read_bytes()[:in_chunk_2])
    assert np.array_equal(D.write_pseudo_data(model, corpus, cfg, "cpu"), whole)
    cfg.pseudo_tokens = 16 * 64
    assert np.array_equal(D.write_pseudo_data(model, corpus, cfg, "cpu"), whole[:64])


@pytest.mark.parametrize("kd_data", ["teacher", "student"])
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_texts_to_learn_from_are_written_in_the_number_format_of_samples(
    dtype, kd_data, target, tmp_path, monkeypatch
):
    """On a CPU float32, unless it is asked for another."""
    seen = []
    generate = D.generate

    def spy(*args, **kw):
        seen.append(torch.is_autocast_enabled("cpu"))
        return generate(*args, **kw)

    monkeypatch.setattr(D, "generate", spy)
    D.main(kd_settings(target, tmp_path, kd_data=kd_data, drafter="gpt", dtype=dtype))
    assert set(seen) == {dtype == "bfloat16"}


def test_an_ngram_counts_the_text_of_the_target(target, markov, tmp_path):
    D.main(kd_settings(target, tmp_path, drafter="ngram", ngram_n=2, pseudo_tokens=30000))
    ngram, meta = drafters.NGram.load(str(tmp_path / "ngram.txt"))
    assert meta["vocab_size"] == 8
    assert ngram.counts[0].sum() >= 30000
    model, _ = load_model(target)
    x = data.blocks(data.load(markov).val, 16, 100)
    p = model(x).softmax(-1)[:, 2:]
    q = ngram.logits(x).softmax(-1)[:, 2:]
    # in a markov language the last token says all about the next one
    assert torch.minimum(p, q).sum(-1).mean() > 0.9


def test_a_trained_drafter_can_be_distilled_further(target, markov, tmp_path):
    kw = dict(dataset=markov, objective="ar", arch="lstm", n_embd=16, n_layer=1)
    train.main(knobs(tmp_path / "base", **kw))
    D.main(kd_settings(target, tmp_path / "kd", drafter=str(tmp_path / "base" / "ckpt.pt")))
    assert load_model(str(tmp_path / "kd" / "ckpt.pt"))[0].config.arch == "lstm"


@pytest.mark.parametrize("method", ["sdtt", "kd"])
def test_three_functions_stand_between_the_command_and_the_loss(method, target, teacher, tmp_path):
    cfg = settings(teacher, tmp_path) if method == "sdtt" else kd_settings(target, tmp_path)
    way = way_to(D, f"{method}_loss", lambda: D.main(cfg))
    assert way == ["distill.py:main", f"distill.py:{method}", "loop.py:fit"]


def test_mistakes_with_drafters_raise_before_any_work(target, teacher, pydoc, tmp_path, error_of):
    def said(**kw):
        message = error_of(D.main, kd_settings(kw.pop("teacher", target), tmp_path / "out", **kw))
        assert not os.path.exists(tmp_path / "out" / "ckpt.pt")
        assert not os.path.exists(tmp_path / "out" / "pseudo.bin")  # the target wrote nothing yet
        return message

    assert "is a GPT" in error_of(D.main, settings(target, tmp_path / "out"))
    assert "is a masked diffusion model" in said(teacher=teacher)
    assert "'web'" in said(kd_data="web")
    assert "kd_temp is 0.0" in said(kd_temp=0.0)
    assert "pseudo_tokens is 0" in said(pseudo_tokens=0)
    assert "another vocabulary" in said(dataset=pydoc)
    assert "not lstm, cnn, gpt or ngram" in said(drafter="lstn", kd_data="teacher")
    assert "3 heads" in said(drafter="gpt", n_head=3, n_embd=16, kd_data="teacher")
    assert "'mse' is SDTT's" in said(divergence="mse")
    assert "fsdp" in said(fsdp=True, kd_data="student")
    # a diffusion model would see the tokens that it learns to predict
    assert "is not a GPT" in said(drafter=teacher)
    D.main(kd_settings(target, tmp_path / "e", drafter="ngram", ngram_n=2))
    os.remove(tmp_path / "e" / "ngram.txt")
    again = kd_settings(target, tmp_path / "e", drafter="ngram", ngram_n=2, seed=2)
    assert "seed 1337, not 2" in error_of(D.main, again)
