"""
python -m pytest tests/test_distill.py          SDTT: targets, divergences, rounds, resume
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
from conftest import TINY, knobs, run, tiny_model, way_to

import data
import distill as D
import drafters
import loop
import metrics
import model as M
import train
from drafters import load_model
from model import unmask
from plumbing import checkpoints, head
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded
from plumbing.soft_labels import SoftWriter, load_soft, soft_from_jsonl, soft_from_teacher

KINDS = ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd", "nla")


def masked_batch(model, t, T=16, seed=0):
    """(B,) times -> x0, xt, t (B, 1): row b of xt is masked with probability t_b."""
    t = torch.tensor(t)[:, None]
    x0 = torch.randint(model.config.vocab_size, (len(t), T), generator=seeded(seed))
    return x0, M.add_noise(x0, t, model.mask_id, seeded(seed, "noise")), t


def targets_of(teacher, xt, t, dt, k, generator, sampler="ancestral"):
    """Algorithm 1 for the noisy batch xt of time t."""
    call = D.ancestral_calls(xt == teacher.mask_id, t, dt, k, generator, sampler)
    return D.sdtt_targets(teacher, xt, call, generator)


def pick(logits, *_):
    """The token at 0.37 of the cumulative distribution: a draw that both versions can make."""
    return (logits.double().softmax(-1).cumsum(-1) < 0.37).sum(-1).clamp(max=logits.size(-1) - 1)


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["ancestral", "analytic"])
@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("dt", [1 / 4, 1 / 32])
def test_targets_equal_the_dense_algorithm_1(k, dt, sampler, monkeypatch):
    """For the same reveals and tokens: t at both ends, fewer steps left than k, and a row with nothing masked."""
    teacher = tiny_model()
    _, xt, t = masked_batch(teacher, [1.0, 0.9, 0.5, 0.26, 0.1, 1e-3, 0.7])
    xt[6] = xt[6].masked_fill(xt[6] == teacher.mask_id, 3)
    xt[5, 4] = teacher.mask_id  # else a time of 1e-3 masks nothing
    monkeypatch.setattr(D, "draw", pick)
    masked = xt == teacher.mask_id
    fast = teacher.head(targets_of(teacher, xt, t, dt, k, seeded(5), sampler)).log_softmax(
        -1
    )  # (N, V)
    u = torch.rand(xt.shape, dtype=torch.float64, generator=seeded(5))  # what reveal_order drew
    kept = [torch.ones(len(t), 1, dtype=torch.float64)]

    def reveals(i, t_i, s_i):
        """Step i reveals a position if u falls between the chances of having been revealed before and after it."""
        kept.append(kept[-1] * (1 - (t_i - s_i) / t_i))
        return (1 - kept[-2] <= u) & (u < 1 - kept[-1])

    slow = reference.sdtt_targets(teacher, xt, t.double(), dt, k, reveals, pick)
    torch.testing.assert_close(fast, slow[masked], atol=1e-5, rtol=1e-5)
    assert (slow[masked].exp().sum(-1) - 1).abs().max() < 1e-5 and not masked[6].any()


@torch.no_grad()
@pytest.mark.parametrize("t, dt, k", [(0.9, 0.3, 2), (1.0, 0.25, 4), (0.5, 0.4, 2)])
def test_targets_follow_the_law_of_algorithm_1(t, dt, k):
    """Their mean equals the one over every path, also where the last step passes zero."""
    teacher = tiny_model(V=3, block_size=3)
    xt = torch.tensor([3, 1, 3])
    exact = reference.expected_sdtt_targets(teacher, xt, t, dt, k)
    n = 20000
    h = targets_of(teacher, xt.expand(n, 3), torch.full((n, 1), t), dt, k, seeded(1))
    p = teacher.head(h).softmax(-1).view(n, 2, 3)
    assert (p.mean(0) - exact[[0, 2]]).abs().max() < 5 * p.std(0).max() / math.sqrt(n)
    assert p.std(0).max() > 0.01  # the targets do vary from path to path


@torch.no_grad()
def test_the_first_step_reveals_dt_over_t():
    """The released code's time grid reveals 0.70 to 0.83 of this."""
    teacher = tiny_model()
    xt = torch.full((500, 16), teacher.mask_id)
    drawn = []
    real = M.draw
    for t, dt in ((1.0, 1 / 8), (0.5, 1 / 8), (0.125, 1 / 16)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                D, "draw", lambda logits, *a: drawn.append(len(logits)) or real(logits, *a)
            )
            targets_of(teacher, xt, torch.full((500, 1), t), dt, 2, seeded(t))
        assert sum(drawn) / xt.numel() == pytest.approx(dt / t, rel=0.1)
        drawn.clear()


@torch.no_grad()
def test_rows_that_did_not_change_are_not_forwarded_and_last_samples_not_drawn(monkeypatch):
    teacher = tiny_model()
    _, xt, t = masked_batch(teacher, [0.5] * 40)
    rows, drawn, real = [], [], teacher.hidden
    monkeypatch.setattr(teacher, "hidden", lambda z: rows.append(len(z)) or real(z))
    monkeypatch.setattr(
        D, "draw", lambda logits, *_: drawn.append(len(logits)) or logits.argmax(-1)
    )
    targets_of(teacher, xt, t, 1 / 64, 2, seeded(0))
    n_masked = (xt == teacher.mask_id).sum().item()
    assert (
        rows[0] == 40 and 0 < rows[1] < 20
    )  # 8 tokens, each revealed by the first step in 1 case of 32
    assert 0 < sum(drawn) < n_masked / 8
    rows.clear()
    targets_of(teacher, torch.zeros_like(xt), t, 1 / 64, 2, seeded(0))
    assert rows == []


