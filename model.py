"""
The model: a GPT, the masked diffusion language model that the same block becomes, its loss, its bound and its samplers.

Read it in this order: GPT (one `causal` flag is the whole difference between the two models), diffusion_loss, unmask.
Shapes: B batch, T sequence, C width, V real tokens, H heads, D = C / H, N masked positions, K sampling steps.
Losses are in nats per token.

MDLM: Sahoo et al. 2024, arXiv 2406.07524.  No time conditioning: Zheng et al. 2024, arXiv 2409.02908.
LLaDA: Nie et al. 2025, arXiv 2502.09992.   Code we learnt most from: nanoGPT.
"""

import dataclasses
import functools
import importlib.util
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from configurator import UserError, choose, first_line
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of
from plumbing.head import ROWS_AT_ONCE, HeadLoss, slice_of_vocab, with_gradient_times
from plumbing.randomness import uniform

# ----------------------------------------------------------------------------------------------------------------------
# the transformer


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 256  # longest sequence, in tokens
    vocab_size: int = 50257  # V, real tokens only: [MASK] is not one of them
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384  # C
    dropout: float = 0.0
    causal: bool = False  # False: every position sees every other (diffusion); True: only those before it (GPT)
    pos: str = "rope"  # 'rope' | 'learned'
    tie_weights: bool = True  # the head shares the token embedding
    attn_bias: bool = False  # the rest are switches that published checkpoints need
    mlp_bias: bool = False
    ln_bias: bool = False
    head_bias: bool = False
    gelu_tanh: bool = False  # the tanh formula is 3x slower than erf on a CPU in bf16
    attention: str = (
        "sdpa"  # 'sdpa' | 'manual' | 'flash_attn': the same function, computed three ways
    )
    arch: str = "gpt"  # 'gpt' | 'lstm' | 'cnn': what its blocks are made of; the small causal two are for drafting
    kernel_size: int = 5  # of the cnn, in tokens

    def __post_init__(self):
        choose("arch", self.arch, ("gpt", "lstm", "cnn"))
        if self.arch != "gpt":
            if not self.causal:
                raise UserError(
                    f"arch is {self.arch!r}, which sees the past only: it takes --objective=ar."
                )
            self.pos = "none"  # they know the order of tokens without positions
            return
        choose("pos", self.pos, ("rope", "learned"))
        choose("attention", self.attention, ("sdpa", "manual", "flash_attn"))
        if self.attention == "flash_attn" and not importlib.util.find_spec("flash_attn"):
            raise UserError(
                "attention is 'flash_attn', which is missing: pip install flash-attn, or use 'sdpa'."
            )
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads."
            )
        if self.pos == "rope" and self.n_embd // self.n_head % 2:
            raise UserError(
                f"rope turns pairs; n_embd / n_head {self.n_embd // self.n_head} is odd: --pos=learned."
            )


def config_of(checkpoint, path, **changes):
    """A checkpoint's dict -> its GPTConfig. Raises UserError where no model of ours is like that."""
    try:
        return GPTConfig(**{**checkpoint["model_config"], **changes})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} is no model that can be read here: {first_line(error)}.") from None


def rope_tables(T, D, base=10000.0):
    """-> cos, sin (T, 1, 1, D) of RoPE (Su et al. 2021), channel i paired with i + D/2 ("rotate half").

    The sign of rotate_half is folded into sin, so that a rotation is x * cos + roll(x, D/2) * sin.
    """
    freq = base ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)  # (D/2)
    angle = torch.outer(torch.arange(T, dtype=torch.float32), freq)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], 1)[:, None, None], torch.cat([-sin, sin], 1)[:, None, None]


