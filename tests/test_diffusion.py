"""
python -m pytest tests/test_diffusion.py

masked diffusion: the loss, the bound, every sampler
"""

import functools
import itertools
import math

import pytest
import reference
import torch
from conftest import tiny_model

import model as M
from model import SAMPLERS, close_gaps, unmask, unmask_any, unmask_steps
from plumbing.randomness import seeded

pytestmark = pytest.mark.numerics


def all_masked(model, B=1, T=8):
    return torch.full((B, T), model.mask_id)


# --------------------------------------------------------------------------------------------------
# the loss and the bound


def test_stratified_numbers_cover_the_unit_interval_evenly():
    u = M.stratified(64, seeded(0), "cpu")
    assert u.shape == (64, 1)
    assert u.min() >= 0 and u.max() < 1
    gaps = u.flatten().sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((63,), 1 / 64), atol=1e-6, rtol=0)


def loss_and_its_noise(model, x0, generator, monkeypatch, t_weight=1.0):
    """-> the loss, the xt (B, T) that it gave the network, its t (B, 1)."""
    seen = {}
    real_masked_nll = M.masked_nll

    def masked_nll(model, x0, masked, weight):
        seen["xt"] = x0.masked_fill(masked, model.mask_id)
        seen["weight"] = weight
        return real_masked_nll(model, x0, masked, weight)

    with monkeypatch.context() as patch:
        patch.setattr(M, "masked_nll", masked_nll)
        loss = M.diffusion_loss(model, x0, generator, t_weight)
    return loss, seen["xt"], 1 / seen["weight"]


@pytest.mark.parametrize("t", [None, 1.0, 0.5, 1e-3])
def test_diffusion_loss_and_gradient_equal_the_dense_ones(t, monkeypatch):
    """At t = 1 all tokens are masked; at 1e-3 none is, and the loss is zero."""
    model = tiny_model(tie_weights=False)
    x0 = torch.randint(7, (4, 16), generator=seeded(0))
    if t:
        u = (t - 1e-3) / (1 - 1e-3)
        monkeypatch.setattr(M, "stratified", lambda B, *_: torch.full((B, 1), u))
    loss, xt, used_t = loss_and_its_noise(model, x0, seeded(3), monkeypatch)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    dense = reference.diffusion_loss(model, x0, xt, used_t)
    torch.testing.assert_close(loss, dense)
    assert (loss == 0) == (t == 1e-3)
    if t == 1e-3:
        assert all(gradient.abs().sum() == 0 for gradient in gradients)
        return
    dense.backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, p.grad, atol=1e-5, rtol=1e-4)


def test_each_token_is_masked_with_probability_t(monkeypatch):
    model = tiny_model(block_size=2000)
    monkeypatch.setattr(model, "hidden", lambda x: torch.zeros(*x.shape, 16))
    x0 = torch.randint(7, (20, 2000), generator=seeded(0))
    _, xt, t = loss_and_its_noise(model, x0, seeded(1), monkeypatch)
    masked = xt == 7
    assert (masked.float().mean(dim=1, keepdim=True) - t).abs().max() < 0.05
    assert torch.equal(xt[~masked], x0[~masked])