@torch.no_grad()
@pytest.mark.parametrize("K, k", [(1, 2), (2, 2), (4, 2), (4, 4), (8, 2)])
def test_spread_targets_equal_the_literal_ones(K, k, monkeypatch):
    teacher = tiny_model()
    x0 = torch.randint(7, (12, 16), generator=seeded(0))
    monkeypatch.setattr(D, "draw", pick)
    xt, call = D.spread_states(x0, 1 / (k * K), k, teacher.mask_id, seeded(1))
    fast = teacher.head(D.sdtt_targets(teacher, xt, call, seeded(2))).log_softmax(-1)
    for b in range(len(x0)):
        hidden = [i for i in range(16) if xt[b, i] == teacher.mask_id]
        learnt = [i for i in range(16) if call[b, i] > 0]
        assert all(xt[b, i] == x0[b, i] for i in range(16) if i not in hidden)
        assert (
            len({i % K for i in learnt}) == 1 and len(learnt) == 16 // K
        )  # one class, and all of it
        assert (
            len({i % K for i in hidden}) == len(hidden) * K // 16
        )  # the others are whole classes, too
        parts = [[i for i in learnt if call[b, i] == c] for c in range(1, k + 1)]
        assert all(len({i % (k * K) for i in part}) == 1 for part in parts)
        slow = reference.spread_targets(teacher, xt[b : b + 1], parts, pick)
        torch.testing.assert_close(
            fast[(call > 0).nonzero()[:, 0] == b], slow[learnt], atol=1e-5, rtol=1e-5
        )
    assert (
        K == 1 or len({(xt[b] == teacher.mask_id).sum().item() for b in range(12)}) == K
    )  # every j occurs


@torch.no_grad()
def test_spread_targets_follow_their_law():
    """Their mean equals the one over every order of the parts and every token that the teacher draws."""
    teacher, n = tiny_model(V=3, block_size=4), 20_000
    xt, parts = torch.full((n, 4), teacher.mask_id), [[0, 2], [1, 3]]
    _, call = D.spread_states(xt, 1 / 2, 2, teacher.mask_id, seeded(0))
    p = teacher.head(D.sdtt_targets(teacher, xt, call, seeded(1))).softmax(-1).view(n, 4, 3)
    exact = reference.expected_spread_targets(teacher, xt[0], parts)
    assert (p.mean(0) - exact).abs().max() < 5 * p.std(0).max() / math.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_equal_their_definition_and_are_zero_only_at_equality(kind):
    log_p, log_q = (torch.randn(5, 7, generator=seeded(i)).mul(3).log_softmax(-1) for i in range(2))
    got = D.divergence_between(kind, log_p, log_q)
    want = [
        reference.divergence(kind, p, q)
        for p, q in zip(log_p.tolist(), log_q.tolist(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-5)
    assert (got > 0).all() and D.divergence_between(kind, log_p, log_p).abs().max() < 1e-6


def test_divergences_by_hand():
    log_p, log_q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert D.divergence_between("tvd", log_p, log_q).item() == pytest.approx(0.25)
    assert D.divergence_between("kl_bwd", log_p, log_q).item() == pytest.approx(
        0.5 * math.log(4 / 3)
    )
    assert D.divergence_between("kl_fwd", log_p, log_q).item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    )
    assert D.divergence_between("mse", log_p, log_q).item() == pytest.approx(
        math.log(2) ** 2 + math.log(1.5) ** 2
    )
    assert D.divergence_between("jsd", log_p, log_q).item() == pytest.approx(
        D.divergence_between("jsd", log_q, log_p).item()
    )
    far = torch.tensor([[0.0, -200.0]]), torch.tensor([[-200.0, 0.0]])
    assert D.divergence_between("jsd", *far).item() == pytest.approx(math.log(2))
    assert D.divergence_between("tvd", *far).item() == pytest.approx(
        1.0
    )  # on probabilities; on their logarithms it would be 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tie, bias", [(True, False), (False, True)])
def test_loss_and_gradient_equal_the_dense_ones(kind, tie, bias, monkeypatch):
    monkeypatch.setitem(head.ROWS_AT_ONCE, "cpu", (5, 1))  # several chunks, the last one shorter
    teacher, student = (tiny_model(seed=i, tie_weights=tie, head_bias=bias) for i in range(2))
    if bias:
        teacher.head_bias.data.normal_()
    x0 = torch.randint(7, (6, 16))
    seen = {}

    def spy(*args):
        seen["xt"], seen["h"] = args[1], D_targets(*args)
        return seen["h"]

    D_targets = D.sdtt_targets
    monkeypatch.setattr(D, "sdtt_targets", spy)
    before = copy.deepcopy(teacher.state_dict())
    fast = D.sdtt_loss(student, x0, seeded(2), teacher, 1 / 8, 2, kind)
    fast.backward()
    grads = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    log_p, log_q = (
        student(seen["xt"]).log_softmax(-1),
        teacher.head(seen["h"]).log_softmax(-1).detach(),
    )
    masked = seen["xt"] == student.mask_id
    slow = D.divergence_between(kind, log_p[masked], log_q).mean()
    slow.backward()
    torch.testing.assert_close(fast, slow)
    for p, grad in zip(student.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), teacher.state_dict().values(), strict=True)
    )


def test_loss_of_nothing_masked_is_zero_and_has_a_gradient(monkeypatch):
    monkeypatch.setattr(D, "add_noise", lambda x0, *_: x0)
    model = tiny_model()
    loss = D.sdtt_loss(model, torch.randint(7, (2, 16)), seeded(0), tiny_model(seed=1), 1 / 8)
    loss.backward()
    assert loss == 0 and all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


def test_a_finished_student_has_nothing_left_to_learn_from_one_step():
    """k = 1 step of the teacher from t is the student itself: no divergence."""
    model = tiny_model()
    assert D.sdtt_loss(model, torch.randint(7, (4, 16)), seeded(0), model, 1 / 8, k=1).item() < 1e-6
    assert D.sdtt_loss(model, torch.randint(7, (4, 16)), seeded(0), model, 1 / 8, k=2).item() > 1e-3


def test_the_loss_may_be_computed_in_other_precisions():
    teacher, student = tiny_model(seed=0), tiny_model(seed=1)
    x0 = torch.randint(7, (8, 16))
    a, b, c = (
        D.sdtt_loss(student, x0, seeded(0), teacher, 1 / 8, dtype=d).item()
        for d in (torch.float64, torch.float32, torch.bfloat16)
    )
    assert a == pytest.approx(b, rel=1e-5) and a != c and a == pytest.approx(c, rel=0.05)


# ----------------------------------------------------------------------------------------------------------------------
# rounds


def dimo_student(teacher, V=7):
    student = tiny_model(V=V, seed=1)
    student.fake, student.frequency = tiny_model(V=V, seed=2), torch.full((V,), 1 / V)
    student.fake.register_buffer("turn", torch.zeros((), dtype=torch.int64))
    return student.train()