def rotate(x, cos, sin):
    """(B, T, 2, H, D), (1 or B, T, 1, 1, D) -> (B, T, 2, H, D): q and k turned by an angle that grows with position."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.size(-1) // 2, -1), sin.to(x.dtype))


@functools.lru_cache(maxsize=8)  # every layer asks for the same one
def causal_mask(n_query, n_key, device):
    """-> (n_query, n_key) bool, True where a query may look: the queries are the last n_query of the keys."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def attend(q, k, v, causal, attention, mask=None):
    """q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D): softmax(q k^T / sqrt(D)) v.

    causal: a query sees its own place and those before it; the queries are the last Tq of the Tk places.
    attention: GPTConfig's, how it is computed.
    mask (B, 1, Tq, Tk) bool: where a query may look, instead of `causal`.
    """
    Tq, Tk = q.size(2), k.size(2)
    if attention == "flash_attn" and mask is None:
        from flash_attn import flash_attn_func

        q, k, v = (
            x.transpose(1, 2) for x in (q, k, v)
        )  # (B, T, H, D); its causal mask is aligned to the last key
        return flash_attn_func(q, k, v, causal=causal).transpose(1, 2)
    # On a CPU the backward of SDPA is as slow in bfloat16 as in float32: there the three lines below train 1.4x faster.
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and Tk <= 512
    if attention == "manual" or slow:
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, Tq, Tk)
        if causal or mask is not None:
            scores = scores.masked_fill(
                ~(causal_mask(Tq, Tk, q.device) if mask is None else mask), -math.inf
            )
        return scores.softmax(-1) @ v
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if (
        causal and 1 < Tq < Tk
    ):  # new queries after cached keys: SDPA's is_causal would align them to the first key
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(Tq, Tk, q.device))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and Tq > 1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.causal, self.attention = config.n_head, config.causal, config.attention
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.attn_bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        qk, v = qkv.split([2, 1], 2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = (part.transpose(1, 2) for part in qk.unbind(2))  # (B, H, T, D)
        v = v.squeeze(2).transpose(1, 2)
        mask = None
        if cache is not None:
            k, v, mask = cache(k, v)  # (B, H, past + T, D)
        y = attend(q, k, v, self.causal, self.attention, mask)
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.mlp_bias)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.mlp_bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu_tanh else "none")
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.down(self.gelu(self.up(x))))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.mlp = MLP(config)

    def forward(self, x, rope, cache=None):
        x = x + self.attn(self.ln_1(x), rope, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """config.causal: a GPT. Not causal: a masked diffusion language model, with one more embedding row for [MASK].

    The head has V rows, so [MASK] can never be predicted: MDLM's "zero masking probability", by construction.
    block_class: of its blocks; drafters.py has others.
    """

    def __init__(self, config, block_class=None):
        super().__init__()
        if config.arch != "gpt" and block_class is None:
            raise UserError(f"arch is {config.arch!r}: drafters.new_model builds it.")
        self.config = config
        # The one difference: without `causal` every position sees every other, and there is a [MASK] to look at.
        self.mask_id = None if config.causal else config.vocab_size
        self.wte = nn.Embedding(config.vocab_size + (not config.causal), config.n_embd)
        self.wpe = (
            nn.Embedding(config.block_size, config.n_embd) if config.pos == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList((block_class or Block)(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lm_head = (
            None if config.tie_weights else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        )
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        if config.pos == "rope":
            cos, sin = rope_tables(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.register_buffer(
            "frequency", None
        )  # (V) of the corpus's tokens: what a Di[M]O student starts from
        self.apply(self._init)
        if config.arch == "gpt":
            for block in self.blocks:  # GPT-2: 2 n_layer branches add up, so each starts smaller
                for last in (block.attn.proj, block.mlp.down):
                    nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def hidden(self, idx, cache=None):
        """(B, T) int64 -> (B, T, C), the trunk. With a KVCache, idx are the tokens that follow the cached ones."""
        T, rope = idx.size(1), None
        where = (
            cache.positions(T) if cache else torch.arange(T, device=idx.device)[None]
        )  # (B or 1, T)
        end = max(cache.lengths) + T if cache else T
        if end > self.config.block_size:
            raise UserError(
                f"{end} tokens are more than this model's context of {self.config.block_size}."
            )
        x = self.wte(idx)  # (B, T, C)
        if self.config.pos == "rope":
            rope = self.cos[where], self.sin[where]  # (B or 1, T, 1, 1, D) each
        elif self.wpe is not None:
            x = x + self.wpe.weight[where]
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, cache.layer(i) if cache else None)
        if cache:
            cache.lengths = [n + T for n in cache.lengths]
        return self.ln_f(x)

    @property
    def head_weight(self):
        """(V or V + 1, C): only the first V rows are the head's."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def head(self, h):
        """(..., C) -> (..., V) logits."""
        return F.linear(h, self.head_weight[: self.config.vocab_size], self.head_bias)

    def frozen_head(self):
        """-> f: (n, C) -> (n, V) float32 logits, outside autograd, in the number format in which HeadLoss multiplies.

        To be called before head_loss: inside, grad mode is off.
        """
        W, device = self.head_weight[: self.config.vocab_size].detach(), self.wte.weight.device.type
        low = torch.is_autocast_enabled(device) and torch.is_grad_enabled()
        W = W.to(torch.get_autocast_dtype(device)) if low else W
        b = 0 if self.head_bias is None else self.head_bias.detach()
        return lambda h: F.linear(h.to(W.dtype), W).float() + b

    def forward(self, idx):
        """(B, T) -> (B, T, V) logits. The losses do not come by here: they call hidden and head_loss."""
        return self.head(self.hidden(idx))

    def head_loss(self, h, loss_of, *rows, part=0, parts=1):
        """(N, C), loss_of, (N, ...) rows -> scalar: the sum of loss_of((n, V) logits, *n of the rows) -> (n,) losses.

        Never N x V at once: the forward finds the gradients, chunk by chunk (plumbing/head.py). parts > 1: only the
        logits of slice_of_vocab, the gradient of their weights times parts.
        """
        weight, bias, V = self.head_weight, self.head_bias, self.config.vocab_size
        at_least, logits_at_once = ROWS_AT_ONCE[h.device.type]
        n = max(
            at_least, logits_at_once // -(-V // parts)
        )  # V / parts rounded up: one n for all, though sizes differ
        if parts > 1:
            first, end = slice_of_vocab(V, part, parts)
            V = end - first
            # Each process has the gradient of its own slice, and zero elsewhere; their mean would be 1/parts of it.
            weight = with_gradient_times(weight[first:end], parts)
            bias = None if bias is None else with_gradient_times(bias[first:end], parts)
        args = loss_of, n, h, weight, bias, V
        return HeadLoss.apply(
            *args, torch.is_grad_enabled(), *rows
        )  # inside apply, grad mode is always off

    def nll(self, h, targets, weights):
        """(N, C), (N,) int64, (N,) float32 -> scalar: sum of weights * -log p(targets | h)."""
        return self.head_loss(h, weighted_nll, targets, weights)

    @classmethod
    def from_pretrained(cls, name):
        """'gpt2', 'mdlm-owt', 'sdtt:kld:7' ... (plumbing/published.py), a folder or a ckpt.pt -> GPT in eval mode."""
        checkpoint = load_checkpoint(name)
        model = cls(config_of(checkpoint, name))
        load_weights(model, weights_of(checkpoint))
        return model.eval()


# ----------------------------------------------------------------------------------------------------------------------
# drawing tokens


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """(..., V) -> (..., V) float32: the distribution that is sampled from. temperature 0 puts all on the best token.

    top_k keeps the k best tokens (0: all); top_p the smallest set of best tokens that holds that much probability.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -math.inf)
    p = logits.softmax(-1)
    if top_p < 1:
        best, order = p.sort(-1, descending=True)
        best = best.masked_fill(
            best.cumsum(-1) - best >= top_p, 0
        )  # a token stays if those before it fall short
        p = torch.zeros_like(p).scatter(-1, order, best)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(logits, generator=None, temperature=1.0, top_k=0, top_p=1.0):
    """(..., V) -> (...) int64: one exact draw a row, by inverting the float64 cumulative distribution.

    Never Gumbel noise in float32: it cuts off the tail of the distribution and flatters generative perplexity (Zheng
    et al. 2024). torch.multinomial is exact too, but needs V exponentials a row: 5x slower on a CPU.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return draw_from(probabilities(logits, temperature, top_k, top_p), generator)


def draw_from(p, generator=None):
    """(..., V) probabilities, whose sum is 1 but for rounding -> (...) int64: one draw a row, as exact as draw's."""
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform((*p.shape[:-1], 1), generator, p.device, torch.float64) * cdf[..., -1:]
    return torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp(max=p.size(-1) - 1).to(device)


# ----------------------------------------------------------------------------------------------------------------------
# losses


def weighted_nll(logits, targets, weights):
    """(n, V), (n,) int64, (n,) -> (n,)."""
    return weights * F.cross_entropy(logits, targets, reduction="none")


def ar_loss(model, batch, generator=None):
    """(B, T + 1) int64 -> nats per token: next-token cross-entropy of a causal model. Needs no noise."""
    x, y = batch[:, :-1], batch[:, 1:].flatten()
    h = model.hidden(x).flatten(0, 1)  # (B T, C)
    # F.cross_entropy(model.head(h), y), without all B T x V logits at once (plumbing/head.py)
    return model.nll(h, y, torch.full(y.shape, 1 / y.numel(), device=y.device))


# ----------------------------------------------------------------------------------------------------------------------
# masked diffusion (MDLM)


def stratified(B, generator, device):
    """-> (B, 1) in [0, 1): one random offset plus i / B, mod 1: every batch covers the unit interval evenly."""
    u = uniform((1,), generator, device) + torch.arange(B, device=device) / B  # (B)
    return (u % 1)[:, None]


def add_noise(x0, t, mask_id, generator):
    """(B, T) int64, (B, 1) -> (B, T): each token becomes mask_id with probability t, since alpha_t = 1 - t."""
    return torch.where(uniform(x0.shape, generator, x0.device) < t, mask_id, x0)


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    """(B, T) int64 -> nats per token: a Monte Carlo estimate of the negative ELBO (MDLM eq. 10 with alpha_t = 1 - t).

    t is uniform in (eps, 1). The head runs on masked positions only. Divided by all B T tokens, not by the masked ones:
    only then is it a bound on the likelihood. DIFFERS if a = t_weight < 1: noise level t weighs (2 - a) / t^a, not 1/t
    (2 - a: the mean over t of t times it stays 1). That is no bound, but the network does not see t, so its optimum is
    the same, and the few tokens of a small t drown the rest no more.
    """
    # E over t in (eps, 1) of 1/t * sum over masked tokens of -log p(x0 | xt), from one t and one xt a sequence
    t = (1 - eps) * stratified(x0.size(0), generator, x0.device) + eps  # (B, 1)
    xt = add_noise(x0, t, model.mask_id, generator)
    masked = xt == model.mask_id  # (B, T), N of them
    h = model.hidden(xt)[masked]  # (N, C)
    weights = ((2 - t_weight) / t**t_weight).expand(xt.shape)[masked] / x0.numel()  # (N)
    # the sum of weights * F.cross_entropy(model.head(h), x0[masked], reduction="none"), without N x V logits at once
    return model.nll(h, x0[masked], weights)


def ranks(x):
    """(B, T) -> (B, T) int64: the place, from 0, that each number has in its row in rising order."""
    return x.argsort(1).argsort(1)  # where each place of the sorted row comes from, inverted


def nelbo(model, x0, generator):
    """(B, T) int64 -> nats per token: the same bound as diffusion_loss with less noise, for evaluation.

    The integral over t of the Bernoulli masks is, exactly, an average over l = 1 ... T masks of l uniformly chosen
    tokens with weight T / l (LLaDA eq. 6): no eps, and the number of masks no longer varies. l is stratified over B.
    """
    B, T = x0.shape
    n_masks = (stratified(B, generator, x0.device) * T).long() + 1  # (B, 1) in 1 ... T
    masked = (
        ranks(uniform(x0.shape, generator, x0.device)) < n_masks
    )  # (B, T): each set of that size equally likely
    h = model.hidden(x0.masked_fill(masked, model.mask_id))[masked]
    return model.nll(
        h, x0[masked], (1 / n_masks).expand(B, T)[masked] / B
    )  # T / l, over all B T tokens


def reveal_rate(t, s, sampler="ancestral"):
    """Times 0 <= s < t <= 1 -> the probability that the step t -> s reveals a masked token, whatever the network says.

    analytic is SEDD's Tweedie step, (e^ds - 1) / (e^sigma_t - 1) with sigma_t = -log(1 - t) and ds = sigma_t - sigma_s
    (here divided through by e^sigma_t, which is infinite at t = 1). It equals ancestral: same sampler, two papers.
    """
    if sampler == "ancestral":
        return (t - s) / t  # MDLM eq. 7: (alpha_s - alpha_t) / (1 - alpha_t)
    sigma_t, sigma_s = -torch.log1p(-t), -torch.log1p(-s)
    return ((-sigma_s).exp() - (-sigma_t).exp()) / -torch.expm1(-sigma_t)


def reveal_order(blank, times, sampler, generator):
    """(B, T) bool, (K + 1) or (B, K + 1) float64 falling to 0 -> (B, T) int64: by which network call of its row each
    blank is revealed (1, 2, ...); 0 elsewhere.

    Which tokens a step reveals does not depend on the network, so all of it is drawn beforehand. The network does not
    see t either, so the steps that reveal nothing in a row are left out of that row: with more steps than tokens the
    number of calls stops growing. first_hitting is the limit of infinitely many steps (Zheng et al. 2024).
    """
    if sampler in ("spread", "dimo"):
        return spread_order(blank, times.size(-1) - 1, generator)
    device = "cpu" if blank.device.type == "mps" else blank.device  # an Apple GPU has no float64
    u = uniform(blank.shape, generator, device, torch.float64)  # (B, T)
    if sampler == "first_hitting":
        step = u + 1  # a reveal time of its own for every token
    else:
        # The step that reveals a token: invert the distribution function of that step, 1 - P(still masked after it).
        times = times.to(device)
        kept = (1 - reveal_rate(times[..., :-1], times[..., 1:], sampler)).cumprod(
            -1
        )  # (K) or (B, K), falls to 0
        step = (
            torch.searchsorted(1 - kept[..., :-1], u, right=True).double() + 1
        )  # (B, T); K takes all that is left
    step = step.masked_fill(~blank.to(device), 0)
    # Number the steps that do occur in a row 1, 2, ...: one more wherever the sorted steps rise, put back in place.
    # Steps 7 0 3 7, sorted 0 3 7 7: calls 0 1 2 2, in place 2 0 1 2.
    ordered, where = step.sort(1)
    call = torch.diff(ordered, dim=1, prepend=torch.zeros_like(ordered[:, :1])).ne(0).cumsum(1)
    return torch.zeros_like(call).scatter(1, where, call).to(blank.device)


def spread_order(blank, steps, generator):
    """(B, T) bool -> (B, T) int64, as reveal_order: neighbours are never revealed together, if steps allow.

    Tokens revealed by one call are drawn independently, and the nearer they stand, the more they would have to know of
    each other. Here a row's blanks, numbered 0, 1, ... from the left, fall into K classes i mod K, and a random
    permutation says which call reveals which class. K is at most their number: then it is first_hitting.
    """
    K = blank.sum(1, keepdim=True).clamp(min=1, max=steps)  # (B, 1)
    u = uniform((len(blank), int(K.max())), generator, blank.device)
    u = u.masked_fill(
        torch.arange(u.size(1), device=u.device) >= K, 2
    )  # above any u: a row's own classes rank below
    number = blank.cumsum(1) - 1  # (B, T), of each blank
    return torch.where(
        blank, ranks(u).gather(1, number % K) + 1, 0
    )  # the rank of its class, from 1


def half_random(xt, model, generator):
    """(B, T) int64 -> (B, T): half of the masks, by chance, show a random token instead, as frequent as in the corpus.

    The start of Di[M]O's one-step student (distill.dimo_loss). It is nothing but noise, and that is the point: every
    place reads the same noise, so by it they can agree on one text. Given nothing but masks they could not.
    """
    if model.frequency is None:
        raise UserError(
            "Sampler 'dimo' is for what distill.py --method=dimo made. Use --sampler=spread."
        )
    u = uniform(xt.shape, generator, xt.device)
    noise = torch.searchsorted(model.frequency.cumsum(0), u, right=True).clamp(
        max=model.mask_id - 1
    )
    return torch.where(
        (xt == model.mask_id) & (uniform(xt.shape, generator, xt.device) < 0.5), noise, xt
    )


SAMPLERS = ("spread", "ancestral", "analytic", "first_hitting", "confidence", "dimo")
DEFAULTS = {
    "sampler": "spread",
    "steps": 64,
}  # where neither a knob nor a checkpoint says otherwise


@torch.no_grad()
def unmask(
    model, xt, steps, sampler="ancestral", temperature=1.0, top_p=1.0, generator=None, watch=None
):
    """(B, L) int64 with mask_id at the blanks -> (B, L) with all of them filled; other tokens stay as they are.

    L past block_size is filled in sliding windows, half a context at a time (MDLM's semi-autoregressive decoding). The
    default sampler is MDLM's; sample.py and eval.py ask for 'spread', or what a student was made for.
    watch(xt) is called after every change. Raises UserError for steps < 1 or an unknown sampler.
    """
    choose("sampler", sampler, SAMPLERS)
    if steps < 1:
        raise UserError(f"steps is {steps}; sampling takes at least 1 step.")
    if model.config.causal:
        raise UserError(
            "This is an autoregressive model: it generates left to right and cannot fill in blanks."
        )
    xt, size = xt.clone(), model.config.block_size
    fill = fill_by_confidence if sampler == "confidence" else fill_at_random
    last_start, stride = max(xt.size(1) - size, 0), max(size // 2, 1)
    for start in range(0, last_start + stride, stride):
        start = min(start, last_start)
        window = xt[:, start : start + size]  # a view: filling it fills xt
        fill(
            model,
            window,
            steps,
            sampler,
            temperature,
            top_p,
            generator,
            watch and (lambda: watch(xt)),
        )
    return xt


def in_chunks(f, h, V):
    """f: (n, C) -> (n, ...), row by row, applied to a few rows of (N, C) at a time: no N x V tensor when V is large."""
    return torch.cat([f(part) for part in h.split(max(1, 2**25 // V))])


def fill_at_random(model, xt, steps, sampler, temperature, top_p, generator, watch):
    """(B, T), in place: all samplers but confidence. They differ in the order of reveals, dimo also in its start."""
    mask_id, V = model.mask_id, model.config.vocab_size
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps  # 1 ... 0
    call = reveal_order(xt == mask_id, times, sampler, generator)  # (B, T)
    seen = (
        half_random(xt, model, generator) if sampler == "dimo" else xt
    )  # (B, T): what the network is shown
    for i in range(1, int(call.max()) + 1):
        reveal = call == i  # (B, T), N of them
        rows = reveal.any(1)
        h = model.hidden(seen[rows])[
            reveal[rows]
        ]  # (N, C): the head runs on what this step reveals
        tokens = in_chunks(
            lambda part: draw(model.head(part), generator, temperature, top_p=top_p), h, V
        )  # (N)
        seen[reveal] = xt[reveal] = tokens
        if watch:
            watch()


def fill_by_confidence(model, xt, steps, sampler, temperature, top_p, generator, watch):
    """(B, T), in place: draw all blanks, keep the most probable draws (MaskGIT, LLaDA). Fast, but it repeats itself."""

    def candidates_of(h):
        """(n, C) -> (n, 2): tokens drawn, and the untempered probability that the model gives them."""
        logits = model.head(h).float()
        tokens = draw(logits, generator, temperature, top_p=top_p)[:, None]
        return torch.cat(
            [tokens.float(), logits.softmax(-1).gather(1, tokens)], 1
        )  # ids are exact below 2^24

    n_blank = (xt == model.mask_id).sum(1)  # (B)
    for k in range(1, steps + 1):
        masked = xt == model.mask_id  # (B, T), N of them
        n_reveal = (
            masked.sum(1) - n_blank * (steps - k) // steps
        )  # (B): an even share of the blanks
        if not n_reveal.any():
            continue
        h = model.hidden(xt)[masked]  # (N, C)
        tokens, p = in_chunks(candidates_of, h, model.config.vocab_size).unbind(1)
        confidence = torch.full(xt.shape, -1.0, device=xt.device).masked_scatter(masked, p)
        surest = ranks(-confidence) < n_reveal[:, None]  # (B, T)
        xt.copy_(torch.where(surest, xt.masked_scatter(masked, tokens.long()), xt))
        if watch:
            watch()
