"""
The model: a GPT that is a masked diffusion language model with one flag, causal = False. Also the
losses of both, and the samplers of diffusion. (speculative.generate samples from a GPT.)

Read in this order: GPT, convert, diffusion_loss, unmask_steps, unmask.
Shapes: B batch, T sequence, C width, V vocabulary without [MASK], H heads, D = C / H, K sampling
steps, N masked positions. Losses are in nats per token.

MDLM: Sahoo et al. 2024, arXiv 2406.07524.
No time conditioning: Zheng et al. 2024, arXiv 2409.02908.
LLaDA: Nie et al. 2025, arXiv 2502.09992.
Code we learned most from: nanoGPT.
"""

import dataclasses
import functools
import importlib.util
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from configurator import UserError, choose
from plumbing.attention import flash_attention, is_slow_in_sdpa, sdpa
from plumbing.hardware import matmul_dtype
from plumbing.head import float32_linear
from plumbing.randomness import uniform

# --------------------------------------------------------------------------------------------------
# the transformer


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 256  # longest sequence, in tokens
    vocab_size: int = 50257  # V: [MASK] is not one of them
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384  # C
    dropout: float = 0.0
    causal: bool = False  # a position sees all others (diffusion); True: none after it (GPT)
    pos: str = "rope"  # 'rope' | 'learned'; __post_init__ sets 'none' for an LSTM or a CNN
    tie_weights: bool = True  # the head shares the token embedding
    # what published checkpoints need
    attn_bias: bool = False
    mlp_bias: bool = False
    ln_bias: bool = False
    head_bias: bool = False
    gelu_tanh: bool = False  # GPT-2's approximation, 3x slower than erf on a CPU in bfloat16
    attention: str = "sdpa"  # 'sdpa' | 'manual' | 'flash_attn': one function, computed three ways
    arch: str = "gpt"  # 'gpt' | 'lstm' | 'cnn': what its blocks are made of (drafters.py)

    def __post_init__(self):
        choose("arch", self.arch, ("gpt", "lstm", "cnn"))
        if self.arch != "gpt":
            if not self.causal:
                raise UserError(f"arch is {self.arch!r}, which is causal. Use --objective=ar.")
            self.pos = "none"  # an LSTM or a CNN needs no position embedding
            return
        choose("pos", self.pos, ("rope", "learned"))
        choose("attention", self.attention, ("sdpa", "manual", "flash_attn"))
        if self.attention == "flash_attn" and not importlib.util.find_spec("flash_attn"):
            raise UserError("attention is 'flash_attn': pip install flash-attn, or use 'sdpa'.")
        if self.n_head < 1 or self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} does not divide into {self.n_head} heads.")
        D = self.n_embd // self.n_head
        if self.pos == "rope" and D % 2:
            raise UserError(f"rope turns pairs, but n_embd / n_head {D} is odd. Use --pos=learned.")


def rope_tables(T, D, base=10000.0):
    """
    -> cos, sin (T, D). RoPE (Su et al. 2021) turns channels i and i + D/2 as a pair, by an angle of
    position times frequency i.
    """
    frequency = base ** (-torch.arange(0, D, 2) / D)  # (D/2)
    angle = torch.outer(torch.arange(T), frequency)  # (T, D/2)
    angle = torch.cat([angle, angle], dim=1)  # (T, D)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """(B, H, T, D), (T, D) -> (B, H, T, D)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos + turned * sin