def test_dimo_losses_and_gradients_equal_the_dense_ones_and_take_turns(monkeypatch):
    teacher, seen = tiny_model(seed=3).requires_grad_(False), {}
    student = dimo_student(teacher)

    def watched(name, f):
        """f, of which the first argument (of a noise: the text) and the result are remembered."""

        def call(x, *args):
            seen[name] = x, f(x, *args)
            return seen[name][1]

        return call

    monkeypatch.setattr(D, "half_random", watched("start", M.half_random))
    monkeypatch.setattr(D, "add_noise", watched("noise", M.add_noise))
    x0, whose = torch.zeros(5, 16, dtype=torch.long), []
    for turn in range(1, 10):
        ours = D.dimo_loss(student, x0, seeded(turn), teacher, fake_first=3)
        (y, yt), start = seen["noise"], seen["start"][1]
        both = reference.dimo_losses(student, student.fake, teacher, start, y, yt)
        students_turn = turn > 3 and turn % 3 == 0
        theirs, learner = both[not students_turn], (student.fake, student)[students_turn]
        torch.testing.assert_close(ours, theirs)
        parameters = dict(student.named_parameters())
        grads = torch.autograd.grad(ours, list(parameters.values()), allow_unused=True)
        own = {n for n in parameters if n.startswith("fake.") != students_turn}
        assert {n for n, g in zip(parameters, grads, strict=True) if g is not None} == own
        expected = torch.autograd.grad(theirs, [parameters[n] for n in parameters if n in own])
        for g, e in zip([g for g in grads if g is not None], expected, strict=True):
            torch.testing.assert_close(g, e, atol=1e-5, rtol=1e-4)
        whose.append(learner is student)
    assert whose == [False] * 5 + [True, False, False, True]
    student.eval()
    D.dimo_loss(student, x0, seeded(0), teacher)
    assert student.fake.turn == 9  # a validation is nobody's turn


def test_a_dimo_student_makes_two_coins_agree_in_one_step():
    """Of which a factorised student gets half right. The teacher knows the law: what one coin shows, the other does."""
    torch.manual_seed(1)
    teacher = M.GPT(M.GPTConfig(block_size=2, vocab_size=2, n_layer=1, n_head=1, n_embd=16))
    coins = torch.randint(2, (64, 1), generator=seeded(0)).expand(-1, 2).contiguous()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
    for i in range(150):
        M.diffusion_loss(teacher, coins, seeded(i), 0.5).backward()
        optimizer.step()
        optimizer.zero_grad()
    student, teacher = copy.deepcopy(teacher).train(), teacher.eval().requires_grad_(False)
    student.fake, student.frequency = copy.deepcopy(student), torch.tensor([0.5, 0.5])
    student.fake.register_buffer("turn", torch.zeros((), dtype=torch.int64))
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0
    )
    for i in range(450):
        D.dimo_loss(student, coins, seeded(i), teacher).backward()
        optimizer.step()
        optimizer.zero_grad()
    blank = torch.full((2000, 2), 2)
    factorised = unmask(teacher, blank, 1, "spread", generator=seeded(1))
    coupled = unmask(student.eval(), blank, 1, "dimo", generator=seeded(1))
    agree = [(x[:, 0] == x[:, 1]).float().mean().item() for x in (factorised, coupled)]
    assert abs(agree[0] - 0.5) < 0.05 and agree[1] > 0.8 and 0.3 < coupled.float().mean() < 0.7


def settings(teacher, out_dir, **kw):
    """distill.py's knobs for two rounds of 4 steps."""
    tiny = {k: v for k, v in TINY.items() if k in vars(D.cfg)}
    tiny |= dict(
        iters_per_round=4, orig_steps=8, rounds=2, eval_interval=2, learning_rate=1e-3, ema=0.9
    )
    tiny |= dict(
        gradient_accumulation_steps=1, teacher=str(teacher), out_dir=str(out_dir), eval_iters=1
    )
    return types.SimpleNamespace(**{**vars(D.cfg), **tiny, **kw})


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    """The path of a small diffusion model that has learnt the markov language."""
    folder = tmp_path_factory.mktemp("teacher")
    kw = dict(n_embd=64, batch_size=64, max_iters=800, eval_interval=800, learning_rate=3e-3)
    train.main(knobs(folder, dataset=markov, warmup_iters=20, ema=0.99, **kw))
    return str(folder / "ckpt.pt")


def flat(checkpoint):
    return torch.utils._pytree.tree_leaves(
        [checkpoint[k] for k in ("model", "ema", "optimizer", "step")]
    )


def equal(a, b):
    return all(
        torch.equal(x, y) if torch.is_tensor(x) else x == y
        for x, y in zip(flat(a), flat(b), strict=True)
    )


@pytest.mark.parametrize(
    "kw", [{}, {"reset_optimizer": False}, {"ema_teacher": False, "dropout": 0.1}, {"ema": 0.0}]
)
def test_a_run_stopped_in_the_middle_of_round_2_continues_to_the_same_bits(
    kw, teacher, tmp_path, monkeypatch
):
    D.main(settings(teacher, tmp_path / "whole", **kw))
    calls, real = [], data.batch

    def batch(*args):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(data, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        D.main(
            settings(teacher, tmp_path / "parts", **kw)
        )  # in step 4 of round 2; its step 2 is saved
    monkeypatch.setattr(data, "batch", real)
    assert load_checkpoint(tmp_path / "parts" / "round_2.pt")["step"] == 2
    D.main(settings(teacher, tmp_path / "parts", init_from="resume", **kw))
    for r in (1, 2):
        whole, parts = (load_checkpoint(tmp_path / d / f"round_{r}.pt") for d in ("whole", "parts"))
        assert equal(whole, parts) and whole["step"] == 4
    logs = [open(tmp_path / d / "log.jsonl").read().splitlines() for d in ("whole", "parts")]
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in log]
        for log in logs
    ]
    assert logs[0] == logs[1] and [r["step"] for r in logs[0] if "val_loss" in r] == [2, 4, 6, 8]


