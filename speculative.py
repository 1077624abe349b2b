"""
A GPT writes one text: token by token with a KV cache, or faster with a drafter, from exactly the
same distribution.

Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1. p is the distribution of the target, q of the
drafter. Read in this order: KVCache, generate, Network, verify, speculate.
"""

import torch
import torch.nn.functional as F

import data
from configurator import UserError, choose
from model import DEFAULTS, SAMPLERS, draw, probabilities, unmask_any
from plumbing.hardware import matmul_dtype
from plumbing.parallel import map_over_ranks
from plumbing.randomness import seeded, uniform

# --------------------------------------------------------------------------------------------------
# token by token


class KVCache:
    """
    Every layer's keys and values of the tokens read so far (an LSTM's states, a CNN's inputs). To
    forget tokens, lower `length`.
    """

    def __init__(self, model, batch_size=1):
        config = model.config
        H = config.n_head if config.arch == "gpt" else 1
        D = config.n_embd // H
        shape = (2, batch_size, H, config.block_size, D)
        weight = model.wte.weight
        # under autocast keys and values are of 16 bits, the states of an LSTM are not
        dtype = matmul_dtype(weight) if config.arch == "gpt" else weight.dtype
        # One tensor for each layer, on the model's device. (If all layers shared one, a compiled
        # step would copy the whole of it in each layer and take twice as long.)
        self.kv = [weight.new_zeros(shape, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0

    def append(self, layer, k, v):
        """
        New keys and values (B, H, T, D) -> those of all tokens so far. GPT.hidden raises `length`
        after the last layer.
        """
        end = self.length + k.size(2)
        kv = self.kv[layer]  # (2, B, H, block_size, D)
        kv[0, :, :, self.length : end] = k
        kv[1, :, :, self.length : end] = v
        all_k, all_v = kv[:, :, :, :end].to(k.dtype)  # for a cache made outside of autocast
        return all_k, all_v

    def last(self, layer, n):
        """-> (2, B, H, n, D): what was kept of the last n tokens, zeros before the first."""
        start = max(self.length - n, 0)
        kept = self.kv[layer][:, :, :, start : self.length]
        return F.pad(kept, (0, 0, n - kept.size(3), 0))


def new_cache(model, batch_size=1):
    """-> an empty KVCache, or the cache of a model that makes its own (also with a `length`)."""
    if hasattr(model, "new_cache"):
        return model.new_cache(batch_size)
    return KVCache(model, batch_size)


@torch.no_grad()
def generate(
    model,
    idx,
    n_new,
    *,
    generator=None,
    eos=None,
    watch=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
):
    """
    (B, T) int64 -> (B, T + n_new), T >= 1. After an eos a row is filled with eos.

    watch(idx) is called after every token. When the window is full it drops its older half, so that
    the cache is refilled only once every block_size / 2 tokens.
    DIFFERS from nanoGPT, which has no cache and slides by one token.
    """
    size = model.config.block_size
    cache = new_cache(model, len(idx))
    ended = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
    start = 0  # of the window
    end = idx.size(1) + n_new
    while idx.size(1) < end:
        if idx.size(1) - start > size:
            start = idx.size(1) - max(size // 2, 1)
            cache.length = 0
        h = model.hidden(idx[:, start + cache.length :], cache)[:, -1]  # (B, C)
        p = probabilities(model.head(h), temperature, top_k, top_p)  # (B, V)
        token = draw(p, generator)  # (B)
        if eos is not None:
            token = token.masked_fill(ended, eos)
            ended |= token == eos
        idx = torch.cat([idx, token[:, None]], dim=1)
        if watch:
            watch(idx)
        if eos is not None and ended.all():
            return F.pad(idx, (0, end - idx.size(1)), value=eos)
    return idx


# --------------------------------------------------------------------------------------------------
# draft and verify
#
# A drafter has propose(x (T,), n, settings, generator) -> drafts (g,) with g <= n, and q, where
# q[i] (V,) is what draft i was drawn from. A drafter may propose fewer than n, or none. settings
# are temperature, top_k and top_p. A drafter may ignore them: the text has the target's
# distribution for any q.


class Network:
    """A small model that drafts: a GPT, an LSTM, a CNN."""

    def __init__(self, model):
        self.model = model
        self.cache = new_cache(model)
        # the tokens whose keys and values are cached
        self.cached = torch.empty(0, dtype=torch.int64, device=model.wte.weight.device)

    def logits(self, idx):
        """(B, T) int64 -> (B, T, V): position i predicts token i + 1."""
        return self.model(idx)

    @torch.no_grad()
    def propose(self, x, n, settings, generator):
        # Keep the longest cached prefix of x, which drops rejected drafts or another text. At least
        # the last token of x is read again: its hidden state gives the first q.
        m = min(len(self.cached), len(x) - 1)
        same = self.cached[:m] == x[:m]
        self.cache.length = int(same.cumprod(0).sum())  # the common prefix

        start = len(x)
        q = []
        # + 1: the last draft is drawn, but never read
        for _ in range(min(n, self.model.config.block_size + 1 - start)):
            h = self.model.hidden(x[None, self.cache.length :], self.cache)[0, -1]  # (C)
            q.append(probabilities(self.model.head(h), **settings))  # (V)
            x = torch.cat([x, draw(q[-1], generator)[None]])
        self.cached = x[: self.cache.length]
        return x[start:], q


def verify(drafts, p, q, generator):
    """
    drafts (g,), p (g + 1, V), q: a list of g tensors (V,) -> (1 ... g + 1,): the accepted drafts
    and one token more.

    Why the text has the target's distribution: token x is drafted with probability q(x) and
    accepted with min(1, p(x) / q(x)), together min(p(x), q(x)). A rejection has probability
    1 - sum min(p, q) = sum max(p - q, 0). Then a token is drawn from the residual max(p - q, 0),
    normalized, which adds exactly max(p(x) - q(x), 0). The sum of both is p(x). A draft with p = 0
    is always rejected. If rounding rejects a draft although p = q, the token is drawn from p.
    """
    if len(drafts) == 0:  # nothing was proposed: a plain step
        return draw(p[-1], generator)[None]
    u = uniform((len(drafts),), generator, p.device)
    p_drafts = p[:-1].gather(1, drafts[:, None])[:, 0]  # (g): of each draft
    q_drafts = torch.stack(list(q)).gather(1, drafts[:, None])[:, 0]  # (g)
    rejected = u * q_drafts >= p_drafts  # not >, which would accept p = 0 at u = 0
    for i, is_rejected in enumerate(rejected.tolist()):  # tolist: one wait for the GPU
        if is_rejected:
            residual = (p[i] - q[i]).clamp(min=0)
            # all 0 if p = q; then only rounding can have rejected, and the token is drawn from p
            residual = torch.where(residual.any(), residual, p[i])
            token = draw(residual, generator)  # draw normalizes it
            return torch.cat([drafts[:i], token[None]])
    bonus = draw(p[-1], generator)  # all accepted: the same forward pass gives one token more
    return torch.cat([drafts, bonus[None]])


@torch.no_grad()
def speculate(
    target,
    drafter,
    x,
    n_new,
    *,
    gamma=4,
    generator=None,
    eos=None,
    watch=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
):
    """
    (T,) int64 -> (T + n_new,), distributed as generate's, or shorter where a new token is eos.

    drafter.propose(x, n, settings, generator) -> drafts (g,) with g <= n, and the g distributions q
    that they were drawn from. n is at most gamma, and less than the number of tokens still wanted,
    because a round ends with one of the target's own. settings: temperature, top_k, top_p, as in
    probabilities. watch(x, drafts) is called after every round, with the text so far and the drafts
    that were verified. Raises UserError at once if T + n_new is more than the target's block_size.
    """
    end = len(x) + n_new
    if end > target.config.block_size:
        size = target.config.block_size
        raise UserError(f"{end} tokens do not fit the context of {size}. Use --length={size}.")

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    cache = new_cache(target)
    while len(x) < end:
        n = min(gamma, end - len(x) - 1)  # the round's last token is the target's own
        drafts, q = drafter.propose(x, n, settings, generator)
        unread = torch.cat([x[cache.length :], drafts])
        h = target.hidden(unread[None], cache)[0]
        h = h[-len(drafts) - 1 :]  # (g + 1, C): the first round has read the prompt, too
        p = probabilities(target.head(h), **settings)  # (g + 1, V): at each draft, and after them
        new = verify(drafts, p, q, generator)
        ids = new.tolist()
        if eos in ids:
            new = new[: ids.index(eos) + 1]
        x = torch.cat([x, new])
        # target.hidden cached all drafts: forget the rejected ones. The last token of x is not
        # cached yet
        cache.length = len(x) - 1
        if watch:
            watch(x, drafts)
        if eos in ids:
            break
    return x


# --------------------------------------------------------------------------------------------------
# text of any model: a GPT's from left to right, a diffusion model's in any blanks


def known_text(template):
    """(B, L) int64 with -1 at the blanks -> (B, n), n >= 1: the known tokens, all at the start."""
    n = int((template[0] >= 0).sum())
    if n == 0 or (template[:, :n] < 0).any():
        raise UserError(
            "A GPT cannot fill in blanks before known text. Use a diffusion checkpoint."
        )
    return template[:, :n]


def empty_templates(model, meta, n, size):
    """-> (n, size) int64 of -1, all blanks, except a GPT's start token."""
    templates = torch.full((n, size), -1)
    if model.config.causal:
        templates[:, 0] = data.start_token(meta)
    return templates


def check_sampler(sampler):
    """Raises UserError for an unknown sampler. '' stands for the one the model was made for."""
    if sampler:
        choose("sampler", sampler, (*SAMPLERS, "analytic"))


def sampler_and_steps(sampler, steps, made_for):
    """Unset values ('' or 0) fall back to made_for, of a student of SDTT, then to DEFAULTS."""
    own = {**DEFAULTS, **(made_for or {})}
    return sampler or own["sampler"], steps or own["steps"]


def draw_samples(
    model, template, n_steps=64, sampler="spread", *, cooling=1.0, top_k=0, eos=None, **options
):
    """
    (B, L) int64 with -1 at the blanks -> (B, L) int64. options: temperature, top_p, generator,
    watch.

    A diffusion model uses n_steps, sampler and cooling, and fills any blanks. A GPT uses top_k and
    eos, and continues its known tokens, at least one.
    """
    if model.config.causal:
        known = known_text(template)
        n_new = template.size(1) - known.size(1)
        return generate(model, known, n_new, top_k=top_k, eos=eos, **options)
    xt = template.masked_fill(template < 0, model.mask_id)
    return unmask_any(model, xt, n_steps, sampler, cooling=cooling, **options)


def draw_batch(start, model, templates, batch_size, seed, options):
    """-> rows start ... start + batch_size of draw_many, on the CPU."""
    device = model.wte.weight.device
    generator = seeded(seed, "sample", start, device=device)
    part = templates[start : start + batch_size].to(device)
    return draw_samples(model, part, generator=generator, **options).cpu()


def draw_many(model, templates, batch_size, seed, **options):
    """(N, L) int64 -> (N, L) on the CPU, as draw_samples, shared by the processes of a torchrun."""
    starts = range(0, len(templates), batch_size)
    parts = map_over_ranks(
        draw_batch, starts, "samples", model, templates, batch_size, seed, options
    )
    return torch.cat(parts)