def attend(q, k, v, causal):
    """
    q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D): softmax(q k^T / sqrt(D)) v.

    causal: a query sees its own position and those before it. The queries are the last Tq of the Tk
    positions: the first Tk - Tq keys are of tokens that were read before.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, Tq, Tk)
    if causal:
        Tq, Tk = scores.shape[-2:]
        sees = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
        scores = scores.masked_fill(~sees, -math.inf)
    return scores.softmax(dim=-1) @ v


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.causal = config.causal
        self.attention = config.attention
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.attn_bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache, layer):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if rope is not None:
            q = rotate(q, *rope)
            k = rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, cached + T, D) each

        if self.attention == "manual" or (self.attention == "sdpa" and is_slow_in_sdpa(q)):
            y = attend(q, k, v, self.causal)  # the one to read: the others compute the same
        elif self.attention == "flash_attn":
            y = flash_attention(q, k, v, self.causal)
        else:
            y = sdpa(q, k, v, self.causal)

        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.dropout(self.proj(y))


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

    def forward(self, x, rope, cache=None, layer=0):
        x = x + self.attn(self.ln_1(x), rope, cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """
    config.causal = True: a GPT. False: a masked diffusion model, with one more embedding row, for
    [MASK]. The head has V rows only, so [MASK] can't be predicted: MDLM's "zero masking
    probability" by construction.

    block_class: the class of its layers; drafters.py has others.
    """

    def __init__(self, config, block_class=Block):
        super().__init__()
        self.config = config
        self.mask_id = None if config.causal else config.vocab_size
        n_rows = config.vocab_size if config.causal else config.vocab_size + 1
        self.wte = nn.Embedding(n_rows, config.n_embd)
        self.wpe = None
        if config.pos == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        if config.pos == "rope":
            cos, sin = rope_tables(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)  # (block_size, D)
            self.register_buffer("sin", sin, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block_class(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lm_head = None  # tied: the first V rows of wte
        if not config.tie_weights:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head_bias = None
        if config.head_bias:
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.init_weights()

    def init_weights(self):
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, p in self.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.down.weight")):
                # GPT-2: 2 n_layer branches add up in the residual stream, so each starts smaller
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def hidden(self, idx, cache=None):
        """(B, T) int64 -> (B, T, C), before the head. idx follow the cached tokens, if any."""
        start = cache.length if cache is not None else 0
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise UserError(f"{end} tokens do not fit the context of {self.config.block_size}.")

        x = self.wte(idx)  # (B, T, C)
        rope = None
        if self.config.pos == "rope":
            dtype = matmul_dtype(x)  # that of queries and keys, under autocast, too
            rope = self.cos[start:end].to(dtype), self.sin[start:end].to(dtype)  # (T, D) each
        elif self.config.pos == "learned":
            x = x + self.wpe.weight[start:end]
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, cache, layer)
        if cache is not None:
            cache.length = end
        return self.ln_f(x)

    @property
    def head_weight(self):
        """(V, C)."""
        weight = self.wte.weight if self.lm_head is None else self.lm_head.weight
        return weight[: self.config.vocab_size]

    def head(self, h):
        """(..., C) -> (..., V) logits, which autocast does not round: see float32_linear."""
        return float32_linear(h, self.head_weight, self.head_bias)

    def forward(self, idx):
        """(B, T) int64 -> (B, T, V) logits."""
        return self.head(self.hidden(idx))


def convert(model, causal=False, block_size=None, dropout=0.0):
    """
    A trained GPT -> the masked diffusion model that starts from its weights: every position now
    sees every other. The one new row, [MASK], starts as the mean embedding: a token about which
    nothing is known. (A random row learns as fast.)

    The other way round, causal = True, the [MASK] row is dropped. A smaller block_size drops the
    last learned positions.
    """
    block_size = block_size or model.config.block_size
    config = dataclasses.replace(
        model.config, causal=causal, block_size=block_size, dropout=dropout
    )
    if config.pos == "learned" and block_size > model.config.block_size:
        n = model.config.block_size
        raise UserError(f"The model has learned {n} positions, no more. Use --block_size={n}.")

    weights = model.state_dict()
    rows = weights["wte.weight"]  # (V, C), or (V + 1, C) of a diffusion model
    if causal:
        rows = rows[: config.vocab_size]
    elif model.config.causal:
        rows = torch.cat([rows, rows.mean(dim=0, keepdim=True)])
    weights["wte.weight"] = rows
    if config.pos == "learned":
        weights["wpe.weight"] = weights["wpe.weight"][:block_size]

    converted = GPT(config, type(model.blocks[0]))
    converted.load_state_dict(weights)
    return converted.to(model.wte.weight)  # the same device and dtype


# --------------------------------------------------------------------------------------------------
# drawing tokens


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """
    (..., V) logits -> (..., V) float32, what tokens are drawn from. temperature 0: the argmax.

    top_k keeps the k most probable tokens (0: all), top_p the fewest that sum to at least top_p.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        smallest_kept = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    p = logits.softmax(-1)
    if top_p < 1:
        sorted_p, order = p.sort(-1, descending=True)
        before = sorted_p.cumsum(-1) - sorted_p  # what all more probable tokens sum to
        dropped = before >= top_p
        dropped[..., 0] = False  # never the most probable one
        sorted_p[dropped] = 0
        p = torch.zeros_like(p).scatter(-1, order, sorted_p)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(p, generator=None):
    """
    (..., V) probabilities, which need not sum to 1 -> (...) int64: exact draws, by inverting
    the float64 cumulative sum.

    Not Gumbel noise in float32: it cuts off the tail and flatters generative perplexity (Zheng et
    al. 2024). Not torch.multinomial: its V exponentials a row make it 5x slower on a CPU.
    """
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform(p.shape[:-1], generator, p.device, torch.float64)
    u = u[..., None] * cdf[..., -1:]  # the sum is 1 only up to rounding
    tokens = torch.searchsorted(cdf, u, right=True).squeeze(-1)  # right: never one of probability 0
    # clamp: u may round up to the whole sum
    return tokens.clamp(max=p.size(-1) - 1).to(device)