def test_a_dimo_run_resumes_to_the_same_bits_and_its_student_stands_alone(
    teacher, tmp_path, monkeypatch, refused
):
    kw = dict(
        method="dimo", iters_per_round=80, eval_interval=16
    )  # the student's first turn is the 63rd
    D.main(settings(teacher, tmp_path / "whole", **kw))
    monkeypatch.setattr(loop, "save_checkpoint", stop_after(5, loop.save_checkpoint))
    with pytest.raises(KeyboardInterrupt):
        D.main(settings(teacher, tmp_path / "parts", **kw))
    monkeypatch.undo()
    D.main(settings(teacher, tmp_path / "parts", **kw, init_from="resume"))
    whole, parts = (load_checkpoint(tmp_path / d / "ckpt.pt") for d in ("whole", "parts"))
    assert equal(whole, parts) and whole["step"] == 80 and whole["model"]["fake.turn"] == 80
    assert not torch.equal(
        whole["model"]["wte.weight"], load_checkpoint(teacher)["model"]["wte.weight"]
    )
    student, checkpoint = load_model(str(tmp_path / "whole" / "ckpt.pt"))
    assert checkpoint["made_for"] == {"steps": 1, "sampler": "dimo"} and not hasattr(
        student, "fake"
    )
    assert student.frequency.sum() == pytest.approx(1)
    D.main(
        settings(
            teacher, tmp_path / "whole", **kw, init_from="resume", export=str(tmp_path / "hub")
        )
    )
    assert load_model(str(tmp_path / "hub"))[0].frequency.equal(student.frequency)
    x = unmask(student, torch.full((2, 64), student.mask_id), 1, "dimo", generator=seeded(0))
    assert int(x.max()) < student.mask_id
    D.main(
        settings(tmp_path / "whole" / "ckpt.pt", tmp_path / "further", rounds=1)
    )  # a student of it, too
    many = settings(teacher, tmp_path / "many", **{**kw, "gradient_accumulation_steps": 2})
    assert "--gradient_accumulation_steps=1" in refused(D.main, many)
    monkeypatch.setenv("WORLD_SIZE", "2")
    one = types.SimpleNamespace(**{**vars(many), "gradient_accumulation_steps": 1})
    assert "one process" in refused(D.main, one)


def stop_after(n, f):
    """f, of which the n-th call is not made, as if killed."""
    calls = []

    def call(*args):
        calls.append(1)
        if len(calls) == n:
            raise KeyboardInterrupt
        return f(*args)

    return call


@pytest.mark.parametrize("reset", [True, False])
def test_rounds_can_be_added_and_finished_ones_are_not_trained_again(reset, teacher, tmp_path):
    D.main(settings(teacher, tmp_path / "a", rounds=1, reset_optimizer=reset))
    first = os.stat(tmp_path / "a" / "round_1.pt").st_mtime_ns
    D.main(settings(teacher, tmp_path / "a", rounds=2, init_from="resume", reset_optimizer=reset))
    assert os.stat(tmp_path / "a" / "round_1.pt").st_mtime_ns == first
    D.main(settings(teacher, tmp_path / "b", rounds=2, reset_optimizer=reset))
    assert equal(*(load_checkpoint(tmp_path / d / "round_2.pt") for d in "ab"))


@pytest.mark.parametrize("ema_teacher", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_round_starts_where_the_last_one_ended(
    ema_teacher, reset, teacher, tmp_path, monkeypatch
):
    """Its teacher and its student are the last student, averaged or not; the step size is k times as long."""
    seen = []

    def fit(student, loss, get_batch, validate, cfg, resume, *args):
        seen.append(
            (loss.keywords["dt"], copy.deepcopy((loss.keywords["teacher"].state_dict(), resume)))
        )
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                student.state_dict().values(),
                loss.keywords["teacher"].state_dict().values(),
                strict=True,
            )
        )
        return loop.fit(student, loss, get_batch, validate, cfg, resume, *args)

    monkeypatch.setattr(D, "fit", fit)
    D.main(settings(teacher, tmp_path, ema_teacher=ema_teacher, reset_optimizer=reset))
    (dt1, (first, none)), (dt2, (second, carried)) = seen
    saved = load_checkpoint(tmp_path / "round_1.pt")
    assert (dt1, dt2, none) == (1 / 8, 1 / 4, None)
    want = saved["ema" if ema_teacher else "model"]
    assert all(
        torch.equal(want[n], second[n]) and not torch.equal(first[n], second[n]) for n in want
    )
    assert (carried is None) == reset
    if carried:  # the moments as they were saved; the average begins at the student's own weights
        leaves = [torch.utils._pytree.tree_leaves(c["optimizer"]) for c in (carried, saved)]
        assert all(
            torch.equal(x, y) if torch.is_tensor(x) else x == y
            for x, y in zip(*leaves, strict=True)
        )
        assert carried["step"] == 0 and all(torch.equal(want[n], carried["ema"][n]) for n in want)


def test_effective_steps_are_printed(teacher, tmp_path, capsys):
    D.main(settings(teacher, tmp_path, orig_steps=64, teacher_steps=4, iters_per_round=2))
    said = capsys.readouterr().out
    assert "4 teacher steps of 1/64 become one; the student aims at 16 steps" in said
    assert "4 teacher steps of 1/16 become one; the student aims at 4 steps" in said