@torch.no_grad()
@pytest.mark.parametrize("a", [1.0, 0.5, 0.0])
def test_t_weight_reweights_noise_levels_and_keeps_the_scale(a, monkeypatch):
    model = tiny_model()
    x0 = torch.randint(7, (4, 16), generator=seeded(0))
    for t in (0.3, 0.9):
        u = (t - 1e-3) / (1 - 1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(M, "stratified", lambda B, *_, u=u: torch.full((B, 1), u))
            bound = M.diffusion_loss(model, x0, seeded(1))
            other = M.diffusion_loss(model, x0, seeded(1), t_weight=a)
        torch.testing.assert_close(other / bound, torch.tensor((2 - a) * t ** (1 - a)))
    for p in model.parameters():
        p.zero_()  # every token costs log 7, at every noise level
    losses = [M.diffusion_loss(model, x0, seeded(i), t_weight=a) for i in range(400)]
    assert torch.stack(losses).mean().item() == pytest.approx(math.log(7), abs=0.03)


@torch.no_grad()
@pytest.mark.parametrize("estimate", [M.nelbo, M.diffusion_loss])
def test_the_estimates_have_the_exact_bound_as_their_mean(estimate):
    model = tiny_model(block_size=4)
    x0 = torch.tensor([[3, 1, 1, 6]])
    exact = reference.exact_nelbo(model, x0)
    values = torch.stack([estimate(model, x0.expand(64, 4), seeded(i)) for i in range(100)])
    error = values.std().item() / 10
    assert error < 0.05 * exact
    # the loss leaves out t < eps = 1e-3
    assert abs(values.mean().item() - exact) < 4 * error + 1e-3 * exact


@torch.no_grad()
def test_the_exact_bound_is_the_mean_over_all_orders_of_unmasking():
    model = tiny_model(block_size=3)
    x0 = torch.tensor([[5, 2, 1]])
    nats = 0.0
    for order in itertools.permutations(range(3)):
        xt = all_masked(model, 1, 3)
        for i in order:
            nats -= model(xt)[0, i].log_softmax(-1)[x0[0, i]].item() / 6
            xt[0, i] = x0[0, i]
    assert reference.exact_nelbo(model, x0) == pytest.approx(nats / 3, rel=1e-5)


@torch.no_grad()
def test_the_bound_has_less_noise_than_the_loss():
    model = tiny_model()
    x0 = torch.randint(7, (8, 16), generator=seeded(0))
    bounds = torch.stack([M.nelbo(model, x0, seeded(i)) for i in range(200)])
    losses = torch.stack([M.diffusion_loss(model, x0, seeded(i)) for i in range(200)])
    assert bounds.std() < 0.7 * losses.std()


def test_gradient_reaches_every_weight():
    model = tiny_model(tie_weights=False)
    x0 = torch.randint(7, (4, 16), generator=seeded(0))
    M.diffusion_loss(model, x0, seeded(0)).backward()
    for p in model.parameters():
        assert torch.isfinite(p.grad).all()
        assert p.grad.abs().sum() > 0


# --------------------------------------------------------------------------------------------------
# steps


def test_the_analytic_step_is_the_ancestral_step():
    p = torch.randn(50, 7, generator=seeded(0), dtype=torch.float64).softmax(-1)
    for t, s in ((0.999, 0.0), (0.9, 0.5), (0.5, 0.499), (1e-3, 0.0)):
        analytic = reference.analytic_step(p, t, s)
        torch.testing.assert_close(analytic, reference.ancestral_step(p, t, s))
        torch.testing.assert_close(analytic.sum(-1), torch.ones(50, dtype=torch.float64))
    masked = torch.ones(3, 8, dtype=torch.bool)
    one = unmask_steps(masked, 5, "analytic", seeded(1))
    assert torch.equal(one, unmask_steps(masked, 5, "ancestral", seeded(1)))


def test_a_step_from_t_to_s_unmasks_a_fraction_t_minus_s_over_t():
    u = torch.rand(1, 400_000, generator=seeded(0))
    step_of = M.ancestral_steps(u, t=0.75, dt=0.25, n_steps=2)
    masked = u < 0.75
    assert torch.equal(step_of > 0, masked)
    first = (step_of == 1).sum() / masked.sum()
    assert first.item() == pytest.approx(1 / 3, abs=0.005)  # the rest is the last step's


def test_the_ends_of_time_belong_to_the_first_and_the_last_step():
    largest = 1 - 2**-24  # of what torch.rand gives
    u = torch.tensor([[0.0, 0.25, 0.4999, 0.5, largest]])
    assert M.ancestral_steps(u, t=1, dt=1 / 2, n_steps=2).tolist() == [[2, 2, 2, 1, 1]]
    assert M.ancestral_steps(u, t=0.5, dt=1 / 4, n_steps=2).tolist() == [[2, 1, 1, 0, 0]]
    assert M.ancestral_steps(u, t=0.5, dt=1 / 8, n_steps=2).tolist() == [[2, 2, 1, 0, 0]]


def test_first_hitting_unmasks_one_position_a_step_in_random_order():
    masked = torch.rand(50, 20, generator=seeded(0)) < 0.5
    step_of = unmask_steps(masked, 3, "first_hitting", seeded(1))
    firsts = set()
    for row, positions in zip(step_of, masked, strict=True):
        n = int(positions.sum())
        assert sorted(row[positions].tolist()) == list(range(1, n + 1))
        assert (row[~positions] == 0).all()
        firsts.add(int((row == 1).nonzero()))
    assert len(firsts) > 10


def test_spread_unmasks_every_kth_masked_position_together():
    masked = torch.rand(50, 40, generator=seeded(0)) < 0.5
    step_of = unmask_steps(masked, 4, "spread", seeded(1))
    orders = set()
    for row, positions in zip(step_of, masked, strict=True):
        steps = row[positions].tolist()
        assert steps == [steps[i % 4] for i in range(len(steps))]
        assert sorted(steps[:4]) == [1, 2, 3, 4]
        assert (row[~positions] == 0).all()
        orders.add(tuple(steps[:4]))
    assert len(orders) > 12  # of 24


def test_closing_gaps_keeps_the_order_of_the_steps():
    step_of = torch.tensor([[7, 0, 3, 7], [0, 0, 0, 0], [1, 2, 4, 1024], [5, 5, 5, 5]])
    assert close_gaps(step_of).tolist() == [[2, 0, 1, 2], [0] * 4, [1, 2, 3, 4], [1] * 4]
    step_of = unmask_steps(torch.rand(30, 12) < 0.7, 20, "ancestral", seeded(0))
    for row, closed in zip(step_of.tolist(), close_gaps(step_of).tolist(), strict=True):
        steps = sorted(set(row) - {0})
        assert closed == [steps.index(step) + 1 if step else 0 for step in row]


# --------------------------------------------------------------------------------------------------
# samplers, by enumeration


def total_variation(rows, exact):
    """(n, T) samples, {tokens: probability} -> half the L1 distance."""
    counts = {}
    for x in map(tuple, rows.tolist()):
        counts[x] = counts.get(x, 0) + 1 / len(rows)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-4)
    return sum(abs(counts.get(x, 0) - exact.get(x, 0)) for x in counts.keys() | exact.keys()) / 2


