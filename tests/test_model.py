"""
python -m pytest tests/test_model.py          the transformer, its cache, conversion, drawing tokens
"""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import tiny_model

import model as M
from drafters import new_model
from model import GPT, GPTConfig, attend, convert, draw, probabilities
from plumbing.attention import is_slow_in_sdpa, sdpa
from plumbing.checkpoints import load_weights
from plumbing.randomness import seeded
from speculative import KVCache, generate

pytestmark = pytest.mark.numerics

# --------------------------------------------------------------------------------------------------
# the transformer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [attend, sdpa])
def test_attention_kernels_equal_the_literal_one_also_after_a_cache(kernel, causal):
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=seeded(0)).unbind(0)
    literal = reference.attention(q, k, v, causal)
    for first in (0, 3, 4):  # queries are the last of the keys
        got = kernel(q[:, :, first:], k, v, causal)
        torch.testing.assert_close(got, literal[:, :, first:])


@pytest.mark.parametrize("causal", [False, True])
def test_a_model_computes_the_same_with_either_attention(causal):
    one = tiny_model(causal=causal)
    other = tiny_model(causal=causal, attention="manual")
    x = torch.randint(7, (2, 16), generator=seeded(0))
    for a, b in zip(one(x), other(x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bfloat16_on_a_cpu_trains_with_attention_written_out():
    q = torch.zeros(1, 1, 16, 4, dtype=torch.bfloat16, requires_grad=True)
    assert is_slow_in_sdpa(q)
    assert not is_slow_in_sdpa(q.detach())  # sampling
    assert not is_slow_in_sdpa(q.float())
    assert not is_slow_in_sdpa(q.repeat(1, 1, 64, 1))  # 1024 tokens: the scores are too large


def test_flash_attention_without_the_package_says_so(error_of, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install flash-attn" in error_of(GPTConfig, attention="flash_attn")


def test_rope_turns_pairs_of_channels_as_complex_numbers():
    x = torch.randn(1, 2, 6, 8, generator=seeded(0))
    turned = M.rotate(x, *M.rope_tables(6, 8))
    for h in range(2):
        literal = reference.rope(x[0, h])
        torch.testing.assert_close(turned[0, h], literal, atol=1e-5, rtol=1e-5)


def test_rope_is_cast_once_for_all_layers_under_autocast(monkeypatch):
    model = tiny_model(n_layer=3)
    seen = []
    rotate = M.rotate

    def spy(x, cos, sin):
        seen.append((id(cos), x.dtype, cos.dtype))
        return rotate(x, cos, sin)

    monkeypatch.setattr(M, "rotate", spy)
    with torch.autocast("cpu", torch.bfloat16):
        model.hidden(torch.zeros(1, 5, dtype=torch.int64))
    assert len(seen) == 6 and len(set(seen)) == 1  # queries and keys of three layers
    assert seen[0][1] == seen[0][2] == torch.bfloat16


@pytest.mark.parametrize("pos", ["rope", "learned"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpt_does_not_see_the_future_and_a_diffusion_model_does(causal, pos):
    model = tiny_model(causal=causal, pos=pos)
    x = torch.randint(7, (1, 10), generator=seeded(0))
    y = x.clone()
    y[0, 6] = (y[0, 6] + 1) % 7
    equal = torch.isclose(model(x), model(y), atol=1e-6).all(-1)[0]  # (T)
    assert equal[:6].all() == causal
    assert not equal[6:].all()


def test_the_mask_has_an_embedding_but_no_logit():
    model = tiny_model(V=7)
    assert model.mask_id == 7
    assert model.wte.num_embeddings == 8
    assert model(torch.full((1, 4), 7)).shape == (1, 4, 7)
    assert tiny_model(V=7, causal=True).wte.num_embeddings == 7


@pytest.mark.parametrize("tie", [True, False])
def test_the_head_is_the_embedding_or_its_own_with_a_bias_if_asked(tie):
    model = tiny_model(V=7, tie_weights=tie, head_bias=True)
    model.head_bias.data.normal_()
    h = torch.randn(3, 16, generator=seeded(0))
    weight = model.wte.weight[:7] if tie else model.lm_head.weight
    torch.testing.assert_close(model.head(h), h @ weight.T + model.head_bias)


def test_the_first_loss_is_log_V():
    torch.manual_seed(0)
    shape = dict(block_size=32, vocab_size=100, n_layer=4, n_head=2, n_embd=64)
    batch = torch.randint(100, (4, 33), generator=seeded(0))
    gpt = GPT(GPTConfig(causal=True, **shape))
    assert M.ar_loss(gpt, batch).item() == pytest.approx(math.log(100), abs=0.1)
    diffusion = GPT(GPTConfig(**shape))
    assert M.nelbo(diffusion, batch[:, 1:], seeded(0)).item() == pytest.approx(math.log(100), abs=1)


def test_ar_loss_equals_the_dense_one():
    model = tiny_model(causal=True)
    batch = torch.randint(7, (3, 12), generator=seeded(0))
    torch.testing.assert_close(M.ar_loss(model, batch), reference.ar_loss(model, batch))


def test_impossible_shapes_raise(error_of):
    assert "does not divide" in error_of(GPTConfig, n_embd=10, n_head=3)
    assert "odd" in error_of(GPTConfig, n_embd=9, n_head=3)
    assert GPTConfig(n_embd=9, n_head=3, pos="learned")
    assert "'rop'" in error_of(GPTConfig, pos="rop")
    assert "'rnn'" in error_of(GPTConfig, causal=True, arch="rnn")
    assert "which is causal" in error_of(GPTConfig, causal=False, arch="lstm")
    assert "context of 16" in error_of(tiny_model(), torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("arch", ["lstm", "cnn"])
def test_small_networks_see_the_past_only_and_train_in_every_weight(arch):
    model = tiny_model(causal=True, arch=arch)
    x = torch.randint(7, (2, 16), generator=seeded(0))
    y = x.clone()
    y[:, 9] = (y[:, 9] + 1) % 7
    a = model(x)
    b = model(y)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.equal(a[:, 9:], b[:, 9:])
    M.ar_loss(model, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# --------------------------------------------------------------------------------------------------
# generation with a cache


@pytest.mark.parametrize("pos", ["rope", "learned"])
@pytest.mark.parametrize("n_new", [1, 13, 40])
def test_cached_generation_equals_uncached_also_past_the_context(n_new, pos):
    model = tiny_model(causal=True, pos=pos)
    idx = torch.randint(7, (2, 3), generator=seeded(0))
    settings = dict(temperature=0.8, top_k=5, top_p=0.9)
    cached = generate(model, idx, n_new, generator=seeded(1), **settings)
    uncached = reference.generate(model, idx, n_new, seeded(1), **settings)
    assert torch.equal(cached, uncached)
    assert cached.shape == (2, 3 + n_new)
    assert torch.equal(cached[:, :3], idx)


def test_greedy_generation_takes_the_best_token_each_time():
    model = tiny_model(causal=True)
    idx = torch.randint(7, (1, 3), generator=seeded(0))
    greedy = generate(model, idx, 13, temperature=0)
    assert torch.equal(greedy, reference.generate_greedy(model, idx, 13))


def test_a_text_ends_at_eos_and_is_otherwise_the_same():
    model = tiny_model(causal=True)
    idx = torch.randint(7, (5, 3), generator=seeded(0))
    plain = generate(model, idx, 40, generator=seeded(1))
    ended = generate(model, idx, 40, generator=seeded(1), eos=2)
    for a, b in zip(plain.tolist(), ended.tolist(), strict=True):
        n = a.index(2, 3) + 1 if 2 in a[3:] else len(a)
        assert b == a[:n] + [2] * (len(a) - n)
    assert (ended[:, -1] == 2).any()
    assert not (plain[:, -1] == 2).all()


def test_generation_is_watched_token_by_token():
    model = tiny_model(causal=True)
    lengths = []
    generate(
        model, torch.zeros(2, 1, dtype=torch.long), 5, watch=lambda x: lengths.append(x.size(1))
    )
    assert lengths == [2, 3, 4, 5, 6]


ARCHS = [("gpt", "rope"), ("gpt", "learned"), ("lstm", "rope"), ("cnn", "rope")]


@torch.no_grad()
@pytest.mark.parametrize("arch, pos", ARCHS)
@pytest.mark.parametrize("B", [1, 3])
def test_every_network_continues_from_its_cache_also_after_a_rollback(arch, pos, B):
    model = tiny_model(causal=True, arch=arch, pos=pos, n_layer=3)
    x = torch.randint(7, (B, 16), generator=seeded(0))
    whole = model(x)  # (B, T, V)
    cache = KVCache(model, B)
    for kv in cache.kv:
        kv.fill_(math.nan)  # whatever the memory held before
    parts = [model.head(model.hidden(part, cache)) for part in x.split([5, 1, 3, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert cache.length == 16

    other = (x + 1) % 7
    for length in (11, 4, 1, 0):
        cache.length = length
        model.hidden(other[:, length : length + 3], cache)  # rejected drafts
        cache.length = length
        got = model.head(model.hidden(x[:, length:], cache))
        torch.testing.assert_close(got, whole[:, length:], atol=1e-5, rtol=1e-4)


def test_a_bfloat16_model_has_a_cache_of_its_own_type():
    model = tiny_model(causal=True).bfloat16()
    assert KVCache(model).kv[0].dtype == torch.bfloat16
    text = generate(model, torch.zeros(1, 1, dtype=torch.long), 20, generator=seeded(0))
    assert text.shape == (1, 21)


# --------------------------------------------------------------------------------------------------
# drawing tokens


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_of_best_tokens(top_p):
    logits = torch.randn(20, 30, generator=seeded(0)) * 3
    kept = probabilities(logits, top_p=top_p)
    for row, full in zip(kept, logits.softmax(-1).tolist(), strict=True):
        assert row.nonzero().flatten().tolist() == reference.top_p_set(full, top_p)
    torch.testing.assert_close(kept.sum(-1), torch.ones(20))


def test_top_k_and_temperature_shape_the_distribution():
    logits = torch.randn(20, 30, generator=seeded(0)) * 3
    kept = probabilities(logits, top_k=4)
    assert torch.equal(kept > 0, kept >= kept.topk(4).values[:, -1:])
    assert ((kept > 0).sum(-1) == 4).all()
    torch.testing.assert_close(kept.sum(-1), torch.ones(20))
    for all_of_them in (0, 30, 99):
        torch.testing.assert_close(probabilities(logits, top_k=all_of_them), logits.softmax(-1))
    best = F.one_hot(logits.argmax(-1), 30).float()
    assert torch.equal(probabilities(logits, temperature=0), best)
    torch.testing.assert_close(probabilities(logits, temperature=0.5), (logits / 0.5).softmax(-1))
    assert probabilities(logits.bfloat16()).dtype == torch.float32


def test_draw_follows_the_distribution_to_its_tail():
    logits = torch.tensor([0.0, -math.inf, -1.0, -12.0])  # the last has probability 4.5e-6
    n = 4_000_000
    tokens = draw(logits.softmax(-1).expand(n, 4), seeded(0))
    counts = torch.bincount(tokens, minlength=4)
    expected = logits.double().softmax(0) * n
    assert counts[1] == 0
    possible = [0, 2, 3]
    chi2 = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi2 < 14  # 2 degrees of freedom: one seed in a thousand is worse


def test_draw_has_the_shape_of_what_it_draws_from_and_needs_no_sum_of_1():
    assert draw(torch.ones(2, 3, 5), seeded(0)).shape == (2, 3)
    assert draw(torch.ones(0, 5), seeded(0)).shape == (0,)
    one = torch.tensor([[0.0, 1e-30, 0.0]])
    assert (draw(one.expand(100, 3), seeded(0)) == 1).all()


def test_tokens_drawn_some_rows_at_a_time_are_those_drawn_at_once(monkeypatch):
    model = tiny_model(tie_weights=False)
    h = torch.randn(5, 16, generator=seeded(0))
    at_once = M.draw_tokens(model, h, seeded(1), temperature=0.9, top_p=0.9)
    drawn = []
    monkeypatch.setattr(M, "draw", lambda p, g: drawn.append(len(p)) or draw(p, g))
    model.config.vocab_size = 2**25  # as if a row were that long
    one_by_one = M.draw_tokens(model, h, seeded(1), temperature=0.9, top_p=0.9)
    assert torch.equal(at_once, one_by_one)
    assert drawn == [1] * 5


def test_generators_of_different_keys_differ_and_repeat():
    a, b, c = (torch.rand(4, generator=seeded(*key)) for key in ((1, 2), (1, 2), (12,)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# --------------------------------------------------------------------------------------------------
# conversion


def test_a_gpt_converts_to_diffusion_and_back():
    gpt = tiny_model(causal=True)
    diffusion = convert(gpt)
    assert not diffusion.config.causal
    assert torch.equal(diffusion.wte.weight[:7], gpt.wte.weight)
    torch.testing.assert_close(diffusion.wte.weight[7], gpt.wte.weight.mean(0))

    back = convert(diffusion, causal=True)
    x = torch.randint(7, (2, 16), generator=seeded(0))
    assert torch.equal(back(x), gpt(x))


@pytest.mark.parametrize("tie", [True, False])
def test_what_mask_has_learned_survives_a_conversion_to_the_same_kind(tie):
    diffusion = tiny_model(tie_weights=tie)
    diffusion.wte.weight.data[7] = 3.0
    again = convert(diffusion)
    x = torch.tensor([[7, 1, 7, 2]])
    assert torch.equal(again.wte.weight, diffusion.wte.weight)
    assert torch.equal(again.eval()(x), diffusion(x))


def test_a_smaller_context_drops_the_last_learned_positions(error_of):
    gpt = tiny_model(causal=True, pos="learned")
    smaller = convert(gpt, causal=True, block_size=10).eval()
    x = torch.randint(7, (2, 10), generator=seeded(0))
    assert smaller.wpe.weight.shape == (10, 16)
    assert torch.equal(smaller(x), gpt(x))
    assert "learned 16 positions" in error_of(convert, gpt, block_size=17)


def test_with_rope_a_converted_model_may_have_a_larger_context():
    gpt = tiny_model(causal=True)
    larger = convert(gpt, causal=True, block_size=64).eval()
    x = torch.randint(7, (1, 16), generator=seeded(0))
    torch.testing.assert_close(larger(x), gpt(x))
    assert larger(torch.zeros(1, 64, dtype=torch.long)).shape == (1, 64, 7)


def test_weights_of_another_model_raise_by_name(error_of):
    model = tiny_model()
    said = error_of(load_weights, model, tiny_model(n_embd=32).state_dict())
    assert "(8, 32)" in said and "(8, 16)" in said
    said = error_of(load_weights, model, {"odd": torch.zeros(1), **model.state_dict()})
    assert "odd" in said
    assert "lm_head" in error_of(load_weights, model, tiny_model(tie_weights=False).state_dict())


def test_a_small_network_has_the_blocks_that_its_arch_names():
    for arch, name in (("gpt", "Block"), ("lstm", "LSTMBlock"), ("cnn", "ConvBlock")):
        model = new_model(GPTConfig(causal=True, n_layer=1, n_head=2, n_embd=16, arch=arch))
        assert type(model.blocks[0]).__name__ == name