def test_plans():
    def plan(**kw):
        return D.plan_rounds(settings("", "", **kw))

    assert plan(orig_steps=1024, rounds=7) == [
        (2**r / 1024, 1024 // 2 ** (r + 1)) for r in range(7)
    ]
    assert plan(orig_steps=64, final_steps=4, teacher_steps=4) == [(1 / 64, 16), (1 / 16, 4)]
    assert plan(orig_steps=8, rounds=3)[-1] == (1 / 2, 1)


def test_mistakes_are_refused_before_any_work(teacher, pydoc, markov, tmp_path, refused):
    def refuse(**kw):
        said = refused(D.main, settings(kw.pop("teacher", teacher), tmp_path / "out", **kw))
        assert not os.path.exists(tmp_path / "out")
        return said

    assert "4 rounds: teacher_steps 2 divides orig_steps only 3 times, 8 -> 4 -> 2 -> 1." in refuse(
        rounds=4
    )
    assert "1 rounds: teacher_steps 2 divides orig_steps only 0 times, 9." in refuse(
        orig_steps=9, rounds=1
    )
    assert "2 rounds: teacher_steps 4 divides orig_steps only 1 times, 8 -> 2." in refuse(
        rounds=2, teacher_steps=4
    )
    assert "final_steps 3 is not on the way 8 -> 4 -> 2 -> 1" in refuse(final_steps=3)
    assert "final_steps 8" in refuse(final_steps=8)
    assert "'kl'" in refuse(divergence="kl") and "'kl_bwd'" in refuse(divergence="kl")
    assert "teacher_steps is 1" in refuse(teacher_steps=1)
    assert "'confidence'" in refuse(sampler="confidence")
    assert "there are 16 tokens to reveal" in refuse(sampler="spread", orig_steps=32)
    assert "iters_per_round is 0" in refuse(iters_per_round=0)
    assert "There is no checkpoint" in refuse(teacher=tmp_path / "none.pt")
    assert "another vocabulary" in refuse(dataset=pydoc)
    assert "nothing to resume" in refuse(init_from="resume")
    (tmp_path / "cut.pt").write_bytes(open(teacher, "rb").read()[:5000])
    assert "damaged" in refuse(teacher=tmp_path / "cut.pt")
    train.main(knobs(tmp_path / "ar", dataset=markov, objective="ar", max_iters=1))
    assert "autoregressive" in refuse(teacher=tmp_path / "ar" / "ckpt.pt")
    assert "'sft'" in refuse(method="sft")
    assert "masked diffusion" in refuse(method="kd")
    kd = dict(method="kd", teacher=tmp_path / "ar" / "ckpt.pt")
    assert "'web'" in refuse(**kd, kd_data="web")
    assert "kd_temp is 0.0" in refuse(**kd, kd_temp=0.0)
    assert "pseudo_tokens is 0" in refuse(**kd, pseudo_tokens=0)
    assert "another vocabulary" in refuse(**kd, dataset=pydoc)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_knobs(
    teacher, tmp_path, refused, monkeypatch
):
    D.main(settings(teacher, tmp_path, iters_per_round=1))
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    assert "already holds a run" in refused(D.main, settings(teacher, tmp_path))
    resume = dict(init_from="resume", iters_per_round=1)
    said = refused(D.main, settings(teacher, tmp_path, **resume, divergence="tvd"))
    assert "divergence kl_bwd, not 'tvd'" in said
    other = load_checkpoint(teacher)
    checkpoints.save_checkpoint(tmp_path.parent / "other.pt", other | {"step": 3})
    monkeypatch.setattr(
        D, "load_model", lambda path, **kw: load_model(tmp_path.parent / "other.pt", **kw)
    )
    assert "teacher_step 800, not 3" in refused(D.main, settings(teacher, tmp_path, **resume))
    assert before == {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    os.remove(tmp_path / "round_1.pt")  # the later rounds have another teacher now
    assert "already holds a run" in refused(D.main, settings(teacher, tmp_path))
    assert "already holds a run" in refused(D.main, settings(teacher, os.path.dirname(teacher)))


def test_two_processes_distill_as_one(teacher, tmp_path):
    """Also with gradient accumulation; float32, equal but for the order of a sum, which Adam magnifies where a
    gradient is nearly zero."""
    args = [
        f"--teacher={teacher}",
        "--rounds=2",
        "--iters_per_round=3",
        "--orig_steps=8",
        "--batch_size=4",
    ]
    args += [
        "--gradient_accumulation_steps=4",
        "--warmup_iters=1",
        "--learning_rate=1e-3",
        "--eval_iters=1",
    ]
    args += ["--eval_interval=3", "--dtype=float32", "--device=cpu", "--ema=0.9"]
    run("distill.py", *args, f"--out_dir={tmp_path}/one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    out, _ = run(
        *launcher, "distill.py", *args, f"--out_dir={tmp_path}/two", env={"OMP_NUM_THREADS": "1"}
    )
    assert out.count("round 2 of 2") == 1
    for r in (1, 2):
        one, two = (load_checkpoint(tmp_path / d / f"round_{r}.pt") for d in ("one", "two"))
        for name in one["ema"]:
            torch.testing.assert_close(
                one["ema"][name], two["ema"][name], atol=5e-4, rtol=0
            )  # half a step of Adam


def test_distillation_makes_better_text_at_equal_steps_and_entropy(teacher, markov, tmp_path):
    """On a language whose law is known, judged by the truth: better than the teacher at a temperature that costs it as
    much entropy."""
    kw = dict(
        orig_steps=16, rounds=3, iters_per_round=150, eval_interval=150, batch_size=64, ema=0.95
    )
    D.main(settings(teacher, tmp_path, warmup_iters=10, learning_rate=1e-3, sampler="spread", **kw))
    corpus = data.load(markov)

    def judged(path, temperature):
        model, _ = load_model(path)
        x = unmask(
            model,
            torch.full((512, 16), model.mask_id),
            2,
            "spread",
            temperature,
            generator=seeded(0),
        )
        return math.exp(metrics.markov_nats(x, corpus.meta)), metrics.entropies(x).mean().item()

    # measured, three seeds: the student 3.85 to 3.92 / 1.416 to 1.424; the teacher 4.54 / 1.436, at 0.9 4.15 / 1.411
    (cool, its_entropy), (student, entropy) = (
        judged(teacher, 0.9),
        judged(tmp_path / "round_3.pt", 1.0),
    )
    assert student < 0.98 * cool and entropy > its_entropy - 0.02


def test_a_round_prints_samples_in_the_steps_it_aims_at(teacher, tmp_path, capsys, monkeypatch):
    asked, real = [], loop.unmask
    monkeypatch.setattr(
        loop,
        "unmask",
        lambda model, xt, steps, **kw: (
            asked.append((steps, kw["sampler"])) or real(model, xt, steps, **kw)
        ),
    )
    D.main(settings(teacher, tmp_path, sample_interval=4))
    said = capsys.readouterr().out
    assert (
        "--- step 4\n" in said
        and "--- step 8\n" in said
        and asked == [(4, "ancestral"), (2, "ancestral")]
    )
    assert load_checkpoint(tmp_path / "round_2.pt")["made_for"] == {
        "steps": 2,
        "sampler": "ancestral",
    }


# ----------------------------------------------------------------------------------------------------------------------
# kd: drafters


@pytest.mark.parametrize("kind", KINDS)
def test_kd_loss_and_gradient_equal_the_dense_ones(kind, monkeypatch):
    monkeypatch.setitem(head.ROWS_AT_ONCE, "cpu", (5, 1))
    target, drafter = tiny_model(causal=True, seed=0), tiny_model(causal=True, arch="lstm", seed=1)
    batch = torch.randint(7, (3, 17))
    fast = D.kd_loss(drafter, batch, None, target, kind, temp=2.0, kd_weight=0.7, ce_weight=0.3)
    fast.backward()
    grads = [p.grad.clone() for p in drafter.parameters()]
    drafter.zero_grad()
    logits, z = drafter(batch[:, :-1]), target(batch[:, :-1]).detach()
    pair = (
        (logits / 2, z / 2)
        if kind == "mse"
        else ((logits / 2).log_softmax(-1), (z / 2).log_softmax(-1))
    )
    kd = D.divergence_between(kind, *pair).mean() / (7 if kind == "mse" else 1)
    slow = 0.7 * 4 * kd + 0.3 * torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch[:, 1:].flatten()
    )
    slow.backward()
    torch.testing.assert_close(fast, slow)
    for p, grad in zip(drafter.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in target.parameters())


def test_nla_is_the_log_of_the_acceptance():
    log_p, log_q = (torch.randn(9, 7, generator=seeded(i)).log_softmax(-1) for i in range(2))
    acceptance = 1 - D.divergence_between("tvd", log_p, log_q)
    torch.testing.assert_close(D.divergence_between("nla", log_p, log_q), -acceptance.log())


@pytest.fixture(scope="module")
def target(markov, tmp_path_factory):
    """The path of a small GPT that has learnt the markov language."""
    folder = tmp_path_factory.mktemp("target")
    kw = dict(
        n_embd=32,
        batch_size=32,
        max_iters=200,
        eval_interval=200,
        learning_rate=3e-3,
        block_size=16,
    )
    train.main(knobs(folder, dataset=markov, objective="ar", warmup_iters=10, **kw))
    return str(folder / "ckpt.pt")


def kd_settings(target, out_dir, **kw):
    kw = dict(method="kd", n_embd=16, n_head=2, divergence="kl_fwd", pseudo_tokens=3000) | kw
    return settings(target, out_dir, **kw)


@pytest.mark.parametrize("kd_data", ["dataset", "teacher", "student"])
@pytest.mark.parametrize("drafter", ["lstm", "cnn", "gpt"])
def test_drafters_learn_their_target_from_every_kind_of_text(drafter, kd_data, target, tmp_path):
    kw = dict(
        kd_data=kd_data,
        drafter=drafter,
        iters_per_round=60,
        learning_rate=1e-2,
        eval_interval=30,
        ema=0.0,
    )
    D.main(kd_settings(target, tmp_path, **kw, batch_size=16))
    losses = [r["loss"] for r in map(json.loads, open(tmp_path / "log.jsonl")) if "loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    model, saved = load_model(tmp_path / "ckpt.pt")
    assert model.config.arch == drafter and saved["meta"]["vocab_size"] == 8


@pytest.mark.parametrize("kd_data", ["teacher", "student"])
def test_distilling_a_drafter_resumes_to_the_same_bits(kd_data, target, tmp_path, monkeypatch):
    kw = dict(kd_data=kd_data, drafter="lstm")
    D.main(kd_settings(target, tmp_path / "whole", **kw))
    calls, real = [], D.kd_loss

    def kd_loss(*args, **kw):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*args, **kw)

    monkeypatch.setattr(D, "kd_loss", kd_loss)
    with pytest.raises(KeyboardInterrupt):  # two steps, their validation, one step
        D.main(kd_settings(target, tmp_path / "parts", **kw))
    monkeypatch.setattr(D, "kd_loss", real)
    D.main(kd_settings(target, tmp_path / "parts", **kw, init_from="resume"))
    assert equal(*(load_checkpoint(tmp_path / d / "ckpt.pt") for d in ("whole", "parts")))


def test_pseudo_data_goes_on_where_it_was_cut_off(target, markov, tmp_path):
    (model, _), corpus = load_model(target), data.load(markov)
    cfg = kd_settings(target, tmp_path, pseudo_tokens=16 * 64 * 3)
    whole = D.pseudo_data(model, corpus, cfg, "cpu").copy()
    assert whole.shape == (192, 16) and whole.max() < 8
    path = tmp_path / "pseudo.bin"
    path.write_bytes(
        path.read_bytes()[: 16 * 64 * 2 + 77]
    )  # in the middle of the second chunk of 16-bit tokens
    assert (D.pseudo_data(model, corpus, cfg, "cpu") == whole).all()
    cfg.pseudo_tokens = 16 * 64
    assert (D.pseudo_data(model, corpus, cfg, "cpu") == whole[:64]).all()


def test_an_ngram_counts_the_text_of_the_target_and_a_baseline_can_be_distilled_further(
    target, markov, tmp_path
):
    D.main(kd_settings(target, tmp_path / "ngram", drafter="ngram", ngram_n=2, pseudo_tokens=30000))
    model, meta = drafters.NGram.load(tmp_path / "ngram" / "ngram.txt")
    assert meta["vocab_size"] == 8 and model.counts[0].sum() >= 30000
    own = load_model(target)[0]
    x = data.blocks(data.load(markov).val, 16, 100)
    p, q = own(x).softmax(-1)[:, 2:], model(x)[:, 2:].exp()
    assert (
        torch.minimum(p, q).sum(-1).mean() > 0.9
    )  # a markov language: two tokens tell the next one
    kw = dict(dataset=markov, objective="ar", arch="lstm", n_embd=16, n_layer=1)
    train.main(knobs(tmp_path / "base", **kw))
    D.main(kd_settings(target, tmp_path / "kd", drafter=str(tmp_path / "base" / "ckpt.pt")))
    assert load_model(tmp_path / "kd" / "ckpt.pt")[0].config.arch == "lstm"


# ----------------------------------------------------------------------------------------------------------------------
# soft labels


def labels(n=9, V=7, K=3, seed=0, scale=1.0):
    """-> logits (n, V) float64, and the top K of another distribution."""
    logits = torch.randn(n, V, generator=seeded(seed), dtype=torch.float64) * scale
    logp, ids = (
        torch.randn(n, V, generator=seeded(seed, 1), dtype=torch.float64).log_softmax(-1).topk(K)
    )
    return logits, ids, logp


@pytest.mark.parametrize("missing", ["none", "renorm", "tail"])
def test_soft_cross_entropy_equals_its_definition(missing):
    logits, ids, logp = labels()
    got = D.soft_cross_entropy(logits, ids, logp, missing)
    for i in range(len(logits)):
        p, w = logits[i].softmax(-1), logp[i].exp()
        want = -sum(w[k] * p[ids[i, k]].log() for k in range(3)) / (
            w.sum() if missing == "renorm" else 1
        )
        if missing == "tail":
            want = want - (1 - w.sum()) * (1 - p[ids[i]].sum()).log()
        assert got[i].item() == pytest.approx(want.item())


@pytest.mark.parametrize("missing", ["none", "renorm", "tail"])
def test_its_gradient_is_right_also_with_repeated_ids(missing):
    logits, ids, logp = labels()
    ids[0] = ids[0, 0]  # three times the same token
    logp[1, 1:] = -math.inf  # one candidate only
    ids[1] = ids[1, 0]
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: D.soft_cross_entropy(z, ids, logp, missing), logits)
    if missing == "none":  # W softmax(z) - scatter(w): the W matters
        (grad,) = torch.autograd.grad(D.soft_cross_entropy(logits, ids, logp).sum(), logits)
        w = logp.exp()
        want = w.sum(-1, keepdim=True) * logits.softmax(-1) - torch.zeros_like(logits).scatter_add(
            1, ids, w
        )
        torch.testing.assert_close(grad, want)


