"""
python -m pytest tests/test_model.py          the transformer, its losses and its cache, against tests/reference.py
"""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import tiny_model

import model as M
from model import GPT, GPTConfig, attend, draw, probabilities
from plumbing import head
from plumbing.checkpoints import load_weights
from plumbing.randomness import seeded
from speculative import KVCache, generate

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_sdpa_and_by_hand_is_the_same_function(causal):
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind(0)
    slow = reference.attention(q, k, v, causal)
    for kind in ("sdpa", "manual"):
        torch.testing.assert_close(attend(q, k, v, causal, kind), slow)
    torch.testing.assert_close(
        attend(q[:, :, 3:], k, v, causal, "sdpa"), slow[:, :, 3:]
    )  # queries after a cache
    torch.testing.assert_close(attend(q[:, :, 3:], k, v, causal, "manual"), slow[:, :, 3:])


def test_flash_attention_without_the_package_says_so(refused, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install flash-attn" in refused(GPTConfig, attention="flash_attn")


def test_rope_turns_pairs_of_channels_as_complex_numbers():
    x = torch.randn(1, 6, 2, 1, 8)
    fast = M.rotate(x, *M.rope_tables(6, 8))
    for i in range(2):
        torch.testing.assert_close(
            fast[0, :, i, 0], reference.rope(x[0, :, i, 0]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("pos", ["rope", "learned"])
def test_a_causal_model_does_not_see_the_future_and_a_diffusion_model_does(pos):
    for causal in (True, False):
        model = tiny_model(causal=causal, pos=pos)
        x = torch.randint(7, (1, 10))
        y = x.clone()
        y[0, 6] = (y[0, 6] + 1) % 7
        same = torch.isclose(model(x), model(y), atol=1e-6).all(-1)[0]
        assert same[:6].all() == causal
        assert not same[6:].all()


def test_the_mask_has_an_embedding_but_no_logit():
    model = tiny_model(V=7)
    assert model.mask_id == 7 and model.wte.num_embeddings == 8
    assert model(torch.full((1, 4), 7)).shape == (1, 4, 7)
    assert tiny_model(V=7, causal=True).wte.num_embeddings == 7


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_nll_and_its_gradient_equal_cross_entropy(tie, bias, monkeypatch):
    switches = dict(attn_bias=bias, mlp_bias=bias, ln_bias=bias, head_bias=bias)
    model = tiny_model(V=50, tie_weights=tie, **switches)
    if bias:
        torch.nn.init.normal_(model.head_bias)
    x, y, w = torch.randint(50, (3, 16)), torch.randint(50, (48,)), torch.rand(48)
    monkeypatch.setitem(
        head.ROWS_AT_ONCE, "cpu", (7, 1)
    )  # chunks of 7 rows; the last one is smaller
    grads = []
    for loss in (
        model.nll(model.hidden(x).flatten(0, 1), y, w),
        (F.cross_entropy(model(x).flatten(0, 1), y, reduction="none") * w).sum(),
    ):
        model.zero_grad()
        (loss * 3).backward()
        grads.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, atol=2e-5, rtol=2e-4)


def test_nll_of_no_tokens_is_zero_and_has_a_gradient():
    model = tiny_model()
    h = model.hidden(torch.randint(7, (1, 4)))
    loss = model.nll(h[:, :0].flatten(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss == 0 and model.wte.weight.grad.abs().sum() == 0


def test_ar_loss_equals_the_dense_one():
    model = tiny_model(causal=True)
    batch = torch.randint(7, (3, 12))
    torch.testing.assert_close(M.ar_loss(model, batch), reference.ar_loss(model, batch))


@pytest.mark.parametrize("pos", ["rope", "learned"])
def test_cached_generation_equals_uncached_also_past_the_context(pos):
    model = tiny_model(causal=True, pos=pos)
    idx = torch.randint(7, (2, 3))
    for n_new in (1, 13, 40):
        a, b = (
            f(model, idx, n_new, temperature=0.8, top_k=5, top_p=0.9, generator=seeded(1))
            for f in (generate, reference.generate)
        )
        assert torch.equal(a, b) and a.shape == (2, 3 + n_new) and torch.equal(a[:, :3], idx)
    greedy = generate(model, idx[:1], 13, temperature=0)
    assert torch.equal(greedy, reference.generate_greedy(model, idx[:1], 13))


def test_text_ends_at_eos_and_is_otherwise_the_same():
    model = tiny_model(causal=True)
    idx = torch.randint(7, (5, 3), generator=seeded(0))
    plain = generate(model, idx, 40, generator=seeded(1))
    ended = generate(model, idx, 40, generator=seeded(1), eos=2)
    for a, b, start in zip(plain.tolist(), ended.tolist(), [3] * 5, strict=True):
        n = a.index(2, start) + 1 if 2 in a[start:] else len(a)
        assert b == a[:n] + [2] * (len(a) - n)
    assert (ended[:, -1] == 2).any() and not (plain[:, -1] == 2).all()


def test_a_cache_set_back_forgets():
    model = tiny_model(causal=True)
    x = torch.randint(7, (1, 9))
    cache = KVCache(model.config, 1, "cpu")
    with torch.no_grad():
        model.hidden(x[:, :6], cache)
        cache.lengths = [4]
        h = model.hidden(x[:, 4:], cache)  # several tokens at once, after four cached ones
        torch.testing.assert_close(h, model.hidden(x)[:, 4:], atol=1e-5, rtol=1e-4)


ARCHS = [("gpt", "rope"), ("gpt", "learned"), ("lstm", "none"), ("cnn", "none")]


@torch.no_grad()
@pytest.mark.parametrize("arch, pos", ARCHS)
def test_every_architecture_continues_from_its_cache_also_where_rows_differ(arch, pos, monkeypatch):
    """In pieces of any size, after a rollback, with every row at a place of its own, whatever memory held before."""
    model = tiny_model(causal=True, arch=arch, pos="rope" if pos == "none" else pos, n_layer=3)
    x = torch.randint(7, (3, 16), generator=seeded(0))
    whole = model(x)
    monkeypatch.setattr(torch, "empty", lambda size, **kw: torch.full(size, float("nan"), **kw))
    cache = KVCache(model.config, 3, "cpu")
    parts = [model.head(model.hidden(part, cache)) for part in x.split([5, 1, 3, 7], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    starts = torch.tensor([4, 9, 0])
    rows = torch.arange(3)[:, None]
    for _ in range(2):  # twice: computing a token again changes nothing
        cache.lengths = starts.tolist()
        where = starts[:, None] + torch.arange(5)
        got = model.head(model.hidden(x.gather(1, where), cache))
        torch.testing.assert_close(got, whole[rows, where], atol=1e-5, rtol=1e-5)
    where = starts[:, None] + 5 + torch.arange(2)
    got = model.head(model.hidden(x.gather(1, where), cache))  # and goes on, each row from its own
    torch.testing.assert_close(got, whole[rows, where], atol=1e-5, rtol=1e-5)
    assert cache.lengths == [11, 16, 7]
    cache = KVCache(
        model.config, 3, "cpu"
    )  # nothing before: rows read places that no row has written
    model.hidden(x[:, :1], cache)
    cache.lengths = [1, 5, 1]
    assert torch.isfinite(model.hidden(x[:, 1:3], cache)).all()


@pytest.mark.parametrize("arch", ["lstm", "cnn"])
def test_small_architectures_see_the_past_only_and_train_in_every_weight(arch, refused):
    model = tiny_model(causal=True, arch=arch, n_layer=2)
    x = torch.randint(7, (2, 16))
    y = x.clone()
    y[:, 9] = (y[:, 9] + 1) % 7
    a, b = model(x), model(y)
    assert torch.equal(a[:, :9], b[:, :9]) and not torch.equal(a[:, 9:], b[:, 9:])
    M.ar_loss(model, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert "sees the past only" in refused(GPTConfig, causal=False, arch=arch)
    assert "'rnn'" in refused(GPTConfig, causal=True, arch="rnn")


def test_top_k_and_top_p_keep_the_best_tokens():
    logits = torch.randn(20, 30) * 3
    p = logits.softmax(-1)
    for top_p in (0.1, 0.5, 0.9):
        kept = probabilities(logits, top_p=top_p)
        for row, full in zip(kept, p, strict=True):
            assert row.nonzero().flatten().tolist() == reference.top_p_set(full.tolist(), top_p)
        torch.testing.assert_close(kept.sum(-1), torch.ones(20))
    assert ((probabilities(logits, top_k=4) > 0).sum(-1) == 4).all()
    assert torch.equal(probabilities(logits, temperature=0).argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(probabilities(logits, temperature=0.5), (logits / 0.5).softmax(-1))


def test_draw_follows_the_distribution_to_its_tail():
    logits = torch.tensor([0.0, -math.inf, -1.0, -12.0])  # the last has probability 4.5e-6
    n = 4_000_000
    counts = torch.bincount(draw(logits.expand(n, 4), seeded(0)), minlength=4)
    expected = logits.double().softmax(0) * n
    assert counts[1] == 0
    chi2 = ((counts - expected)[[0, 2, 3]] ** 2 / expected[[0, 2, 3]]).sum()
    assert chi2 < 14  # 2 degrees of freedom: one seed in a thousand is worse
    assert draw(torch.zeros(2, 3, 5), seeded(0)).shape == (2, 3)


def test_generators_of_different_keys_differ_and_repeat():
    a, b, c = (torch.rand(4, generator=seeded(*key)) for key in ((1, 2), (1, 2), (12,)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_weights_convert_between_gpt_and_diffusion():
    gpt = tiny_model(causal=True)
    diffusion = tiny_model(seed=1)
    load_weights(diffusion, gpt.state_dict())
    assert torch.equal(diffusion.wte.weight[:7], gpt.wte.weight)
    torch.testing.assert_close(diffusion.wte.weight[7], gpt.wte.weight.mean(0))
    back = tiny_model(causal=True, seed=2)
    load_weights(back, diffusion.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), gpt.parameters(), strict=True))


def test_weights_that_do_not_fit_are_refused_by_name(refused):
    model = tiny_model()
    said = refused(load_weights, model, tiny_model(n_embd=32).state_dict())
    assert "(8, 32)" in said and "(8, 16)" in said
    said = refused(load_weights, model, {"odd": torch.zeros(1), **model.state_dict()})
    assert "odd" in said
    assert "lm_head" in refused(load_weights, model, tiny_model(tie_weights=False).state_dict())


def test_impossible_shapes_are_refused(refused):
    assert "does not divide" in refused(GPTConfig, n_embd=10, n_head=3)
    assert "odd" in refused(GPTConfig, n_embd=9, n_head=3)
    assert GPTConfig(n_embd=9, n_head=3, pos="learned")
    assert "'rop'" in refused(GPTConfig, pos="rop")
    assert "context of 16" in refused(tiny_model(), torch.zeros(1, 17, dtype=torch.long))


def test_bf16_sampling_model_runs_with_a_cache_of_its_own_type():
    model = tiny_model(causal=True).bfloat16()
    assert generate(model, torch.zeros(1, 1, dtype=torch.long), 20, generator=seeded(0)).shape == (
        1,
        21,
    )


def test_gpt_is_initialised_so_that_the_first_loss_is_log_V():
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(block_size=32, vocab_size=100, n_layer=4, n_head=2, n_embd=64, causal=True)
    )
    assert abs(M.ar_loss(model, torch.randint(100, (4, 33))).item() - math.log(100)) < 0.1


@torch.no_grad()
def test_evaluation_computes_logits_in_float32_even_under_autocast():
    """GPT-2's logits are about -100, where neighbours in bfloat16 are 0.5 apart."""
    model = tiny_model(V=50, causal=True, n_embd=64)
    model.wte.weight.copy_(
        -100 / 64 + 0.02 * torch.randn(model.wte.weight.shape, generator=seeded(0))
    )
    h, y = torch.ones(30, 64), torch.arange(30)
    exact = F.cross_entropy(h.double() @ model.wte.weight[:50].double().T, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.nll(h, y, torch.full((30,), 1 / 30))
        head = model.frozen_head()
    teacher = F.cross_entropy(head(h), y)
    assert abs(got - exact) < 1e-4 and abs(teacher - exact) < 1e-4