def draw_tokens(model, h, generator=None, temperature=1.0, top_p=1.0):
    """(N, C) -> (N,) int64: draws from the model's predictions."""
    # 128 MB of logits at a time, and twice that for the float64 sums of draw
    rows_at_once = max(1, 2**25 // model.config.vocab_size)
    tokens = []
    for part in h.split(rows_at_once):
        p = probabilities(model.head(part), temperature, top_p=top_p)
        tokens.append(draw(p, generator))
    return torch.cat(tokens)


# --------------------------------------------------------------------------------------------------
# losses


def ar_loss(model, batch, generator=None):
    """(B, T + 1) int64 -> nats per token: next-token cross-entropy."""
    logits = model(batch[:, :-1]).float()  # (B, T, V)
    targets = batch[:, 1:]  # (B, T)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def masked_nll(model, x0, masked, weight):
    """
    (B, T) int64, (B, T) bool, (B, 1) -> nats per token: the cross-entropy of the masked tokens of
    x0 given the others, times the weight of their row. The sum is divided by all B T tokens, as the
    bound demands, not by the masked ones. 0 if nothing is masked.
    """
    xt = x0.masked_fill(masked, model.mask_id)  # (B, T), N of them masked
    h = model.hidden(xt)[masked]  # (N, C): only masked positions are predicted
    logits = model.head(h).float()  # (N, V)
    losses = F.cross_entropy(logits, x0[masked], reduction="none")  # (N)
    weights = weight.expand_as(masked)[masked]  # (N): each token has the weight of its row
    return (weights * losses).sum() / x0.numel()


def stratified(B, generator, device):
    """
    -> (B, 1): row i is (offset + i / B) mod 1. Each is uniform in [0, 1), and together they are
    evenly spaced, so that the mean of a batch varies less.
    """
    offset = uniform((1,), generator, device)
    return ((offset + torch.arange(B, device=device) / B) % 1)[:, None]


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    """
    (B, T) int64 -> nats per token: a Monte Carlo estimate of the negative ELBO,

        E over t of  1/t * sum over masked positions of -log p(x0 | xt),  divided by T

    (MDLM eq. 10 with alpha_t = 1 - t). t is uniform in (eps, 1), stratified over the batch: the
    weight stays below 1/eps.

    Why 1/t: integrating over t gives each set of l masked tokens the weight 1 / (l C(T, l)). There
    are C(T, l) such sets, so every l counts equally, as in nelbo. The part below eps is left out.

    DIFFERS if a = t_weight < 1: the weight is (2 - a) / t^a, so that small t, with few masked
    tokens, counts less. This is not a bound, but it has the same optimum: x0 given xt does not
    depend on t, so p(x0 | xt) is optimal at every t. (2 - a) keeps the mean of t * weight at 1.
    """
    t = eps + (1 - eps) * stratified(len(x0), generator, x0.device)  # (B, 1)
    masked = uniform(x0.shape, generator, x0.device) < t  # (B, T)
    return masked_nll(model, x0, masked, weight=(2 - t_weight) / t**t_weight)


def rank_in_row(x):
    """(B, T) -> (B, T) int64: the rank of each number in its row, from 0."""
    in_order = x.argsort(dim=1)  # the position of the smallest, of the next ...
    return in_order.argsort(dim=1)  # a permutation's argsort is its inverse: position -> rank


@torch.no_grad()
def nelbo(model, x0, generator):
    """
    (B, T) int64 -> nats per token: the bound of diffusion_loss with less noise, for evaluation.

    The integral over t is, exactly, an average over n_masked = 1 ... T, each set of n_masked
    positions equally likely, with weight T / n_masked (LLaDA eq. 6): no eps, and n_masked is
    stratified over the batch.
    """
    B, T = x0.shape
    n_masked = 1 + (stratified(B, generator, x0.device) * T).long()  # (B, 1), uniform in 1 ... T
    u = uniform(x0.shape, generator, x0.device)
    masked = rank_in_row(u) < n_masked  # (B, T): a random set of n_masked positions
    return masked_nll(model, x0, masked, weight=T / n_masked)


# --------------------------------------------------------------------------------------------------
# sampling. The step of each position does not depend on the network, so all steps are drawn first.
# The head then runs only on the positions that a step unmasks

SAMPLERS = ("spread", "ancestral", "first_hitting", "confidence")
DEFAULTS = {"sampler": "spread", "steps": 64}  # unless a knob or the checkpoint says otherwise


def ancestral_steps(u, t, dt, n_steps):
    """
    u (B, T), the time at which each token becomes masked -> (B, T) int64, the step that unmasks it,
    from 1. Step j goes from t - (j - 1) dt to t - j dt. The last step, n_steps, also unmasks all
    tokens with a smaller u. 0: the token is not masked at t.

    With alpha_t = 1 - t the time u of each token is uniform in [0, 1) and does not depend on the
    network. A token is masked at t if u < t. The step from t to s unmasks the tokens with
    s <= u < t, a fraction (t - s) / t of the masked ones: MDLM's eq. 7.
    """
    # step j unmasks t - j dt <= u < t - (j - 1) dt; u >= t gives 0; the last step takes the rest
    return ((t - u) / dt).ceil().clamp(0, n_steps).long()


def unmask_steps(masked, n_steps, sampler, generator):
    """
    (B, T) bool -> (B, T) int64: the step, from 1, that unmasks each position; 0: it is not masked.
    Each row has its own random numbers. Raises UserError for a sampler that is none of these (for
    `confidence`, too, which has its own function):

        ancestral      each step is equally likely: ancestral_steps from t = 1 (also `analytic`)
        first_hitting  one position per step, in random order, whatever n_steps is
        spread         deals the masked positions, from left to right, to n_steps steps in turn;
                       the steps come in random order
    """
    B, T = masked.shape
    u = uniform((B, T), generator, masked.device)
    if sampler in ("ancestral", "analytic"):
        # analytic is SEDD's name: its step unmasks (e^(sigma_t - sigma_s) - 1) / (e^sigma_t - 1) of
        # the masked, and with sigma = -log(1 - t) that is (t - s) / t. One sampler, two papers
        step_of = ancestral_steps(u, t=1, dt=1 / n_steps, n_steps=n_steps)
    elif sampler == "first_hitting":
        # infinitely many steps: each unmasks at most one position of a row (Zheng et al. 2024)
        step_of = 1 + rank_in_row(u.masked_fill(~masked, 2))  # 2 is above any u: these come last
    elif sampler == "spread":
        # positions unmasked in one step do not see each other's tokens: keep them far apart
        noise = uniform((B, n_steps), generator, masked.device)
        order = rank_in_row(noise)  # (B, K) in 0 ... K - 1
        number = masked.cumsum(dim=1) - 1  # (B, T): 0, 1, 2 ... at the masked positions
        number = number.clamp(min=0)  # -1 before the first masked one; such positions get 0 below
        step_of = 1 + order.gather(1, number % n_steps)
    else:
        raise UserError(f"sampler is {sampler!r}; choose ancestral, first_hitting or spread.")
    return step_of.masked_fill(~masked, 0)


def close_gaps(step_of):
    """
    (B, T) int64 -> (B, T) int64: in each row the steps that occur become 1, 2, ... in their order;
    0 stays 0. Empty steps then cost nothing, and rows share forward passes: 1024 steps take at most
    T passes.
    """
    ordered, position = step_of.sort(dim=1)  # row 7 0 3 0 7 -> 0 0 3 7 7, and their positions
    before = ordered.new_zeros(len(ordered), 1)
    rises = ordered.diff(dim=1, prepend=before) > 0  # a new step starts: 0 0 1 1 0
    number = rises.cumsum(dim=1)  # 0 0 1 2 2
    return torch.zeros_like(step_of).scatter(1, position, number)  # back to where they came from


def step_temperature(step, n_steps, temperature, cooling):
    """
    -> the temperature of a step, from 1: `temperature` in the first, cooling * temperature in the
    last. The first tokens are drawn with little context, and all later steps see them; the last
    ones know their context, and nothing is built on them.
    """
    return temperature * (1 + (cooling - 1) * (step - 1) / max(n_steps - 1, 1))


@torch.no_grad()
def unmask(
    model,
    xt,
    n_steps,
    sampler="spread",
    *,
    temperature=1.0,
    cooling=1.0,
    top_p=1.0,
    generator=None,
    watch=None,
):
    """
    (B, T) int64 -> (B, T): masked positions are filled, all others stay. xt itself is not changed.

    unmask_steps says which step unmasks each position. close_gaps drops the empty steps: they are
    neither taken nor counted. Each step sees the tokens of all steps before it and draws at the
    temperature of step_temperature, with as many steps as the row that has most; a row with fewer
    is finished earlier. watch(xt) is called after each step.
    """
    xt = xt.clone()
    step_of = close_gaps(unmask_steps(xt == model.mask_id, n_steps, sampler, generator))  # (B, T)
    n_steps = int(step_of.max())  # empty steps are not taken
    for step in range(1, n_steps + 1):
        now = step_of == step  # (B, T)
        rows = now.any(dim=1)  # (B): no time input, so an unchanged row needs no forward pass
        h = model.hidden(xt[rows])[now[rows]]  # (N, C), in the same order as xt[now]
        temp = step_temperature(step, n_steps, temperature, cooling)
        xt[now] = draw_tokens(model, h, generator, temp, top_p)
        if watch:
            watch(xt)
    return xt


# --------------------------------------------------------------------------------------------------
# beside the story: the order of confidence, and texts longer than the context


@torch.no_grad()
def unmask_by_confidence(
    model, xt, n_steps, *, temperature=1.0, cooling=1.0, top_p=1.0, generator=None, watch=None
):
    """
    Like unmask, but every step draws all masked positions and keeps the most probable draws
    (MaskGIT, LLaDA). Fast, but its text is repetitive: read its perplexity beside its entropy.
    """
    xt = xt.clone()
    n_all = (xt == model.mask_id).sum(dim=1)  # (B)
    n_steps = min(n_steps, int(n_all.max()))  # each unmasks at least one token
    for step in range(1, n_steps + 1):
        masked = xt == model.mask_id  # (B, T), N of them
        n_left = n_all * (n_steps - step) // n_steps  # (B): the same fraction in every row
        n_now = masked.sum(dim=1) - n_left  # (B)
        h = model.hidden(xt)[masked]  # (N, C)
        temp = step_temperature(step, n_steps, temperature, cooling)
        tokens, p = draw_with_probability(model, h, generator, temp, top_p)  # (N) each
        confidence = torch.full(xt.shape, -1.0, device=xt.device)  # below any probability
        confidence[masked] = p
        drawn = xt.masked_scatter(masked, tokens)
        surest = rank_in_row(-confidence) < n_now[:, None]  # (B, T): the n_now best of each row
        xt = torch.where(surest, drawn, xt)
        if watch:
            watch(xt)
    return xt


def draw_with_probability(model, h, generator, temperature, top_p):
    """
    (N, C) -> the tokens that draw_tokens draws, (N,) int64, and their probabilities at temperature
    1, (N,) float32. The head is computed once for both.
    """
    rows_at_once = max(1, 2**25 // model.config.vocab_size)
    tokens = []
    found = []
    for part in h.split(rows_at_once):
        logits = model.head(part).float()  # (n, V)
        drawn = draw(probabilities(logits, temperature, top_p=top_p), generator)  # (n)
        tokens.append(drawn)
        found.append(logits.softmax(-1).gather(1, drawn[:, None])[:, 0])
    return torch.cat(tokens), torch.cat(found)


def show_window(watch, xt, start, window):
    """Calls watch with the whole text: xt, with the unfinished window put in at start."""
    xt = xt.clone()
    xt[:, start : start + window.size(1)] = window
    watch(xt)


@torch.no_grad()
def unmask_any(model, xt, n_steps, sampler="spread", *, watch=None, **options):
    """
    (B, L) int64 -> (B, L): unmask with any sampler, any length L. A text longer than block_size is
    filled in windows that overlap by half; each window is given the tokens of the one before
    (MDLM's semi-autoregressive decoding). options: temperature, cooling, top_p, generator.
    """
    if model.config.causal:
        raise UserError("This is a GPT: it generates left to right and cannot fill in masks.")
    choose("sampler", sampler, (*SAMPLERS, "analytic"))
    if n_steps < 1:
        raise UserError(f"steps is {n_steps}; sampling takes at least 1 step.")
    if sampler == "confidence":
        fill = unmask_by_confidence
    else:
        fill = functools.partial(unmask, sampler=sampler)

    xt = xt.clone()
    size = model.config.block_size
    last_start = max(xt.size(1) - size, 0)
    starts = [*range(0, last_start, max(size // 2, 1)), last_start]
    for start in starts:
        window = xt[:, start : start + size]
        show = functools.partial(show_window, watch, xt, start) if watch else None
        xt[:, start : start + size] = fill(model, window, n_steps, watch=show, **options)
    return xt