def test_all_of_the_vocabulary_is_the_dense_cross_entropy_and_one_hot_is_the_hard_one():
    logits, ids, logp = labels(K=7)
    dense = torch.nn.functional.cross_entropy(
        logits, torch.zeros_like(logits).scatter(1, ids, logp.exp()), reduction="none"
    )
    for missing in ("none", "renorm", "tail"):
        torch.testing.assert_close(D.soft_cross_entropy(logits, ids, logp, missing), dense)
        one_hot = D.soft_cross_entropy(logits, ids[:, :1], torch.zeros(9, 1), missing)
        torch.testing.assert_close(
            one_hot, torch.nn.functional.cross_entropy(logits, ids[:, 0], reduction="none")
        )


@pytest.mark.parametrize("missing", ["none", "renorm", "tail"])
def test_huge_logits_give_finite_losses_and_gradients(missing):
    logits, ids, logp = labels(scale=1e4)
    logits.requires_grad_()
    loss = D.soft_cross_entropy(logits, ids, logp, missing).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_soft_loss_of_all_log_probs_is_the_distance_to_the_teacher(target, tmp_path):
    """K = V: kl_fwd plus the teacher's entropy, at every place but the first; nothing labelled: zero."""
    teacher, saved = load_model(target)
    x = torch.randint(8, (6, 16), generator=seeded(0))
    soft_from_teacher(teacher, x, str(tmp_path / "soft"), saved["meta"], 8, batch_size=4)
    soft = load_soft(str(tmp_path / "soft"))
    student = tiny_model(V=8, causal=True, seed=3)
    rows = torch.tensor([4, 0, 1])
    got = D.soft_loss(student, torch.cat([x[rows], rows[:, None]], 1), None, soft)
    log_p, log_q = (m(x[rows, :-1]).log_softmax(-1).flatten(0, 1) for m in (student, teacher))
    want = D.divergence_between("kl_fwd", log_p, log_q) - (log_q.exp() * log_q).sum(-1)
    torch.testing.assert_close(got, want.mean())
    soft.logp = np.full_like(soft.logp, -np.inf)
    nothing = D.soft_loss(student, torch.cat([x[rows], rows[:, None]], 1), None, soft)
    nothing.backward()
    assert nothing == 0