def distance(a, b):
    return sum(abs(a.get(x, 0) - b.get(x, 0)) for x in a.keys() | b.keys()) / 2


N = 20_000  # samples; of 8 outcomes, 0.007 is the distance to expect
CLOSE = 0.016
TEMPLATES = ([2, 2, 2], [2, 1, 2], [0, 2, 1])  # 3, 2 and 1 masked positions; 2 is [MASK]


@functools.cache
def two_tokens():
    # learned positions: with rope, a text that is all masked looks the same everywhere
    return tiny_model(V=2, block_size=3, pos="learned", seed=11)


def exact_distribution(sampler, x, steps):
    model = two_tokens()
    if sampler == "ancestral":
        return reference.exact_ancestral_distribution(model, x, steps)
    if sampler == "first_hitting":
        return reference.exact_first_hitting_distribution(model, x)
    if sampler == "spread":
        return reference.exact_spread_distribution(model, x, steps)
    return reference.exact_confidence_distribution(model, x, steps)


CASES = [
    ("first_hitting", 1),
    *itertools.product(("ancestral", "spread", "confidence"), (1, 2, 3, 7)),
]


@pytest.mark.parametrize("sampler, steps", CASES)
def test_samples_have_exactly_the_samplers_distribution(sampler, steps):
    """Rows of 3, 2 and 1 masked positions in one batch; steps below, at and above their number."""
    templates = torch.tensor(TEMPLATES)
    batch = templates.repeat_interleave(N, dim=0)
    rows = unmask_any(two_tokens(), batch, steps, sampler, generator=seeded(steps))
    for x, part in zip(TEMPLATES, rows.split(N), strict=True):
        exact = exact_distribution(sampler, x, steps)
        assert total_variation(part, exact) < CLOSE


def test_the_distributions_differ_by_more_than_the_tolerance():
    """So that the test above could tell one sampler from another, and 2 steps from 1."""
    masked = TEMPLATES[0]
    of_two = {name: exact_distribution(name, masked, 2) for name in SAMPLERS}
    of_two["one step"] = exact_distribution("ancestral", masked, 1)
    for (name, one), (other_name, other) in itertools.combinations(of_two.items(), 2):
        assert distance(one, other) > 4 * CLOSE, (name, other_name)


def test_the_literal_sampler_has_that_distribution_too():
    model = two_tokens()
    rows = reference.ancestral_sampler(model, all_masked(model, N, 3), 2, seeded(0))
    exact = reference.exact_ancestral_distribution(model, TEMPLATES[0], 2)
    assert total_variation(rows, exact) < CLOSE


def test_first_hitting_is_the_limit_of_many_steps_of_each_sampler():
    masked = TEMPLATES[0]
    limit = exact_distribution("first_hitting", masked, 1)
    assert distance(limit, exact_distribution("ancestral", masked, 60)) < 0.01
    assert distance(limit, exact_distribution("spread", masked, 3)) < 1e-5
    one_step = exact_distribution("ancestral", masked, 1)
    assert distance(one_step, exact_distribution("spread", masked, 1)) < 1e-5


@pytest.mark.parametrize(
    "groups, temperatures", [([[0, 2], [1]], [2.0, 0.5]), ([[0], [1], [2]], [2.0, 1.25, 0.5])]
)
def test_the_temperature_falls_evenly_from_the_first_step_to_the_last(groups, temperatures):
    batch = all_masked(two_tokens(), N, 3)
    settings = dict(temperature=2.0, cooling=0.25, generator=seeded(0))
    rows = unmask(two_tokens(), batch, len(groups), **settings)
    exact = functools.partial(reference.mean_over_orders, two_tokens(), TEMPLATES[0], groups)
    assert total_variation(rows, exact(temperatures)) < CLOSE
    assert distance(exact(temperatures), exact(temperatures[::-1])) > 2 * CLOSE  # not rising
    assert distance(exact(temperatures), exact([2.0] * len(groups))) > 2 * CLOSE


