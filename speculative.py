"""
An autoregressive model writes: token by token with a KV cache, or faster, with drafts, and the same law.

Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1.
"""

import time
import types

import torch

import data
from configurator import UserError
from drafters import Diffusion, Lookup
from model import DEFAULTS, GPT, draw, draw_from, probabilities, unmask
from plumbing.huggingface import source_of
from plumbing.parallel import share_out
from plumbing.randomness import seeded, uniform

# ----------------------------------------------------------------------------------------------------------------------
# the cache, and text token by token


class KVCache:
    """What the layers remember of each token so far: keys and values (an LSTM's states, a CNN's inputs).

    lengths: how many tokens each row has; lowering one forgets the tokens after it.
    """

    def __init__(self, config, batch_size, device, dtype=torch.float32):
        heads = config.n_head if config.arch == "gpt" else 1
        shape = (2, batch_size, heads, config.block_size, config.n_embd // heads)
        # zeros: short rows read, with weight 0, places that only longer rows have written, and 0 * NaN is NaN
        self.kv = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.lengths = [0] * batch_size

    @property
    def even(self):
        """Whether all rows have equally many tokens."""
        return all(
            n == self.lengths[0] for n in self.lengths
        )  # not a set: torch.compile sees that one row is even

    def positions(self, T):
        """-> where the next T tokens stand: (B, T) int64, or (1, T), the same for all rows."""
        starts = torch.tensor(
            self.lengths[:1] if self.even else self.lengths, device=self.kv[0].device
        )
        return starts[:, None] + torch.arange(T, device=starts.device)

    def layer(self, i):
        return LayerCache(self, self.kv[i])

    def forget_after(self, n):
        """(B,) int64: how many tokens a row has at most from now on."""
        self.lengths = list(map(min, self.lengths, n.tolist()))

    def keep(self, rows):
        """(B,) bool: drops the other rows."""
        self.kv = [kv[:, rows] for kv in self.kv]
        self.lengths = [n for n, kept in zip(self.lengths, rows.tolist(), strict=True) if kept]


class LayerCache:
    """One layer's share of a KVCache. The lengths rise in GPT.hidden, after the last layer."""

    def __init__(self, cache, kv):
        self.cache, self.kv = cache, kv  # kv (2, B, H, block_size, D)

    def __call__(self, k, v):
        """Stores (B, H, T, D) keys and values of new tokens.

        -> all of them so far, (B, H, end, D) x 2 with end the longest row's, and None, or if the rows differ (B, 1, T,
        end) bool, True where a token may look: at what its own row has so far.
        """
        T = k.size(2)
        end = max(self.cache.lengths) + T
        if self.cache.even:
            self.kv[0, :, :, end - T : end], self.kv[1, :, :, end - T : end] = k, v
            return *self.kv[:, :, :, :end].to(k.dtype), None
        where = self.cache.positions(T)  # (B, T)
        rows = torch.arange(len(where), device=where.device)[:, None]
        # two index tensors with a slice between them: (B, T, H, D)
        self.kv[0, rows, :, where] = k.transpose(1, 2).to(self.kv.dtype)
        self.kv[1, rows, :, where] = v.transpose(1, 2).to(self.kv.dtype)
        mask = torch.arange(end, device=where.device) <= where[:, None, :, None]
        return *self.kv[:, :, :, :end].to(k.dtype), mask

    def before(self, n):
        """-> (2, B, n, C): what a cache of one head remembers of the last n tokens, zeros where there are none."""
        lengths = torch.tensor(self.cache.lengths, device=self.kv.device)[:, None]
        where = lengths - n + torch.arange(n, device=self.kv.device)  # (B, n)
        rows = torch.arange(len(where), device=where.device)[:, None]
        past = self.kv[:, rows, 0, where.clamp(min=0)]  # (2, B, n, C)
        return past.masked_fill((where < 0)[..., None], 0)


def new_cache(model, batch_size, length=0):
    """-> an empty KVCache, or the model's own kind of it. Raises UserError if a text of that length will not fit."""
    if length > model.config.block_size:
        size = model.config.block_size
        raise UserError(
            f"{length} tokens are more than the context of {size}. Use a smaller --length."
        )
    if hasattr(model, "new_cache"):
        return model.new_cache(batch_size)
    return KVCache(model.config, batch_size, model.wte.weight.device, model.wte.weight.dtype)


@torch.no_grad()
def generate(
    model, idx, n_new, temperature=1.0, top_k=0, top_p=1.0, generator=None, eos=None, watch=None
):
    """(B, T) int64 -> (B, T + n_new): autoregressive sampling, T >= 1. After an eos a row is filled with eos.

    Past block_size the window drops its older half at once, so the cache is refilled once in block_size / 2 tokens
    (DIFFERS from nanoGPT, which slides by one token).
    watch(x) is called with the tokens so far, after every token.
    """
    size, (B, T) = model.config.block_size, idx.shape
    out = torch.cat([idx, idx.new_zeros(B, n_new)], 1)
    cache = new_cache(model, B)
    ended, start = torch.zeros(B, dtype=torch.bool, device=idx.device), 0
    for end in range(T, T + n_new):
        if end - start > size:  # the window is full
            start = end - max(size // 2, 1)
            cache.lengths = [0] * B
        new = out[:, start + cache.lengths[0] : end]
        h = model.hidden(new, cache)[:, -1]  # (B, C)
        out[:, end] = draw(model.head(h), generator, temperature, top_k, top_p)
        if watch:
            watch(out[:, : end + 1])
        if eos is not None:
            out[ended, end] = eos
            ended |= out[:, end] == eos
            if ended.all():
                out[:, end:] = eos
                break
    return out


# ----------------------------------------------------------------------------------------------------------------------
# draft and verify


def logits_after(model, cache, x, n, k):
    """x (B, L) int64 of which the first n (B,) tokens are known -> (B, k, V) logits at their last k places.

    The cache may hold some of these already. All rows read m tokens, as many as the one that has most to read: what is
    read again costs nothing but time. (Within a text no row is more than a round behind, so n - m >= 0.)
    """
    # a row reads what is not cached yet, and at least the last k tokens, whose logits are wanted
    m = max(
        end - min(length, end - k) for length, end in zip(cache.lengths, n.tolist(), strict=True)
    )
    cache.lengths = (n - m).tolist()
    new = x.gather(1, n[:, None] - m + torch.arange(m, device=x.device))
    return model.head(model.hidden(new, cache)[:, -k:])


def propose(drafter, cache, x, n, gamma, settings, generator):
    """-> (B, gamma) tokens to follow the first n of x (B, L), (B, gamma, V) the distributions they were drawn from.

    Token by token; x is scratch from n on. settings: temperature, top_k, top_p.
    """
    if isinstance(drafter, Diffusion) and gamma:
        return drafter.propose(x, n, gamma, settings, generator)
    qs = []
    for j in range(gamma):
        logits = (
            logits_after(drafter, cache, x, n + j, 1)[:, 0]
            if cache
            else drafter.next_logits(x, n + j)
        )
        qs.append(probabilities(logits, *settings))
        x.scatter_(1, (n + j)[:, None], draw_from(qs[-1], generator)[:, None])
    where = n[:, None] + torch.arange(gamma, device=x.device)
    return x.gather(1, where), torch.stack(qs, 1) if qs else None


def residual(p, q):
    """(B, V), (B, V) -> (B, V): norm(max(p - q, 0)), the target's distribution where the draft's token was refused."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)  # p = q: nothing was refused but by rounding


def bernoulli(chance, generator):
    """Probabilities -> bool: True with that probability."""
    return uniform(chance.shape, generator, chance.device) < chance


def verify(drafts, p, q, generator):
    """(B, g) int64, target's (B, g + 1, V), drafter's (B, g, V) -> (B,) how many drafts are accepted, (B,) the token
    that follows them. Leviathan et al., Algorithm 1; the one place that makes the text's law the target's.
    """
    B, g = drafts.shape
    if not g:
        return drafts.new_zeros(B), draw_from(p[:, 0], generator)
    # Token x, which came with chance q(x), stays with chance min(1, p(x) / q(x)): so it stays min(p, q) of the time ...
    p_x, q_x = (d[:, :g].gather(2, drafts[..., None]).squeeze(2) for d in (p, q))  # (B, g)
    accepted = bernoulli((p_x / q_x).clamp(max=1), generator)
    n_accepted = (
        accepted.long().cumprod(1).sum(1)
    )  # those before the first refusal: later ones were never judged
    # ... and where it does not, the rest of p, norm(max(p - q, 0)), makes up for it exactly.
    row, refused = (
        torch.arange(B, device=drafts.device),
        n_accepted.clamp(max=g - 1),
    )  # if all are accepted: not used
    rest = residual(p[row, refused], q[row, refused])  # (B, V)
    p_next = torch.where(
        (n_accepted < g)[:, None], rest, p[:, g]
    )  # all accepted: the target's next token for free
    return n_accepted, draw_from(p_next, generator)


@torch.no_grad()
def speculate(
    target,
    drafter,
    idx,
    n_new,
    gamma=4,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    generator=None,
    eos=None,
    watch=None,
):
    """(B, T) int64 -> (B, T + n_new) with exactly the law of generate(target, ...), and Counts.

    The drafter guesses gamma tokens; one call of the target judges them all; the first refused one is drawn anew, and
    if none is, the target's next token comes for free. q is what the draft was sampled from, after the same
    temperature, top_k and top_p. After an eos a row is filled with eos. Raises UserError past a model's context.
    watch(x, drafts) is called after every round, with the first row's tokens so far and the drafts that it judged.
    """
    B, T = idx.shape
    end, settings = T + n_new, (temperature, top_k, top_p)
    x = torch.cat([idx, idx.new_zeros(B, n_new)], 1)  # (B, end)
    skip = unseen(target, drafter)  # the drafter's text and n begin so many tokens later
    target_cache = new_cache(target, B, end)
    draft_cache = (
        new_cache(drafter, B, end - skip) if isinstance(drafter, GPT) else None
    )  # the others have no layers
    # x, n and the caches are of the rows that are not done; `rows` says which of `out` these are
    n = torch.full((B,), T, device=idx.device)  # how many tokens each row has
    rows, out = torch.arange(B, device=idx.device), x.clone()
    counts = Counts(gamma, out)
    while len(rows) and n_new:
        began = time.perf_counter()
        g = min(gamma, end - int(n.max()) - 1)  # a row's last token is the target's own
        drafts, q = propose(
            drafter, draft_cache, x[:, skip:], n - skip, g, settings, generator
        )  # (B, g), (B, g, V)
        x.scatter_(1, n[:, None] + torch.arange(g, device=x.device), drafts)
        drafts.cpu()  # waits for the device
        drafted = time.perf_counter()
        p = probabilities(
            logits_after(target, target_cache, x, n + g, g + 1), *settings
        )  # (B, g + 1, V)
        n_accepted, token = verify(drafts, p, q, generator)  # (B), (B)
        x.scatter_(1, (n + n_accepted)[:, None], token[:, None])
        token.cpu()  # waits for the device
        counts.add(rows, n, n_accepted, g, drafted - began, time.perf_counter() - drafted)
        n = n + n_accepted + 1
        if watch:
            watch(x[:1, : n[0]], drafts)
        target_cache.forget_after(
            n - 1
        )  # the last token is new, and what was refused before it is gone
        if draft_cache:
            draft_cache.forget_after(n - 1 - skip)
        done = n >= end
        if eos is not None:
            x, ended = fill_after_eos(x, T, n, eos)
            done |= ended
        if done.any():
            out[rows[done]] = x[done]
            rows, x, n = rows[~done], x[~done], n[~done]
            target_cache.keep(~done)
            if draft_cache:
                draft_cache.keep(~done)
    return out, counts


def unseen(target, drafter=None):
    """-> how many tokens a row begins with that a drafter does not see: the source, where the target has an encoder.

    Look-up copies from it, and a drafter that has an encoder reads the same.
    """
    source = source_of(target)
    if getattr(drafter, "seq2seq", False):
        drafter.source, source = source, 0  # here it is told where its source ends
    return 0 if isinstance(drafter, Lookup) else source


def fill_after_eos(x, T, n, eos):
    """(B, L) of which row b has n_b tokens, T of them the prompt -> x with eos from the first new eos on, (B,) bool."""
    place = torch.arange(x.size(1), device=x.device)
    ended = (x == eos) & (place >= T) & (place < n[:, None])  # (B, L)
    return torch.where(ended.cumsum(1) > 0, eos, x), ended.any(1)


class Counts:
    """What a speculation tells of itself: per place of a draft how often it was tested and accepted; time and calls.

    row_calls: calls of the target, each once for every row in it.
    """

    def __init__(self, gamma, out):
        self.row_calls = 0
        self.tested, self.accepted = torch.zeros(2, gamma, dtype=torch.int64)
        self.drafted = torch.zeros_like(out, dtype=torch.bool)  # tokens that the drafter wrote
        # of all rounds but the first, which reads the prompt as well
        self.rounds, self.drafts, self.draft_s, self.target_s = 0, 0, 0.0, 0.0

    def add(self, rows, n, n_accepted, g, draft_s, target_s):
        """A round: rows (b) that stood at n (b) accepted so many (b) of g drafts, in so many seconds."""
        if self.row_calls:  # not the first round
            self.rounds += 1
            self.drafts += g
            self.draft_s += draft_s
            self.target_s += target_s
        self.row_calls += len(rows)
        place = torch.arange(self.drafted.size(1), device=n.device)
        self.drafted[rows] |= (place >= n[:, None]) & (place < (n + n_accepted)[:, None])
        self.tested[:g] += (
            (n_accepted[:, None] >= place[:g]).sum(0).cpu()
        )  # what follows a refusal was never tested
        self.accepted[:g] += (n_accepted[:, None] > place[:g]).sum(0).cpu()


# ----------------------------------------------------------------------------------------------------------------------
# how fast it is, and how fast it could be


def acceptance(counts):
    """What speculate counted -> alpha, accepted / (accepted + first refusals).

    A token after the first refusal was never judged: counting it would make alpha too small.
    """
    return (counts.accepted.sum() / counts.tested.sum().clamp(min=1)).item()


def costs(counts, step_s):
    """What speculate counted, seconds of a plain step of the target -> c, call: a drafted token and a target call in
    plain steps. In theory a call is one step whatever it judges; on a CPU it grows with the tokens.
    """
    return counts.draft_s / max(counts.drafts, 1) / step_s, counts.target_s / max(
        counts.rounds, 1
    ) / step_s


def tokens_per_call(counts, gamma=None):
    """What speculate counted -> the mean for drafts of gamma tokens (None: of all that it counted)

    1 + a_1 + a_1 a_2 + ..., with the rate a_j at place j.
    """
    return 1 + (counts.accepted / counts.tested.clamp(min=1))[:gamma].cumprod(0).sum().item()


def predicted_speedup(alpha, c, gamma, call=1.0):
    """Tokens per target call over its cost in plain steps (Leviathan et al., theorem 3.8)."""
    tokens = gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return tokens / (gamma * c + call)


def best_gamma(drafter, counts, alpha, measured):
    """measured: {gamma: costs} -> the gamma with the highest predicted speed, that speed.

    A diffusion drafter guesses later places worse: its rates by place decide, up to the last that `counts` has.
    """
    speeds = {
        gamma: predicted_speedup(alpha, c, gamma, call) for gamma, (c, call) in measured.items()
    }
    if isinstance(drafter, Diffusion):
        counted = [gamma for gamma in measured if gamma <= len(counts.tested)]
        speeds = {
            g: tokens_per_call(counts, g) / (g * measured[g][0] + measured[g][1]) for g in counted
        }
    return max(speeds.items(), key=lambda pair: pair[1])


GAMMAS = (1, 2, 3, 4, 6, 8)  # that are tried


def choose_gamma(target, drafter, known, n_new, cfg, noise):
    """-> cfg.gamma, or if that is 0 the fastest by what short trials tell."""
    if cfg.gamma:
        return cfg.gamma
    n_trial, settings = min(24, n_new), (cfg.temperature, cfg.top_k, cfg.top_p)
    measured = time_gammas(target, drafter, known, n_trial, settings, noise)
    _, counts = speculate(target, drafter, known, min(64, n_new), max(GAMMAS), *settings, noise)
    return best_gamma(drafter, counts, acceptance(counts), measured)[0]


def time_gammas(target, drafter, known, n_new, settings, noise):
    """-> {gamma: its costs}, from n_new tokens each, the faster of two trials; the first one warms up."""

    def seconds(n):
        began = time.perf_counter()
        generate(target, known, n, *settings, noise).cpu()
        return time.perf_counter() - began

    steps, trials, found = [], [], {}
    for _ in range(2):
        first, all_of_them = seconds(1), seconds(n_new)  # the first token reads `known` as well
        steps.append(max(all_of_them - first, 1e-9) / max(n_new - 1, 1))  # seconds of a plain step
        trials.append(
            {g: speculate(target, drafter, known, n_new, g, *settings, noise)[1] for g in GAMMAS}
        )
    for g in GAMMAS:
        (c, call), (c_again, call_again) = (costs(counts[g], min(steps)) for counts in trials)
        found[g] = min(c, c_again), min(call, call_again)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# text of any model


def known_text(template):
    """(B, L) int64 with -1 at the blanks -> (B, n) int64: the tokens before the blanks; there must be none after."""
    n = int((template[0] >= 0).sum())
    if n == 0 or (template[:, :n] < 0).any():
        raise UserError(
            "An autoregressive model cannot fill in blanks before known text. Use a diffusion checkpoint."
        )
    return template[:, :n]


def draw_samples(model, template, cfg, steps, noise, watch=None, eos=None):
    """template (B, L) int64: the known tokens, -1 at the blanks -> (B, L) int64.

    Diffusion fills any blanks. An autoregressive model needs all known tokens, at least one, to stand at the beginning,
    and writes nothing but eos after one.
    """
    if not model.config.causal:
        xt = template.masked_fill(template < 0, model.mask_id)
        return unmask(
            model,
            xt,
            steps,
            cfg.sampler or DEFAULTS["sampler"],
            cfg.temperature,
            cfg.top_p,
            noise,
            watch,
        )
    known, settings = known_text(template), (cfg.temperature, cfg.top_k, cfg.top_p)
    return generate(model, known, template.size(1) - known.size(1), *settings, noise, eos, watch)


def settled(cfg, checkpoint, **changes):
    """-> cfg with the changes, and where sampler and steps are open ('', 0) those that a student was made for."""
    own = DEFAULTS | {
        "sampler": checkpoint["config"].get("sampler") or DEFAULTS["sampler"]
    }  # of an older student
    own |= checkpoint.get("made_for") or {}
    left_open = {key: value for key, value in own.items() if not getattr(cfg, key)}
    return types.SimpleNamespace(**(vars(cfg) | left_open | changes))


def draw_many(model, templates, cfg, steps):
    """(N, L) int64, -1 at the blanks -> (N, L) int64 on the CPU, batch_size at a time; see draw_samples."""
    device = model.wte.weight.device

    def draw_batch(i):
        noise = seeded(cfg.seed, "genppl", i, device=device)
        return draw_samples(
            model, templates[i : i + cfg.batch_size].to(device), cfg, steps, noise
        ).cpu()

    return torch.cat(
        share_out(draw_batch, range(0, len(templates), cfg.batch_size), f"{steps} steps")
    )


def empty_pages(model, meta, n, size):
    """-> (n, size) int64 of -1, blanks; an autoregressive model gets its start token."""
    templates = torch.full((n, size), -1)
    if model.config.causal:
        templates[:, 0] = data.start_token(meta)
    return templates