def test_soft_labelling_that_is_killed_goes_on_to_the_same_labels(target, tmp_path, monkeypatch):
    teacher, saved = load_model(target)
    x = torch.randint(8, (11, 16), generator=seeded(0))
    soft_from_teacher(teacher, x, str(tmp_path / "a"), saved["meta"], 3, batch_size=2)
    real, batches = SoftWriter.add, []
    monkeypatch.setattr(
        SoftWriter, "add", lambda *a: batches.append(1) or (real(*a) if len(batches) < 4 else 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        soft_from_teacher(teacher, x, str(tmp_path / "b"), saved["meta"], 3, batch_size=2)
    with open(tmp_path / "b" / "tokens.bin.tmp", "ab") as f:
        f.write(b"half a row")
    monkeypatch.setattr(SoftWriter, "add", lambda *a: batches.append(1) or real(*a))
    del batches[:]
    soft_from_teacher(teacher, x, str(tmp_path / "b"), saved["meta"], 3, batch_size=2)
    assert len(batches) == 3  # of 6: the first three were there
    a, b = (load_soft(str(tmp_path / name)) for name in "ab")
    assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("tokens", "ids", "logp"))


@pytest.mark.parametrize("method", ["sdtt", "dimo", "kd", "soft"])
def test_three_functions_stand_between_the_command_and_the_loss(method, target, teacher, tmp_path):
    ours = settings(teacher, tmp_path, method=method)
    cfg = (
        ours if method in ("sdtt", "dimo") else kd_settings(target, tmp_path, method=method, topk=3)
    )
    way = ["distill.py:main", f"distill.py:{method}", "loop.py:fit"]
    assert way_to(D, f"{method}_loss", lambda: D.main(cfg)) == way


@pytest.mark.parametrize("missing", ["none", "renorm", "tail"])
def test_a_student_learns_from_soft_labels_and_resumes(missing, target, tmp_path):
    kw = dict(
        method="soft",
        drafter="gpt",
        topk=3,
        missing=missing,
        learning_rate=1e-2,
        ema=0.0,
        batch_size=16,
    )
    D.main(kd_settings(target, tmp_path, **kw, iters_per_round=40, eval_interval=20))
    losses = [
        r["val_loss"] for r in map(json.loads, open(tmp_path / "log.jsonl")) if "val_loss" in r
    ]
    assert losses[1] < losses[0] < math.log(8)
    assert load_soft(str(tmp_path / "soft")).ids.shape[1:] == (16, 3)
    saved = load_checkpoint(tmp_path / "ckpt.pt")
    kw |= dict(iters_per_round=40)
    with pytest.MonkeyPatch.context() as patch:
        calls, real = [], D.soft_loss
        patch.setattr(
            D,
            "soft_loss",
            lambda *a, **kw: calls.append(1) or (real(*a, **kw) if len(calls) < 30 else 1 / 0),
        )
        with pytest.raises(ZeroDivisionError):
            D.main(kd_settings(target, tmp_path / "again", **kw, eval_interval=20))
    D.main(kd_settings(target, tmp_path / "again", **kw, eval_interval=20, init_from="resume"))
    assert equal(saved, load_checkpoint(tmp_path / "again" / "ckpt.pt"))


def test_texts_of_an_api_teacher(markov, tmp_path, refused):
    """Both shapes of JSON; unknown candidates go missing, unknown emitted tokens are refused with their line."""
    meta = data.load(markov).meta
    a, b, c = meta["itos"][:3]
    chat = {"content": [{"token": t, "top_logprobs": [{"token": u, "logprob": -i - 0.5} for i, u in enumerate(top)]}
                        for t, top in ((a, [a, b]), (b, [c]), (c, [a, "?", c]), (a, [b, c, a]), (b, []))]}  # fmt: skip
    old = {"logprobs": {"tokens": [a, c], "top_logprobs": [None, {c: -0.1, b: -2.5}]}}
    path = tmp_path / "api.jsonl"
    path.write_text(json.dumps(chat) + "\n" + json.dumps(old) + "\n")
    soft_from_jsonl(str(path), str(tmp_path / "soft"), meta, 4, 2)
    soft = load_soft(str(tmp_path / "soft"))
    assert (
        soft.tokens.tolist() == [[0, 1, 2, 0], [1, 0, 0, 0], [0, 2, 0, 0]]
        and soft.meta["unknown_candidates"] == 1
    )
    assert soft.ids[0, 1:].tolist() == [[2, 2], [0, 2], [1, 2]]
    inf = -math.inf
    assert soft.logp[0].tolist() == [[inf, inf], [-0.5, inf], [-0.5, -2.5], [-0.5, -1.5]]
    assert (soft.logp[1] == inf).all()
    np.testing.assert_allclose(soft.logp[2, 1], [-0.1, -2.5], rtol=1e-6)
    kw = dict(
        method="soft",
        soft_data=str(path),
        dataset=markov,
        drafter="gpt",
        topk=2,
        soft_length=16,
        iters_per_round=1,
    )
    D.main(kd_settings("no teacher", tmp_path / "run", **kw))
    for text, words in (
        ("{}", "'tokens'"),
        ("[", "line 1"),
        ('{"tokens": ["?"], "top_logprobs": [{}]}', "'?'"),
    ):
        path.write_text(text)
        assert words in refused(soft_from_jsonl, str(path), str(tmp_path / "x"), meta, 4, 2)
    kw["soft_data"] = str(tmp_path / "new.jsonl")
    for text in ("", json.dumps({"tokens": [a, b], "top_logprobs": [None, None]})):
        (tmp_path / "new.jsonl").write_text(text)
        assert "holds no label" in refused(D.main, kd_settings("", tmp_path / "new", **kw))
    (tmp_path / "new.jsonl").write_text(json.dumps(old))  # what failed does not stick
    D.main(kd_settings("", tmp_path / "new", **kw))
    os.remove(tmp_path / "new" / "ckpt.pt")
    (tmp_path / "new.jsonl").write_text(json.dumps(chat))  # what was edited does not pass
    assert "soft_data holds" in refused(D.main, kd_settings("", tmp_path / "new", **kw))
    assert "holds no soft labels" in refused(load_soft, str(tmp_path / "x"))
    assert "--soft_data needs --dataset" in refused(
        D.main, kd_settings("", tmp_path / "y", **(kw | {"dataset": ""}))
    )


def test_soft_label_mistakes(target, teacher, markov, tmp_path, refused):
    for method in ("kd", "soft"):  # it would see the tokens that it learns to predict
        said = refused(
            D.main, kd_settings(target, tmp_path / method, method=method, drafter=teacher, topk=3)
        )
        assert "no autoregressive model" in said
    assert "counts texts" in refused(
        D.main, kd_settings(target, tmp_path / "d", method="soft", drafter="ngram")
    )
    assert "no such file" in refused(
        D.main, kd_settings(target, tmp_path / "d", method="soft", soft_data="x.jsonl")
    )
    assert "choose one of lstm, cnn" in refused(
        D.main, kd_settings(target, tmp_path / "d", drafter="lstn")
    )
    assert not (tmp_path / "d").exists()
    assert "nothing to learn" in refused(D.main, kd_settings(target, tmp_path / "d", kd_weight=0.0))
    kw = dict(drafter="ngram", ngram_n=2)
    D.main(kd_settings(target, tmp_path / "e", **kw))
    os.remove(tmp_path / "e" / "ngram.txt")
    assert "seed 1337, not 2" in refused(D.main, kd_settings(target, tmp_path / "e", seed=2, **kw))
    assert "topk is 9" in refused(
        D.main, kd_settings(target, tmp_path / "a", method="soft", topk=9)
    )
    one = kd_settings(target, tmp_path / "c", method="soft", vocab_parallel=True)
    assert "torchrun --nproc_per_node=2" in refused(D.main, one)
    assert "'drop'" in refused(
        D.main, kd_settings(target, tmp_path / "b", method="soft", missing="drop")
    )


def test_kd_by_mse_is_on_logits():
    target, drafter = tiny_model(causal=True, seed=0), tiny_model(causal=True, seed=1)
    batch = torch.randint(7, (2, 17))
    z_p, z_q = drafter(batch[:, :-1]), target(batch[:, :-1])
    want = (z_p - z_q).square().mean()
    torch.testing.assert_close(D.kd_loss(drafter, batch, None, target, "mse"), want)


@pytest.fixture(scope="module")
def odd_target(tmp_path_factory):
    """A GPT whose 9 tokens do not divide into two halves."""
    folder = tmp_path_factory.mktemp("odd")
    run(
        "data/markov/prepare.py",
        f"--out_dir={folder}/data",
        "--vocab_size=9",
        "--successors=2",
        "--n_tokens=20000",
    )
    train.main(
        knobs(folder / "ar", dataset=f"{folder}/data", objective="ar", max_iters=2, eval_interval=2)
    )
    return str(folder / "ar" / "ckpt.pt")


@pytest.mark.parametrize("missing", ["none", "renorm", "tail"])
def test_two_processes_with_half_of_the_vocabulary_each_equal_one(missing, odd_target, tmp_path):
    """Loss and gradient: after three steps of training the weights are the same but for the order of a sum."""
    args = [
        "distill.py",
        "--method=soft",
        f"--teacher={odd_target}",
        "--drafter=gpt",
        "--n_embd=16",
        "--n_head=2",
        "--topk=3",
        "--batch_size=24",  # three chunks of rows
    ]
    args += [
        "--iters_per_round=3",
        "--eval_interval=3",
        "--eval_iters=1",
        "--log_interval=1",
        "--dtype=float32",
    ]
    args += [
        "--device=cpu",
        "--learning_rate=1e-2",
        "--warmup_iters=1",
        "--ce_weight=0.5",
        f"--missing={missing}",
    ]
    run(*args, "--gradient_accumulation_steps=1", f"--out_dir={tmp_path}/one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    split = [
        "--gradient_accumulation_steps=2",
        "--vocab_parallel=True",
        f"--out_dir={tmp_path}/two",
    ]
    run(*launcher, *args, *split, env={"OMP_NUM_THREADS": "1"})
    one, two = (load_checkpoint(tmp_path / d / "ckpt.pt") for d in ("one", "two"))
    for n in one["model"]:
        torch.testing.assert_close(one["model"][n], two["model"][n], atol=2e-5, rtol=1e-4)
    logs = [
        [r["loss"] for r in map(json.loads, open(tmp_path / d / "log.jsonl")) if "loss" in r]
        for d in ("one", "two")
    ]
    np.testing.assert_allclose(*logs, atol=2e-4)