@pytest.mark.parametrize("n_steps", [4, 40])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_cooling_to_0_ends_with_the_most_probable_tokens(sampler, n_steps):
    model = tiny_model()
    seen = []
    watch = lambda xt: seen.append(xt.clone())  # noqa: E731
    settings = dict(cooling=0.0, generator=seeded(0), watch=watch)
    x = unmask_any(model, all_masked(model, 1, 16), n_steps, sampler, **settings)
    last = seen[-2] == model.mask_id
    assert torch.equal(x[last], model(seen[-2]).argmax(-1)[last])


def test_temperature_and_top_p_shape_every_draw():
    model = two_tokens()
    batch = all_masked(model, 500, 3)
    for settings in ({"temperature": 0}, {"top_p": 0.01}):
        rows = unmask(model, batch, 1, "ancestral", generator=seeded(0), **settings)
        assert torch.equal(rows, model(batch).argmax(-1))


# --------------------------------------------------------------------------------------------------
# samplers, what they visit


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 8, 16, 17, 41])
def test_every_masked_position_is_filled_and_no_other_touched(sampler, steps, length):
    model = tiny_model()
    template = all_masked(model, 3, length)
    template[0] = torch.arange(length) % 7  # a row with nothing to do
    template[1, ::3] = 5  # infilling
    template[2, : length // 2] = 2  # a prompt
    before = template.clone()
    settings = dict(temperature=0.9, top_p=0.9)
    seen = []
    watch = lambda xt: seen.append(xt.clone())  # noqa: E731
    x = unmask_any(model, template, steps, sampler, generator=seeded(0), watch=watch, **settings)
    assert torch.equal(template, before)
    assert (x < 7).all()
    assert torch.equal(x[template != 7], template[template != 7])
    again = unmask_any(model, template, steps, sampler, generator=seeded(0), **settings)
    assert torch.equal(x, again)
    for earlier, later in itertools.pairwise([template, *seen]):  # what is unmasked stays
        assert torch.equal(earlier[earlier != 7], later[earlier != 7])
    if length > 1:
        assert torch.equal(seen[-1], x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_than_tokens_cost_no_more_forward_passes(sampler, monkeypatch):
    model = tiny_model()
    rows = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda x: rows.append(len(x)) or hidden(x))
    unmask_any(model, all_masked(model, 4, 16), 5000, sampler, generator=seeded(0))
    assert len(rows) <= 16
    assert sum(rows) <= 4 * 16
    rows.clear()
    unmask_any(model, all_masked(model, 4, 16), 4, sampler, generator=seeded(0))
    assert len(rows) <= (16 if sampler == "first_hitting" else 4)
    rows.clear()
    full = torch.zeros(2, 16, dtype=torch.long)
    assert torch.equal(unmask_any(model, full, 4, sampler, generator=seeded(0)), full)
    assert not rows


@pytest.mark.parametrize("sampler", ["spread", "ancestral", "first_hitting"])
def test_the_head_runs_once_per_token(sampler, monkeypatch):
    model = tiny_model()
    n = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda h: n.append(len(h)) or head(h))
    unmask(model, all_masked(model, 3, 16), 50, sampler, generator=seeded(0))
    assert sum(n) == 3 * 16


def test_confidence_unmasks_an_equal_fraction_in_each_step():
    model = tiny_model()
    left = []
    xt = all_masked(model, 2, 16)
    xt[1, :8] = 3
    watch = lambda x: left.append((x == 7).sum(dim=1).tolist())  # noqa: E731
    unmask_any(model, xt, 4, "confidence", generator=seeded(0), watch=watch)
    assert left == [[12, 6], [8, 4], [4, 2], [0, 0]]


def test_text_past_the_context_is_written_window_by_window():
    """Each window sees the second half of the last one, and nothing before it."""
    model = tiny_model(block_size=8)
    xt = all_masked(model, 1, 20)
    text = unmask_any(model, xt, 1, temperature=0)
    known = model(xt[:, :8]).argmax(-1)  # one step
    for start in (4, 8, 12):
        window = torch.cat([known[:, start:], all_masked(model, 1, 4)], dim=1)
        known = torch.cat([known, model(window).argmax(-1)[:, 4:]], dim=1)
    assert torch.equal(text, known)


def test_bad_requests_raise(error_of):
    model = tiny_model()
    assert "steps is 0" in error_of(unmask_any, model, all_masked(model), 0)
    assert "'euler'" in error_of(unmask_any, model, all_masked(model), 4, "euler")
    assert "'euler'" in error_of(unmask, model, all_masked(model), 4, "euler")
    gpt = tiny_model(causal=True)
    assert "left to right" in error_of(unmask_any, gpt, torch.zeros(1, 4, dtype=torch.long), 4)
