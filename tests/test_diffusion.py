"""
python -m pytest tests/test_diffusion.py          masked diffusion: the loss, the bound and every sampler
"""

import itertools
import math

import pytest
import reference
import torch
from conftest import tiny_model

import model as M
from model import unmask
from plumbing.randomness import seeded

pytestmark = pytest.mark.numerics


def blanks(model, B=1, T=8):
    return torch.full((B, T), model.mask_id)


def test_stratified_numbers_cover_the_unit_interval_evenly():
    u = M.stratified(64, seeded(0), "cpu").flatten()
    assert u.min() >= 0 and u.max() < 1
    torch.testing.assert_close(u.sort().values.diff(), torch.full((63,), 1 / 64), atol=1e-6, rtol=0)


def test_noise_masks_each_token_with_probability_t():
    x0 = torch.randint(7, (2, 100_000))
    xt = M.add_noise(x0, torch.tensor([[0.2], [1.0]]), 7, seeded(0))
    assert abs((xt[0] == 7).float().mean() - 0.2) < 0.01 and (xt[1] == 7).all()
    assert torch.equal(xt[0][xt[0] != 7], x0[0][xt[0] != 7])


@pytest.mark.parametrize("t_value", [None, 1.0, 1e-3])
def test_diffusion_loss_equals_the_dense_one(t_value, monkeypatch):
    """At t = 1 all is masked; at 1e-3 nothing is, and the loss is zero."""
    model = tiny_model()
    x0 = torch.randint(7, (4, 16))
    seen = {}
    real = M.add_noise

    def spy(x0, t, mask_id, g):
        seen["t"] = t
        seen["xt"] = real(x0, t, mask_id, g)
        return seen["xt"]

    monkeypatch.setattr(M, "add_noise", spy)
    if t_value:
        u = (t_value - 1e-3) / (1 - 1e-3)
        monkeypatch.setattr(M, "stratified", lambda B, *_: torch.full((B, 1), u))
    fast = M.diffusion_loss(model, x0, seeded(3))
    torch.testing.assert_close(fast, reference.diffusion_loss(model, x0, seen["xt"], seen["t"]))
    assert (fast == 0) == (t_value == 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("a", [1.0, 0.5, 0.0])
def test_t_weight_reweights_noise_levels_and_keeps_the_scale(a, monkeypatch):
    model = tiny_model()
    x0 = torch.randint(7, (4, 16))
    for t in (0.3, 0.9):
        monkeypatch.setattr(
            M, "stratified", lambda B, *_, u=(t - 1e-3) / (1 - 1e-3): torch.full((B, 1), u)
        )
        bound, other = (M.diffusion_loss(model, x0, seeded(1), w) for w in (1.0, a))
        torch.testing.assert_close(other / bound, torch.tensor((2 - a) * t ** (1 - a)))
    monkeypatch.undo()
    for p in model.parameters():
        p.zero_()  # every token costs log 7, at every noise level
    mean = torch.stack([M.diffusion_loss(model, x0, seeded(i), a) for i in range(400)]).mean()
    assert abs(mean - math.log(7)) < 0.03


@torch.no_grad()
def test_both_estimators_have_the_exact_bound_as_their_mean():
    model = tiny_model(block_size=4)
    x0 = torch.tensor([[3, 1, 1, 6]])
    exact = reference.exact_nelbo(model, x0)
    for estimate, tolerance in ((M.nelbo, 0.02), (lambda *a: M.diffusion_loss(*a), 0.05)):
        values = torch.stack([estimate(model, x0.expand(64, 4), seeded(i)) for i in range(100)])
        error = values.std().item() / 10
        assert error < tolerance * exact
        assert (
            abs(values.mean().item() - exact) < 4 * error + 1e-3 * exact
        )  # the loss leaves out t < eps = 1e-3


@torch.no_grad()
def test_the_bound_has_less_noise_than_the_loss():
    model = tiny_model()
    x0 = torch.randint(7, (8, 16))
    noise = [
        torch.stack([f(model, x0, seeded(i)) for i in range(200)]).std()
        for f in (M.nelbo, M.diffusion_loss)
    ]
    assert noise[0] < 0.7 * noise[1]


def test_gradient_reaches_every_weight():
    model = tiny_model(tie_weights=False)
    M.diffusion_loss(model, torch.randint(7, (4, 16)), seeded(0)).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_analytic_step_is_the_ancestral_step():
    t = torch.rand(1000, dtype=torch.float64)
    s = t * torch.rand(1000, dtype=torch.float64)
    t, s = (
        torch.cat([t, torch.ones(2, dtype=torch.float64)]),
        torch.cat([s, torch.tensor([0.0, 0.5]).double()]),
    )
    torch.testing.assert_close(M.reveal_rate(t, s, "analytic"), M.reveal_rate(t, s, "ancestral"))


def total_variation(xs, exact):
    """(n, T) samples, {tokens: probability} -> half the L1 distance."""
    counts = {}
    for x in map(tuple, xs.tolist()):
        counts[x] = counts.get(x, 0) + 1 / len(xs)
    return sum(abs(counts.get(x, 0) - exact.get(x, 0)) for x in counts.keys() | exact.keys()) / 2


@pytest.mark.parametrize("sampler", ["ancestral", "analytic"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_have_exactly_the_ancestral_distribution(sampler, steps):
    model = tiny_model(V=2, block_size=3)
    exact = reference.exact_ancestral_distribution(model, 3, steps)
    assert abs(sum(exact.values()) - 1) < 1e-5
    xs = unmask(model, blanks(model, 40_000, 3), steps, sampler, generator=seeded(steps))
    assert total_variation(xs, exact) < 0.012  # 8 outcomes, 40000 draws: 0.005 expected
    if steps > 1:  # and it could tell another number of steps apart
        assert total_variation(xs, reference.exact_ancestral_distribution(model, 3, 1)) > 0.02


def test_the_literal_sampler_has_that_distribution_too():
    model = tiny_model(V=2, block_size=3)
    xs = reference.ancestral_sampler(model, blanks(model, 40_000, 3), 2, seeded(0))
    assert total_variation(xs, reference.exact_ancestral_distribution(model, 3, 2)) < 0.012


@torch.no_grad()
def test_first_hitting_is_the_limit_of_many_steps():
    model = tiny_model(V=2, block_size=3)
    exact = {}
    for order in itertools.permutations(
        range(3)
    ):  # one token at a time, in a uniformly random order
        for x in itertools.product(range(2), repeat=3):
            p, xt = 1 / 6, blanks(model, 1, 3)
            for i in order:
                p *= reference.subs_log_p(model, xt)[0, i, x[i]].exp().item()
                xt[0, i] = x[i]
            exact[x] = exact.get(x, 0) + p
    xs = unmask(model, blanks(model, 40_000, 3), 1, "first_hitting", generator=seeded(0))
    assert total_variation(xs, exact) < 0.012
    many = reference.exact_ancestral_distribution(model, 3, 60)
    assert sum(abs(exact[x] - many[x]) for x in exact) / 2 < 0.01


def spread_template(model, n):
    """Rows of 3 blanks, of 2 with a known token between them, and of 1."""
    template = blanks(model, n, 3)
    template[n // 3 :, 1] = 1
    template[2 * n // 3 :, 0] = 0
    return template


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_spread_samples_have_exactly_their_distribution(steps):
    """K = 1, 2, N and more, with known tokens between, in rows of different numbers of blanks."""
    model, n = tiny_model(V=2, block_size=3), 90_000
    template = spread_template(model, n)
    xs = unmask(model, template, steps, "spread", generator=seeded(steps))
    for row in (0, n // 3, 2 * n // 3):
        exact = reference.exact_spread_distribution(model, template[row].tolist(), steps)
        assert abs(sum(exact.values()) - 1) < 1e-5
        assert total_variation(xs[row : row + n // 3], exact) < 0.014
    if steps == 2:
        other = reference.exact_ancestral_distribution(model, 3, 2)
        assert total_variation(xs[: n // 3], other) > 0.03  # it is another law


def test_a_half_random_start_has_its_law_and_so_has_what_is_written_from_it(refused):
    model, n = tiny_model(V=2, block_size=3), 60_000
    assert "--sampler=spread" in refused(unmask, model, blanks(model, 1, 3), 1, "dimo")
    model.frequency = torch.tensor([0.2, 0.8])
    template = blanks(model, n, 3)
    template[n // 2 :, 1] = 0
    start = M.half_random(template, model, seeded(5))
    shares = [(start[:, i] == v).float().mean().item() for i in (0, 2) for v in range(3)]
    assert (
        shares == pytest.approx([0.1, 0.4, 0.5] * 2, abs=0.01) and (start[n // 2 :, 1] == 0).all()
    )
    xs = unmask(model, template, 1, "dimo", generator=seeded(6))
    for row in (0, n // 2):
        exact = reference.exact_dimo_distribution(model, template[row].tolist())
        assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
        assert total_variation(xs[row : row + n // 2], exact) < 0.014
    assert (
        total_variation(xs[: n // 2], reference.exact_ancestral_distribution(model, 3, 1)) > 0.02
    )  # another law


def test_spread_with_a_step_for_each_token_is_first_hitting_and_with_one_step_ancestral():
    model = tiny_model(V=2, block_size=3)
    many = reference.exact_ancestral_distribution(model, 3, 60)
    each = reference.exact_spread_distribution(model, [2, 2, 2], 3)
    assert sum(abs(each[x] - many[x]) for x in each) / 2 < 0.01
    one, same = (
        reference.exact_ancestral_distribution(model, 3, 1),
        reference.exact_spread_distribution(model, [2] * 3, 1),
    )
    assert sum(abs(one[x] - same[x]) for x in one) < 1e-5


def test_spread_reveals_every_kth_blank_together():
    blank = torch.rand(50, 40, generator=seeded(0)) < 0.5
    order = M.spread_order(blank, 4, seeded(1))
    for row, places in zip(order, blank, strict=True):
        calls = row[places].tolist()
        assert calls == [calls[i % 4] for i in range(len(calls))] and sorted(calls[:4]) == [
            1,
            2,
            3,
            4,
        ]
        assert (row[~places] == 0).all()
    assert (
        len({tuple(row[:4]) for row in (o[b].tolist() for o, b in zip(order, blank, strict=True))})
        > 12
    )  # of 24
    assert (M.spread_order(blank, 1000, seeded(1)).amax(1) == blank.sum(1)).all()


@pytest.mark.parametrize("sampler", M.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 8, 16, 17, 41])
def test_every_blank_is_filled_and_nothing_else_is_touched(sampler, steps, length):
    model = tiny_model()
    model.frequency = torch.full((7,), 1 / 7)
    template = blanks(model, 3, length)
    template[0] = torch.arange(length) % 7  # a row without blanks
    template[1, ::3] = 5  # infilling
    template[2, : length // 2] = 2  # a prompt
    seen = []
    x = unmask(
        model, template, steps, sampler, 0.9, 0.9, seeded(0), lambda xt: seen.append(xt.clone())
    )
    assert (x < 7).all() and torch.equal(x[template != 7], template[template != 7])
    again = unmask(model, template, steps, sampler, 0.9, 0.9, seeded(0))
    assert torch.equal(x, again)
    for before, after in itertools.pairwise([template, *seen]):  # a token once revealed stays
        assert torch.equal(before[before != 7], after[before != 7])
    assert not seen or torch.equal(seen[-1], x)


def test_forwards_stop_growing_when_there_are_more_steps_than_tokens(monkeypatch):
    model = tiny_model()
    rows = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda x: rows.append(len(x)) or hidden(x))
    for sampler in ("spread", "ancestral", "first_hitting", "confidence"):
        rows.clear()
        unmask(model, blanks(model, 4, 16), 5000, sampler, generator=seeded(0))
        assert len(rows) <= 16 and sum(rows) <= 4 * 16
    rows.clear()
    unmask(model, blanks(model, 4, 16), 4, generator=seeded(0))
    assert len(rows) <= 4
    rows.clear()
    full = torch.zeros(2, 16, dtype=torch.long)
    assert torch.equal(unmask(model, full, 4, generator=seeded(0)), full) and not rows


def test_the_head_runs_once_per_token(monkeypatch):
    model = tiny_model()
    n = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda h: n.append(h.size(0)) or head(h))
    unmask(model, blanks(model, 3, 16), 50, generator=seeded(0))
    assert sum(n) == 3 * 16


def test_confidence_reveals_an_even_share_and_the_surest_first():
    model = tiny_model()
    left = []
    unmask(
        model,
        blanks(model, 1, 16),
        4,
        "confidence",
        0,
        generator=seeded(0),
        watch=lambda x: left.append((x == 7).sum()),
    )
    assert left == [12, 8, 4, 0]
    seen = []
    unmask(
        model,
        blanks(model, 1, 16),
        16,
        "confidence",
        0,
        generator=seeded(0),
        watch=lambda x: seen.append(x.clone()),
    )
    first = (seen[0] != 7).nonzero()[0, 1]
    best = model(blanks(model, 1, 16))[0].softmax(-1).max(-1).values
    assert best[first] > best.max() - 1e-5  # another kernel computed it


def test_bad_requests_are_refused(refused):
    model = tiny_model()
    assert "steps is 0" in refused(unmask, model, blanks(model), 0)
    assert "'euler'" in refused(unmask, model, blanks(model), 4, "euler")
    gpt = tiny_model(causal=True)
    assert "autoregressive" in refused(unmask, gpt, torch.zeros(1, 4, dtype=torch.long), 4)
