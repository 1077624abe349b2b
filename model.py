"""
The one model file: a GPT, the masked diffusion language model that the same block becomes, and how to sample from both.

Read it in this order: GPT (one `causal` flag is the whole difference between the two models), diffusion_loss, sample.
Shapes: B batch, T sequence, C width, V real tokens, H heads, D = C / H, N masked positions, K sampling steps.
Losses are in nats per token.

MDLM: Sahoo et al. 2024, arXiv 2406.07524.  No time conditioning: Zheng et al. 2024, arXiv 2409.02908.
LLaDA: Nie et al. 2025, arXiv 2502.09992.   Code we learnt most from: nanoGPT.
"""

import contextlib
import dataclasses
import datetime
import functools
import glob
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import time
import types

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import data
from configurator import UserError, choose
from plumbing.hardware import pick_device

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
    attention: str = "sdpa"  # 'sdpa' | 'manual' | 'flash_attn': the same function, computed three ways
    arch: str = "gpt"  # 'gpt' | 'lstm' | 'cnn': what its blocks are made of; the small causal two are for drafting
    kernel_size: int = 5  # of the cnn, in tokens

    def __post_init__(self):
        choose("arch", self.arch, ("gpt", "lstm", "cnn"))
        if self.arch != "gpt":
            if not self.causal:
                raise UserError(f"arch is {self.arch!r}, which sees the past only: it takes --objective=ar.")
            self.pos = "none"  # they know the order of tokens without positions
            return
        choose("pos", self.pos, ("rope", "learned"))
        choose("attention", self.attention, ("sdpa", "manual", "flash_attn"))
        if self.attention == "flash_attn" and not importlib.util.find_spec("flash_attn"):
            raise UserError(
                "attention is 'flash_attn', but the package is missing: pip install flash-attn, or use 'sdpa'."
            )
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads.")
        if self.pos == "rope" and self.n_embd // self.n_head % 2:
            raise UserError(
                f"rope turns pairs of channels, but n_embd / n_head = {self.n_embd // self.n_head} is odd. "
                "Choose an even head size or --pos=learned."
            )


def rope_tables(T, D, base=10000.0):
    """-> cos, sin (T, 1, 1, D) of RoPE (Su et al. 2021), channel i paired with i + D/2 ("rotate half").

    The sign of rotate_half is folded into sin, so that a rotation is x * cos + roll(x, D/2) * sin.
    """
    freq = base ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)  # (D/2)
    angle = torch.outer(torch.arange(T, dtype=torch.float32), freq)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], 1)[:, None, None], torch.cat([-sin, sin], 1)[:, None, None]


def rotate(x, cos, sin):
    """(B, T, 2, H, D), (T, 1, 1, D) -> (B, T, 2, H, D): q and k turned by an angle that grows with position."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.size(-1) // 2, -1), sin.to(x.dtype))


@functools.lru_cache(maxsize=8)  # every layer asks for the same one
def causal_mask(n_query, n_key, device):
    """-> (n_query, n_key) bool, True where a query may look: the queries are the last n_query of the keys."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def attend(q, k, v, causal, kind, mask=None):
    """q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D): softmax(q k^T / sqrt(D)) v.

    mask (B, 1, Tq, Tk) bool: where a query may look, instead of `causal`.
    """
    Tq, Tk = q.size(2), k.size(2)
    if kind == "flash_attn" and mask is None:
        from flash_attn import flash_attn_func

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D); its causal mask is aligned to the last key
        return flash_attn_func(q, k, v, causal=causal).transpose(1, 2)
    # On a CPU the backward of SDPA is as slow in bfloat16 as in float32: there the three lines below train 1.4x faster.
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and Tk <= 512
    if kind == "manual" or slow:
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, Tq, Tk)
        if causal or mask is not None:
            scores = scores.masked_fill(~(causal_mask(Tq, Tk, q.device) if mask is None else mask), -math.inf)
        return scores.softmax(-1) @ v
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if causal and 1 < Tq < Tk:  # new queries after cached keys: SDPA's is_causal would align them to the first key
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(Tq, Tk, q.device))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and Tq > 1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.causal, self.kind = config.n_head, config.causal, config.attention
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.attn_bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        qk, v = qkv.split([2, 1], 2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k, v = (x.transpose(1, 2) for x in (*qk.unbind(2), v.squeeze(2)))  # (B, H, T, D)
        mask = None
        if cache is not None:
            k, v, mask = cache(k, v)  # (B, H, past + T, D)
        y = attend(q, k, v, self.causal, self.kind, mask)
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


class LSTMBlock(nn.Module):
    """x + LSTM(norm(x)). The cache keeps the state after every token, so that a rollback is an index."""

    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache=None):
        y = self.ln(x)  # (B, T, C)
        if cache is None:
            with torch.autocast(x.device.type, enabled=False):  # on CUDA it would choose float16
                return x + self.dropout(self.lstm(y.float())[0])
        past = cache.before(1)  # (2, B, 1, C): h and c after the last token
        h, c = past[0].transpose(0, 1).contiguous(), past[1].transpose(0, 1).contiguous()  # (1, B, C)
        states = []
        for y_i in y.split(1, 1):
            _, (h, c) = self.lstm(y_i, (h, c))
            states.append(torch.stack([h, c])[:, 0])  # (2, B, C)
        states = torch.stack(states, 2)  # (2, B, T, C)
        cache(*states[:, :, None])
        return x + states[0].to(x.dtype)


class ConvBlock(nn.Module):
    """x + GELU(conv(norm(x))), padded on the left only: position i sees i - kernel_size + 1 ... i."""

    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.conv = nn.Conv1d(config.n_embd, config.n_embd, config.kernel_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache=None):
        y, before = self.ln(x), self.conv.kernel_size[0] - 1  # (B, T, C)
        if cache is None:
            y = F.pad(y, (0, 0, before, 0))  # (B, before + T, C)
        else:
            past = cache.before(before)[0]  # (B, before, C)
            cache(y[:, None], y[:, None])
            y = torch.cat([past, y], 1)
        return x + self.dropout(F.gelu(self.conv(y.transpose(1, 2))).transpose(1, 2))


class KVCache:
    """What the layers remember of each token so far: keys and values (an LSTM's states, a CNN's inputs).

    Setting `length` back forgets the tokens after it. It is an int, or (B,) int64 if the rows differ.
    """

    def __init__(self, config, batch_size, device, dtype=torch.float32):
        heads = config.n_head if config.arch == "gpt" else 1
        shape = (2, batch_size, heads, config.block_size, config.n_embd // heads)
        # zeros: a short row meets the places that only longer rows have filled with weight 0, and 0 * NaN is NaN
        self.kv = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0

    def positions(self, T):
        """-> where the next T tokens stand, an index: a slice, or (B, T) int64 if the rows differ."""
        if torch.is_tensor(self.length):
            return self.length[:, None] + torch.arange(T, device=self.length.device)
        return slice(self.length, self.length + T)

    def layer(self, i):
        return LayerCache(self, self.kv[i])

    def keep(self, rows):
        """(B,) bool: drops the other rows."""
        self.kv = [kv[:, rows] for kv in self.kv]
        self.length = self.length[rows] if torch.is_tensor(self.length) else self.length


class LayerCache:
    """One layer's share of a KVCache."""

    def __init__(self, cache, kv):
        self.cache, self.kv = cache, kv  # kv (2, B, H, block_size, D)

    def __call__(self, k, v):
        """Stores (B, H, T, D) keys and values of new tokens.

        -> all of them so far, (B, H, end, D) x 2 with end the longest row's, and None, or if the rows differ (B, 1, T,
        end) bool, True where a token may look: at what its own row has so far.
        """
        where = self.cache.positions(k.size(2))
        if isinstance(where, slice):
            self.kv[0, :, :, where], self.kv[1, :, :, where] = k, v
            return self.kv[0, :, :, : where.stop], self.kv[1, :, :, : where.stop], None
        rows, end = torch.arange(len(where), device=where.device)[:, None], int(where.max()) + 1
        self.kv[0, rows, :, where] = k.transpose(1, 2).to(self.kv.dtype)
        self.kv[1, rows, :, where] = v.transpose(1, 2).to(self.kv.dtype)
        mask = torch.arange(end, device=where.device) <= where[:, None, :, None]
        return self.kv[0, :, :, :end], self.kv[1, :, :, :end], mask

    def before(self, n):
        """-> (2, B, n, C): what a cache of one head remembers of the last n tokens, zeros where there are none."""
        length = self.cache.length
        length = length[:, None] if torch.is_tensor(length) else torch.full((self.kv.size(1), 1), length)
        where = length.to(self.kv.device) - n + torch.arange(n, device=self.kv.device)  # (B, n)
        rows = torch.arange(len(where), device=where.device)[:, None]
        past = self.kv[:, rows, 0, where.clamp(min=0)]  # (2, B, n, C)
        return past.masked_fill((where < 0)[..., None], 0)


class GPT(nn.Module):
    """config.causal: a GPT. Not causal: a masked diffusion language model, with one more embedding row for [MASK].

    The head has V rows, so [MASK] can never be predicted: MDLM's "zero masking probability", by construction.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.mask_id = None if config.causal else config.vocab_size
        self.wte = nn.Embedding(config.vocab_size + (not config.causal), config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.pos == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        block = {"gpt": Block, "lstm": LSTMBlock, "cnn": ConvBlock}[config.arch]
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lm_head = None if config.tie_weights else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        if config.pos == "rope":
            cos, sin = rope_tables(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init)
        for block in self.blocks if config.arch == "gpt" else ():
            for last in (block.attn.proj, block.mlp.down):  # GPT-2: 2 n_layer branches add up, so each starts smaller
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
        where = cache.positions(T) if cache else slice(0, T)
        end = where.stop if isinstance(where, slice) else int(where.max()) + 1
        if end > self.config.block_size:
            raise UserError(f"{end} tokens are more than this model's context of {self.config.block_size}.")
        x = self.wte(idx)  # (B, T, C)
        if self.config.pos == "rope":
            rope = self.cos[where], self.sin[where]
        elif self.wpe is not None:
            x = x + self.wpe.weight[where]
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, cache.layer(i) if cache else None)
        if cache:
            cache.length = cache.length + T
        return self.ln_f(x)

    @property
    def head_weight(self):
        """(V or V + 1, C): only the first V rows are the head's."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def head(self, h):
        """(..., C) -> (..., V) logits."""
        return F.linear(h, self.head_weight[: self.config.vocab_size], self.head_bias)

    def frozen_head(self):
        """-> f: (n, C) -> (n, V) float32 logits, outside autograd, computed in what head_loss uses."""
        W, kind = self.head_weight[: self.config.vocab_size].detach(), self.wte.weight.device.type
        low = torch.is_autocast_enabled(kind) and torch.is_grad_enabled()
        W = W.to(torch.get_autocast_dtype(kind)) if low else W
        b = 0 if self.head_bias is None else self.head_bias.detach()
        return lambda h: F.linear(h.to(W.dtype), W).float() + b

    def forward(self, idx):
        return self.head(self.hidden(idx))

    def head_loss(self, h, loss_of, *rows, part=0, parts=1):
        """(N, C), loss_of, (N, ...) rows -> scalar: the sum of loss_of((n, V) logits, *n of the rows) -> (n,) losses.

        Never N x V at once. parts > 1: only the logits of slice_of_vocab, the gradient of their weights times parts.
        """
        weight, bias, V = self.head_weight, self.head_bias, self.config.vocab_size
        at_least, logits_at_once = ROWS_AT_ONCE[h.device.type]
        n = max(at_least, logits_at_once // -(-V // parts))  # the same for every part, though their sizes may differ
        if parts > 1:
            first, end = slice_of_vocab(V, part, parts)
            weight, bias = (p if p is None else p[first:end] for p in (weight, bias))
            weight, bias = (p if p is None else p + (parts - 1) * (p - p.detach()) for p in (weight, bias))
            V = end - first
        args = loss_of, n, h, weight, bias, V
        return HeadLoss.apply(*args, torch.is_grad_enabled(), *rows)  # inside apply, grad mode is always off

    def nll(self, h, targets, weights):
        """(N, C), (N,) int64, (N,) float32 -> scalar: sum of weights * -log p(targets | h)."""
        return self.head_loss(h, weighted_nll, targets, weights)

    @classmethod
    def from_pretrained(cls, name):
        """'gpt2', 'mdlm-owt', 'sdtt:kld:7' ... (see PUBLISHED), a folder or a ckpt.pt -> GPT in eval mode."""
        return load_model(name)[0]

    def load_weights(self, weights):
        """A state_dict of this shape, or of its twin with the other `causal`: only the [MASK] row differs.

        Learned positions past this context are dropped. Raises UserError where a key or a shape does not fit.
        """
        weights, rows = dict(weights), self.wte.num_embeddings
        wte = weights.get("wte.weight")
        if wte is not None and abs(wte.size(0) - rows) == 1:  # to diffusion: [MASK] starts as the mean token
            weights["wte.weight"] = torch.cat([wte, wte.mean(0, keepdim=True)])[:rows]
        if self.wpe is not None and "wpe.weight" in weights:
            weights["wpe.weight"] = weights["wpe.weight"][: self.config.block_size]
        own = self.state_dict()
        odd = sorted(own.keys() ^ weights.keys()) or [k for k in own if own[k].shape != weights[k].shape]
        if odd:
            shapes = [tuple(d[odd[0]].shape) if odd[0] in d else "nothing" for d in (weights, own)]
            raise UserError(
                f"The weights do not fit this model: {odd[0]} is {shapes[0]} there, {shapes[1]} here "
                f"({len(odd)} differences). They belong to another model."
            )
        self.load_state_dict(weights)

    @torch.no_grad()
    def generate(self, idx, n_new, temperature=1.0, top_k=0, top_p=1.0, generator=None, use_cache=True):
        """(B, T) int64 -> (B, T + n_new): autoregressive sampling, T >= 1.

        Past block_size the window drops its older half at once, so the cache is refilled once in block_size / 2 tokens;
        use_cache=False computes the same windows without one (DIFFERS from nanoGPT, which slides by one token).
        """
        size, T = self.config.block_size, idx.size(1)
        cache = KVCache(self.config, idx.size(0), idx.device, self.wte.weight.dtype) if use_cache else None
        out = torch.cat([idx, idx.new_zeros(idx.size(0), n_new)], 1)
        start = 0
        for end in range(T, T + n_new):
            if end - start > size:
                start = end - max(size // 2, 1)
                if cache:
                    cache.length = 0
            new = out[:, start + (cache.length if cache else 0) : end]
            h = self.hidden(new, cache)[:, -1]  # (B, C)
            out[:, end] = draw(self.head(h), generator, temperature, top_k, top_p)
        return out


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
        best = best.masked_fill(best.cumsum(-1) - best >= top_p, 0)  # a token stays if those before it fall short
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
    """(..., V) probabilities -> (...) int64."""
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform((*p.shape[:-1], 1), generator, p.device, torch.float64) * cdf[..., -1:]
    return torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp(max=p.size(-1) - 1).to(device)


def generator(*key, device="cpu"):
    """Any ints and strings -> a torch.Generator seeded by all of them. Same key, same numbers; other key, others."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    device = "cpu" if "mps" in str(device) else device  # an Apple GPU draws no float64: its numbers come from the CPU
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(shape, generator, device, dtype=torch.float32):
    """-> numbers in [0, 1) of that shape on device, drawn where the generator lives (None: torch's own)."""
    where = generator.device if generator else "cpu"
    return torch.rand(shape, dtype=dtype, device=where, generator=generator).to(device)


# ----------------------------------------------------------------------------------------------------------------------
# losses


ROWS_AT_ONCE = {"cpu": (128, 2**19), "cuda": (1024, 2**26), "mps": (256, 2**22)}  # at least rows, else logits


class HeadLoss(torch.autograd.Function):
    """sum_n loss_of(h_n W^T + b, rows_n), in chunks of n.

    The gradient of a chunk's losses by its logits is taken at once and carried on to h, W and b: no N x V tensor ever
    exists, and nothing is computed twice (under checkpointing it would be).
    """

    @staticmethod
    def forward(ctx, loss_of, n, h, weight, bias, V, need_grad, *rows):
        dtype = torch.get_autocast_dtype(h.device.type) if torch.is_autocast_enabled(h.device.type) else h.dtype
        if not need_grad:  # evaluation: GPT-2's logits are about -100, where bfloat16 counts in halves
            dtype = torch.float32
        W = weight[:V].to(dtype)  # (V, C)
        n = max(1, min(h.size(0), n))
        low, whole = (torch.empty(n, V, dtype=d, device=h.device) for d in (dtype, torch.float32))  # serve all chunks
        loss = torch.zeros((), device=h.device)
        ctx.n_rows = len(rows)
        if need_grad:
            dh, dW, dW_low = torch.zeros_like(h), torch.zeros_like(weight), torch.empty_like(W)
            db = None if bias is None else torch.zeros_like(bias)
            ctx.grads = dh, dW, db  # not save_for_backward: nobody else holds them, so backward may scale them in place
        with torch.autocast(h.device.type, enabled=False):
            for i in range(0, h.size(0), n):
                hi = h[i : i + n].to(dtype)
                z = whole[: len(hi)].copy_(torch.mm(hi, W.T, out=low[: len(hi)]))  # (n, V)
                if bias is not None:
                    z += bias
                with torch.set_grad_enabled(need_grad):
                    value = loss_of(z.requires_grad_(need_grad), *(r[i : i + n] for r in rows)).sum()
                loss += value.detach()
                if not need_grad:
                    continue
                (dz,) = torch.autograd.grad(value, z)
                if bias is not None:
                    db += dz.sum(0)
                dz_low = low[: len(hi)].copy_(dz)
                del value, dz  # and all that they hold, before the next chunk needs as much
                dh[i : i + n] = dz_low @ W
                dW[:V] += torch.mm(dz_low.T, hi, out=dW_low)
        return loss

    @staticmethod
    def backward(ctx, grad):
        dh, dW, db = ctx.grads
        ctx.grads = None
        return (
            None,
            None,
            dh.mul_(grad),
            dW.mul_(grad),
            None if db is None else db.mul_(grad),
            *[None] * (2 + ctx.n_rows),
        )


def slice_of_vocab(V, part, parts):
    """-> first, end: the tokens of the part-th of so many parts."""
    return V * part // parts, V * (part + 1) // parts


def weighted_nll(logits, targets, weights):
    """(n, V), (n,) int64, (n,) -> (n,)."""
    return weights * F.cross_entropy(logits, targets, reduction="none")


def ar_loss(model, batch, generator=None):
    """(B, T + 1) int64 -> nats per token: next-token cross-entropy of a causal model. Needs no noise."""
    x, y = batch[:, :-1], batch[:, 1:].flatten()
    h = model.hidden(x).flatten(0, 1)  # (B T, C)
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

    The head runs on masked positions only. Divided by all B T tokens, not by the masked ones: only then is it a bound
    on the likelihood. DIFFERS if t_weight a < 1: noise level t weighs (2 - a) / t^a instead of 1 / t. That is no bound,
    but the network does not see t, so its optimum is the same, and the few tokens of a small t drown the rest no more.
    """
    t = (1 - eps) * stratified(x0.size(0), generator, x0.device) + eps  # (B, 1)
    xt = add_noise(x0, t, model.mask_id, generator)
    masked = xt == model.mask_id  # (B, T), N of them
    h = model.hidden(xt)[masked]  # (N, C)
    weights = ((2 - t_weight) / t**t_weight).expand(xt.shape)[masked] / x0.numel()  # (N)
    return model.nll(h, x0[masked], weights)


def nelbo(model, x0, generator):
    """(B, T) int64 -> nats per token: the same bound as diffusion_loss with less noise, for evaluation.

    The integral over t of the Bernoulli masks is, exactly, an average over l = 1 ... T masks of l uniformly chosen
    tokens with weight T / l (LLaDA eq. 6): no eps, and the number of masks no longer varies. l is stratified over B.
    """
    B, T = x0.shape
    n_masks = (stratified(B, generator, x0.device) * T).long() + 1  # (B, 1) in 1 ... T
    masked = uniform(x0.shape, generator, x0.device).argsort(1).argsort(1) < n_masks  # (B, T)
    h = model.hidden(x0.masked_fill(masked, model.mask_id))[masked]
    return model.nll(h, x0[masked], (1 / n_masks).expand(B, T)[masked] / B)


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
    device = "cpu" if blank.device.type == "mps" else blank.device
    u = uniform(blank.shape, generator, device, torch.float64)  # (B, T)
    if sampler == "first_hitting":
        step = u + 1  # a reveal time of its own for every token
    else:
        times = times.to(device)
        kept = (1 - reveal_rate(times[..., :-1], times[..., 1:], sampler)).cumprod(-1)  # P(still masked after the step)
        step = torch.searchsorted(1 - kept[..., :-1], u, right=True).double() + 1  # (B, T) in 1 ... K
    step = step.masked_fill(~blank.to(device), 0)
    ordered, where = step.sort(1)
    call = torch.diff(ordered, dim=1, prepend=torch.zeros_like(ordered[:, :1])).ne(0).cumsum(1)
    return torch.zeros_like(call).scatter(1, where, call).to(blank.device)


SAMPLERS = ("ancestral", "analytic", "first_hitting", "confidence")


@torch.no_grad()
def sample(model, xt, steps, sampler="ancestral", temperature=1.0, top_p=1.0, generator=None, watch=None):
    """(B, L) int64 with mask_id at the blanks -> (B, L) with all of them filled; other tokens stay as they are.

    L past block_size is filled in sliding windows, half a context at a time (MDLM's semi-autoregressive decoding).
    watch(xt) is called after every change. Raises UserError for steps < 1 or an unknown sampler.
    """
    choose("sampler", sampler, SAMPLERS)
    if steps < 1:
        raise UserError(f"steps is {steps}; sampling takes at least 1 step.")
    if model.config.causal:
        raise UserError("This is an autoregressive model: it generates left to right and cannot fill in blanks.")
    xt, size = xt.clone(), model.config.block_size
    fill = fill_by_confidence if sampler == "confidence" else fill_at_random
    last, stride = max(xt.size(1) - size, 0), max(size // 2, 1)
    for start in range(0, last + stride, stride):
        start = min(start, last)
        window = xt[:, start : start + size]  # a view: filling it fills xt
        fill(model, window, steps, sampler, temperature, top_p, generator, watch and (lambda: watch(xt)))
    return xt


def in_chunks(f, h, V):
    """f: (n, C) -> (n, ...), row by row, applied to a few rows of (N, C) at a time: no N x V tensor when V is large."""
    return torch.cat([f(part) for part in h.split(max(1, 2**25 // V))])


def fill_at_random(model, xt, steps, sampler, temperature, top_p, generator, watch):
    """(B, T), in place: ancestral, analytic and first_hitting, which differ only in the order of reveals."""
    mask_id = model.mask_id
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps  # 1 ... 0
    call = reveal_order(xt == mask_id, times, sampler, generator)  # (B, T)
    for i in range(1, int(call.max()) + 1):
        reveal = call == i  # (B, T), N of them
        rows = reveal.any(1)
        h = model.hidden(xt[rows])[reveal[rows]]  # (N, C): the head runs on what this step reveals
        xt[reveal] = in_chunks(lambda part: draw(model.head(part), generator, temperature, top_p=top_p), h, mask_id)
        if watch:
            watch()


def fill_by_confidence(model, xt, steps, sampler, temperature, top_p, generator, watch):
    """(B, T), in place: draw all blanks, keep the most probable draws (MaskGIT, LLaDA). Fast, but it repeats itself."""
    n_blank = (xt == model.mask_id).sum(1)  # (B)
    for k in range(1, steps + 1):
        masked = xt == model.mask_id
        n_reveal = masked.sum(1) - n_blank * (steps - k) // steps  # (B): an even share of the blanks
        rows = n_reveal > 0
        if not rows.any():
            continue

        def candidates_of(h):
            """(n, C) -> (n, 2): tokens drawn, and the untempered probability that the model gives them."""
            logits = model.head(h).float()
            tokens = draw(logits, generator, temperature, top_p=top_p)[:, None]
            return torch.cat([tokens.float(), logits.softmax(-1).gather(1, tokens)], 1)  # ids are exact below 2^24

        h = model.hidden(xt[rows])[masked[rows]]  # (N, C)
        tokens, p = in_chunks(candidates_of, h, model.mask_id).unbind(1)
        candidates = xt[rows].masked_scatter(masked[rows], tokens.long())
        confidence = torch.full(candidates.shape, -1.0, dtype=p.dtype, device=xt.device)
        confidence[masked[rows]] = p
        rank = confidence.argsort(1, descending=True).argsort(1)
        xt[rows] = torch.where(rank < n_reveal[rows, None], candidates, xt[rows])
        if watch:
            watch()


# ----------------------------------------------------------------------------------------------------------------------
# drafters: what guesses the next tokens of a GPT. A causal GPT (of any arch), NGram, Lookup and Diffusion are drafters.


class NGram:
    """Counts of all sequences of up to n tokens in sorted integer keys: fitted and queried without a loop over tokens.

    An m-gram's key is (number of its first m - 1 tokens in the table of (m - 1)-grams) * V + its last token: all
    continuations of a context are neighbours. smoothing: 'kneser_ney' (interpolated, absolute discount) or 'laplace'
    (adds alpha to every count after the longest context that was seen).
    """

    def __init__(self, n, vocab_size, smoothing="kneser_ney", discount=0.75, alpha=0.1):
        choose("smoothing", smoothing, ("kneser_ney", "laplace"))
        if not 1 <= n <= 8:
            raise UserError(f"ngram_n is {n}; it must be from 1 to 8.")
        self.n, self.V, self.smoothing, self.discount, self.alpha = n, vocab_size, smoothing, discount, alpha

    def fit(self, tokens):
        """(N,) token ids, or (R, N) of R texts -> self."""
        tokens = np.atleast_2d(np.asarray(tokens, dtype=np.int64))  # no m-gram spans two texts
        if tokens.shape[1] < self.n:
            raise UserError(f"The corpus has {tokens.shape[1]} tokens, fewer than one {self.n}-gram.")
        self.keys, self.counts = [np.arange(self.V)], [np.bincount(tokens.ravel(), minlength=self.V)]
        number = tokens  # of the m-gram that ends at each position
        for m in range(2, self.n + 1):
            key = number[:, :-1] * self.V + tokens[:, m - 1 :]
            keys, number, counts = np.unique(key, return_inverse=True, return_counts=True)
            number = number.reshape(key.shape)
            self.keys.append(keys)
            self.counts.append(counts)
        return self.prepare()

    def prepare(self):
        """For each m: where a context's m-grams start, the share of each, what is left to shorter contexts."""
        used = self.counts
        if self.smoothing == "kneser_ney":  # below the top, an m-gram counts once for each token that came before it
            longer = range(2, self.n + 1)
            used = [np.bincount(self.find(self.grams(m)[:, 1:])[0], minlength=len(self.keys[m - 2])) for m in longer]
            used.append(self.counts[-1])
            free = self.discount * (used[0] > 0).sum() / self.V  # for tokens never seen
            self.unigram = (np.maximum(used[0] - self.discount, 0) + free) / used[0].sum()
        else:
            self.unigram = (used[0] + self.alpha) / (used[0].sum() + self.alpha * self.V)
        self.unigram = self.unigram.astype(np.float32)
        self.start, self.share, self.left = [None], [None], [None]
        for keys, shorter, count in zip(self.keys[1:], self.keys, used[1:], strict=False):
            context, size = keys // self.V, len(shorter)
            total = np.bincount(context, count, size)
            if self.smoothing == "kneser_ney":
                left = self.discount * np.bincount(context, count > 0, size) / np.maximum(total, 1)
                left[total == 0] = 1
                share = np.maximum(count - self.discount, 0) / np.maximum(total, 1)[context]
            else:
                left = self.alpha / (total + self.alpha * self.V)
                share = count / (total + self.alpha * self.V)[context]
            self.start.append(np.concatenate([[0], np.bincount(context, minlength=size).cumsum()]))
            self.share.append(share.astype(np.float32))
            self.left.append(left.astype(np.float32))
        return self

    def grams(self, m):
        """-> (M, m): all m-grams in the order of their table."""
        columns, number = [], np.arange(len(self.keys[m - 1]))
        for keys in self.keys[m - 1 : 0 : -1]:
            number, last = np.divmod(keys[number], self.V)
            columns.append(last)
        return np.stack([number, *columns[::-1]], 1)

    def find(self, grams):
        """(B, m) -> (B,) their numbers in the table of m-grams, (B,) bool: whether they are in it."""
        number, found = np.maximum(grams[:, 0], 0), grams[:, 0] >= 0
        for keys, token in zip(self.keys[1:], grams.T[1:], strict=False):
            key = number * self.V + token
            number = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            found &= keys[number] == key
        return number, found

    def log_probs(self, context):
        """(B, n - 1) int64, -1 where the text has not begun -> (B, V) float32 log-probabilities of the next token."""
        p = np.tile(self.unigram, (len(context), 1))
        for m in range(2, self.n + 1):
            number, found = self.find(context[:, self.n - m :])
            low, high = self.start[m - 1][number], self.start[m - 1][number + 1]
            rows = (found & (low < high)).nonzero()[0]
            number, low, many = number[rows], low[rows], (high - low)[rows]
            left = self.left[m - 1][number][:, None]
            p[rows] = left if self.smoothing == "laplace" else p[rows] * left
            row = np.repeat(np.arange(len(rows)), many)  # of each known continuation
            entry = np.arange(len(row)) + (low - many.cumsum() + many)[row]
            p[rows[row], self.keys[m - 1][entry] % self.V] += self.share[m - 1][entry]
        return torch.from_numpy(p).log_()

    def __call__(self, idx):
        """(B, T) int64 -> (B, T, V): position i has the log-probabilities of token i + 1."""
        B, T = idx.shape
        padded = F.pad(idx.cpu(), (self.n - 2, 0), value=-1) if self.n > 1 else idx[:, :0].cpu()
        contexts = padded.unfold(1, self.n - 1, 1).reshape(B * T, -1) if self.n > 1 else idx.new_zeros(B * T, 0).cpu()
        return self.log_probs(contexts.numpy()).view(B, T, -1).to(idx.device)

    def next_logits(self, x, n):
        where = n[:, None] - self.n + 1 + torch.arange(self.n - 1, device=x.device)
        context = x.gather(1, where.clamp(min=0)).masked_fill(where < 0, -1)
        return self.log_probs(context.cpu().numpy()).to(x.device)

    def save(self, path, meta):
        """A line of JSON, then a line for each m-gram, m = 1 ... n: how often, and its tokens."""
        sizes = [len(keys) for keys in self.keys]
        names = ("n", "vocab_size", "smoothing", "discount", "alpha", "sizes", "meta")
        values = (self.n, self.V, self.smoothing, self.discount, self.alpha, sizes, meta)
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.write(json.dumps(dict(zip(names, values, strict=True))) + "\n")
            for m in range(1, self.n + 1):
                np.savetxt(f, np.column_stack([self.counts[m - 1], self.grams(m)]), "%d")
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path):
        """-> the model that save wrote, and its meta. Raises UserError if the file is damaged."""
        try:
            with open(path, encoding="utf-8") as f:
                header = json.loads(f.readline())
                sizes, meta = header.pop("sizes"), header.pop("meta")
                numbers = np.array(f.read().split(), dtype=np.int64)
            self = cls(**header)
            ends = np.cumsum([0] + [size * (m + 1) for m, size in enumerate(sizes, 1)])
            parts = [numbers[a:b].reshape(-1, m + 2) for m, (a, b) in enumerate(itertools.pairwise(ends))]
            if len(numbers) != ends[-1]:
                raise ValueError("its end is missing")
            self.keys, self.counts = [np.arange(self.V)], [part[:, 0] for part in parts]
            for part in parts[1:]:
                self.keys.append(self.find(part[:, 1:-1])[0] * self.V + part[:, -1])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or not an n-gram file ({str(error)[:80]}).") from None
        return self.prepare(), meta


class Lookup:
    """Prompt lookup: the longest of the last 1 to 3 tokens that the text had before is continued as it was then."""

    def __init__(self, vocab_size, longest=3):
        self.V, self.longest = vocab_size, longest

    def next_logits(self, x, n):
        """(B, L), (B,) -> (B, V): all probability on one token. Nothing alike: on the last token, as good as any."""
        guesses = []
        for row, length in zip(x, n.tolist(), strict=True):
            guess = row[length - 1]
            for m in range(min(self.longest, length - 1), 0, -1):
                windows = row[: length - 1].unfold(0, m, 1)  # all places but the end itself
                same = (windows == row[length - m : length]).all(1).nonzero()
                if len(same):
                    guess = row[same[-1, 0] + m]
                    break
            guesses.append(guess)
        return F.one_hot(torch.stack(guesses), self.V).float().log()


class Diffusion:
    """A masked diffusion model that drafts: masks after the last token, revealed in `steps` groups from left to right.

    Speculation needs q(x_j | what stands before j). Within a group the tokens are drawn independently of each other,
    and a group sees only what stands to its left: so q is known. In any other order a token would depend on later ones,
    and q would be a sum over all of these: refused. window: tokens seen before the masks; 0: all that fit.
    """

    def __init__(self, model, steps=1, order="left", window=0):
        choose("order", order, ("left", "any"))
        if order == "any" and steps > 1:
            raise UserError(
                f"A draft revealed in any order in {steps} steps has no q(x_j | x before j): verification would not be "
                "lossless. Use one step, or order 'left'."
            )
        self.model, self.steps, self.window = model, steps, window

    def propose(self, x, n, gamma, settings, generator):
        """(B, L), (B,) -> (B, gamma) tokens, (B, gamma, V) the distributions that they were drawn from."""
        size = self.model.config.block_size
        known = min(int(n.min()), self.window or size, size - gamma)
        where = n[:, None] - known + torch.arange(known + gamma, device=x.device)  # (B, known + gamma)
        z = x.gather(1, where)
        z[:, known:] = self.model.mask_id
        qs = []
        for group in torch.arange(gamma).tensor_split(min(self.steps, gamma)):
            at = known + group.to(x.device)
            q = probabilities(self.model.head(self.model.hidden(z)[:, at]), *settings)  # (B, group, V)
            z[:, at] = draw_from(q, generator)
            qs.append(q)
        return z[:, known:], torch.cat(qs, 1)


# ----------------------------------------------------------------------------------------------------------------------
# speculative decoding: Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1


def read(model, cache, x, n, k):
    """(B, L) int64, (B,) -> (B, k, V): logits of what follows each of the last k of the first n tokens.

    The cache may hold some of the last k already.
    """
    start = torch.minimum(torch.as_tensor(cache.length, device=n.device), n - k)
    m = int((n - start).max())  # every row reads as many as the one that has most to read: again costs nothing but time
    start = n - m
    cache.length = start if (start != start[0]).any() else int(start[0])
    new = x.gather(1, start[:, None] + torch.arange(m, device=x.device))
    return model.head(model.hidden(new, cache)[:, -k:])


def propose(drafter, cache, x, n, gamma, settings, generator):
    """-> (B, gamma) tokens to follow the first n of x (B, L), (B, gamma, V) the distributions they were drawn from.

    Token by token; x is scratch from n on.
    """
    if isinstance(drafter, Diffusion) and gamma:
        return drafter.propose(x, n, gamma, settings, generator)
    qs = []
    for j in range(gamma):
        logits = read(drafter, cache, x, n + j, 1)[:, 0] if cache else drafter.next_logits(x, n + j)
        qs.append(probabilities(logits, *settings))
        x.scatter_(1, (n + j)[:, None], draw_from(qs[-1], generator)[:, None])
    where = n[:, None] + torch.arange(gamma, device=x.device)
    return x.gather(1, where), torch.stack(qs, 1) if qs else None


def residual(p, q):
    """(B, V), (B, V) -> (B, V): norm(max(p - q, 0)), the target's distribution where the draft's token was refused."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)  # p = q: nothing was refused but by rounding


def flip(chance, generator):
    """Probabilities -> bool: True with that probability."""
    return uniform(chance.shape, generator, chance.device) < chance


@torch.no_grad()
def speculate(target, drafter, idx, n_new, gamma=4, temperature=1.0, top_k=0, top_p=1.0, generator=None, eos=None):
    """(B, T) int64 -> (B, T + n_new) with exactly the law of target.generate, and a SimpleNamespace of counts.

    The drafter guesses gamma tokens; one call of the target judges them all; the first refused one is drawn anew, and
    if none is, the target's next token comes for free. q is what the draft was sampled from, after the same
    temperature, top_k and top_p. After an eos a row is filled with eos. Raises UserError past a model's context.
    """
    (B, T), end, settings = idx.shape, idx.size(1) + n_new, (temperature, top_k, top_p)
    x = torch.cat([idx, idx.new_zeros(B, n_new)], 1)
    models = [m for m in (target, drafter) if isinstance(m, GPT)]
    for m in models:
        if end > m.config.block_size:
            raise UserError(
                f"{end} tokens are more than the context of {m.config.block_size}, past which nothing is drafted. "
                "Use a smaller --length."
            )
    caches = [KVCache(m.config, B, idx.device, m.wte.weight.dtype) for m in models]
    draft_cache = caches[1] if len(caches) > 1 else None
    out, n, rows = x.clone(), torch.full((B,), T, device=idx.device), torch.arange(B, device=idx.device)
    drafted = torch.zeros_like(out, dtype=torch.bool)  # tokens that the drafter wrote
    counts = types.SimpleNamespace(calls=0, tested=[0] * gamma, accepted=[0] * gamma, drafted=drafted)
    counts.rounds, counts.drafts, counts.draft_s, counts.target_s = 0, 0, 0.0, 0.0  # without the first, which reads idx
    while len(rows) and n_new:
        began = time.perf_counter()
        g = min(gamma, end - int(n.max()) - 1)  # a row's last token is the target's own
        drafts, q = propose(drafter, draft_cache, x, n, g, settings, generator)  # (B, g), (B, g, V)
        where = n[:, None] + torch.arange(g + 1, device=x.device)
        x.scatter_(1, where[:, :g], drafts)
        drafts.cpu()  # waits for the device
        drafting = time.perf_counter()
        p = probabilities(read(target, caches[0], x, n + g, g + 1), *settings)  # (B, g + 1, V)
        k = torch.zeros_like(n)  # how many are accepted
        last = p[:, g]
        if g:
            p_x, q_x = (d[:, :g].gather(2, drafts[..., None]).squeeze(2) for d in (p, q))  # (B, g)
            k = flip((p_x / q_x).clamp(max=1), generator).long().cumprod(1).sum(1)
            i, at = torch.arange(len(n), device=x.device), k.clamp(max=g - 1)
            last = torch.where((k < g)[:, None], residual(p[i, at], q[i, at]), p[:, g])
        x.scatter_(1, (n + k)[:, None], draw_from(last, generator)[:, None])
        drafted[rows[:, None], where] = torch.arange(g + 1, device=x.device) < k[:, None]
        accepted = k.tolist()
        judged = time.perf_counter()
        if counts.calls:
            counts.rounds, counts.drafts = counts.rounds + 1, counts.drafts + g
            counts.draft_s, counts.target_s = counts.draft_s + drafting - began, counts.target_s + judged - drafting
        counts.calls += len(rows)
        for j in range(g):
            counts.tested[j] += sum(i >= j for i in accepted)
            counts.accepted[j] += sum(i > j for i in accepted)
        n = n + k + 1
        for cache in caches:  # the last token is new, and what was refused before it is gone
            cache.length = torch.minimum(torch.as_tensor(cache.length, device=n.device), n - 1)
        done = n >= end
        if eos is not None:
            place = torch.arange(end, device=x.device)
            ended = (x == eos) & (place >= T) & (place < n[:, None])
            done |= ended.any(1)
            x = torch.where(ended.cumsum(1) > 0, eos, x)
        if done.any():
            out[rows[done]] = x[done]
            rows, x, n = rows[~done], x[~done], n[~done]
            for cache in caches:
                cache.keep(~done)
    return out, counts


def acceptance(counts):
    """What speculate counted -> alpha, accepted / (accepted + first refusals).

    A token after the first refusal was never judged: counting it would make alpha too small.
    """
    return sum(counts.accepted) / max(sum(counts.tested), 1)


def costs(counts, step_s):
    """What speculate counted, seconds of a plain step of the target -> c, call: a drafted token and a target call in
    plain steps. In theory a call is one step whatever it judges; on a CPU it grows with the tokens.
    """
    return counts.draft_s / max(counts.drafts, 1) / step_s, counts.target_s / max(counts.rounds, 1) / step_s


def tokens_per_call(counts):
    """What speculate counted -> the mean for full drafts: 1 + a_1 + a_1 a_2 + ..., with the rate a_j at place j."""
    rates = [a / t if t else 0.0 for a, t in zip(counts.accepted, counts.tested, strict=True)]
    return 1 + sum(itertools.accumulate(rates, lambda x, y: x * y))


def predicted_speedup(alpha, c, gamma, call=1.0):
    """Tokens per target call over its cost in plain steps (Leviathan et al., theorem 3.8)."""
    tokens = gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return tokens / (gamma * c + call)


def best_gamma(drafter, counts, alpha, measured):
    """measured: {gamma: costs} -> the gamma with the highest predicted speed, that speed.

    A diffusion drafter guesses later places worse: its rates by place decide, up to the last that `counts` has.
    """
    speeds = {gamma: predicted_speedup(alpha, c, gamma, call) for gamma, (c, call) in measured.items()}
    if isinstance(drafter, Diffusion):
        speeds = {}
        for g, (c, call) in measured.items():
            first = types.SimpleNamespace(accepted=counts.accepted[:g], tested=counts.tested[:g])
            if g <= len(counts.tested):
                speeds[g] = tokens_per_call(first) / (g * c + call)
    best = max(speeds, key=speeds.get)
    return best, speeds[best]


# ----------------------------------------------------------------------------------------------------------------------
# devices and checkpoints


def join_processes(cfg):
    """-> this process's device, and a note on it. Under torchrun, joins the other processes first."""
    device, _, note = pick_device(cfg.device, cfg.dtype)
    if "WORLD_SIZE" in os.environ:
        patience = datetime.timedelta(days=1)  # the first process may write data for hours while the others wait
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        if device.type == "cuda":
            cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
            device = torch.device(cfg.device)
            torch.cuda.set_device(device)
    return device, note


def spread(f, items, desc):
    """-> [f(item) for item in items]; each process of a torchrun works on its share, all get the whole list."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = [f(item) for item in tqdm(items[rank::world], desc=desc, leave=False, disable=rank > 0)]
    parts = [own]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, own)
    return [parts[i % world][i // world] for i in range(len(items))]


def save_checkpoint(path, checkpoint):
    """Writes beside path, then renames: a kill at any moment leaves the old file or the new one, never half of one.

    Raises UserError if the disk is full.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer has its own kind for a write that fails
        with contextlib.suppress(OSError):
            os.remove(temporary)
        kept = "The last one is still there" if os.path.exists(path) else "Nothing was saved"
        raise UserError(f"Could not write {path} ({first_line(error)}). {kept}. Make room.") from None
    os.replace(temporary, path)


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0][:100]


def load_checkpoint(path):
    """-> the dict that train.fit saved, on the CPU; path may be a published name or folder too.

    Runs no code from the file. Raises UserError if it is missing or damaged.
    """
    if os.path.isdir(path) or hub_address(path):
        return load_published(path)
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint {path}. {how_to_make(os.path.dirname(path))}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (PermissionError, MemoryError) as error:
        raise UserError(f"Cannot read {path} ({error}).") from None
    except Exception as error:  # torch raises five different kinds for a damaged file
        raise UserError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}). Copy it again, or train it again."
        ) from None
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint:
        raise UserError(f"{path} is not a nanoSDTT checkpoint: it holds no model_config.")
    return checkpoint


def how_to_make(folder):
    """What a folder without the checkpoint asked for has, the command that makes it, or what else there is."""
    if inside := checkpoints_in(folder):
        return f"{folder or '.'} holds {', '.join(inside)}."
    for config in sorted(glob.glob(os.path.join(os.path.dirname(__file__), "config", "*.py"))):
        with open(config, encoding="utf-8") as f:
            if folder and f'out_dir = "{folder}"\n' in f.read():
                script = "train.py" if os.path.basename(config).startswith("train") else "distill.py"
                return f"Make it with: python {script} config/{os.path.basename(config)}"
    return (
        "Train one, for example with: make demo; or give a published name, such as gpt2, gpt2-xl, mdlm-owt, "
        "sdtt:kld:7, sdtt:scaling:md:3, sdtt:teacher:large or hub:OWNER/NAME."
    )


def checkpoints_in(folder):
    """-> the names of its .pt files, round_10 after round_9."""
    return sorted(glob.glob("*.pt", root_dir=folder or "."), key=lambda f: (len(f), f))


def load_model(path, device="cpu", attention="sdpa"):
    """-> GPT in eval mode with the averaged weights where there are any, and the checkpoint's dict without weights."""
    checkpoint = load_checkpoint(path)
    model = GPT(GPTConfig(**{**checkpoint["model_config"], "attention": attention}))  # not the one it was trained with
    weights, averaged = checkpoint.pop("model"), checkpoint.pop("ema")
    checkpoint = {k: v for k, v in checkpoint.items() if not k.startswith("optimizer")}
    model.load_weights(averaged or weights)
    return model.to(device).eval(), checkpoint


# ----------------------------------------------------------------------------------------------------------------------
# published models: GPT-2, MDLM, SDTT, and folders of our own. Data only: nothing from a hub is ever executed.

PUBLISHED = {  # our name -> repository, revision
    r"gpt2(?:-medium|-large|-xl)?": (r"openai-community/\g<0>", "main"),
    r"mdlm-owt": ("kuleshov-group/mdlm-owt", "main"),
    r"sdtt:(kld|mse|tvd):([1-7])": ("jdeschena/sdtt", r"baselines_\1_step_\g<2>0000"),
    r"sdtt:scaling:(sm|md|large):([1-7])": ("jdeschena/sdtt", r"scaling_400k_\1_step_\g<2>0000"),
    r"sdtt:teacher:(sm|md|large)": ("jdeschena/sdtt", r"teacher_400k_\1_step_400000"),
    r"sdtt:teacher:1M": ("jdeschena/sdtt", "teacher_1M_sm"),
    r"hub:([^@]+)": (r"\1", "main"),
    r"hub:([^@]+)@(.+)": (r"\1", r"\2"),
}


def hub_address(name):
    """A published name -> repository and revision, or None. hub:OWNER/NAME[@REVISION] is any other one."""
    for pattern, address in PUBLISHED.items():
        match = re.fullmatch(pattern, str(name))
        if match:
            return [match.expand(part) for part in address]


def load_published(name):
    """A published name or a folder with model.safetensors and config.json -> a dict like load_checkpoint's.

    Raises UserError without a network, and for files that are damaged or of a layout that is not known.
    """
    folder = name
    if not os.path.isdir(name):
        import huggingface_hub

        repository, revision = hub_address(name)
        files = ["config.json", "model.safetensors"]
        try:
            folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=files)
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise UserError(
                f"Could not download {repository}, revision {revision} ({first_line(error)}). Put its "
                "model.safetensors and config.json into a folder and give that instead."
            ) from None
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        w = safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        inside = checkpoints_in(folder)
        hint = f" Did you mean its {inside[-1]}?" if inside else ""
        raise UserError(
            f"{folder} holds no model.safetensors and config.json that can be read ({str(error)[:100]}).{hint}"
        ) from None
    w = {re.sub(r"^(backbone\.|transformer\.)+", "", k): v.float() for k, v in w.items()}
    meta, dataset = data.GPT2_META, "openwebtext"
    try:
        if "model_config" in config:
            model_config, meta, dataset = config["model_config"], config["meta"], config["dataset"]
        elif "vocab_embed.embedding" in w:
            model_config, w = from_mdlm(w, config)
        elif "wpe.weight" in w:
            model_config, w = from_gpt2(w, config)
        else:
            raise UserError(f"its first key is {min(w, default='missing')}, of no layout that is known")
        if model_config["vocab_size"] != meta["vocab_size"]:
            raise UserError(f"vocabulary of {model_config['vocab_size']}, not of {meta['vocab_size']}")
        GPTConfig(**model_config)
    except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name} is no model that can be read here: {first_line(error)}.") from None
    about = {"model_config": model_config, "meta": meta, "config": {"dataset": dataset}, "step": 0, "val_loss": None}
    return about | {"model": w, "ema": None}


def save_published(folder, model, checkpoint):
    """Writes model.safetensors and config.json, which load_model(folder) reads. Raises UserError if they exist."""
    path, about = os.path.join(folder, "model.safetensors"), os.path.join(folder, "config.json")
    if os.path.exists(path) or os.path.exists(about):
        raise UserError(f"{folder} holds a model or a config.json already. Export to another folder.")
    os.makedirs(folder, exist_ok=True)
    config = {"model_type": "nanosdtt", "model_config": dataclasses.asdict(model.config)}
    config |= {"meta": checkpoint["meta"], "dataset": checkpoint["config"]["dataset"]}
    data.atomic_write(about, json.dumps(config, indent=1).encode())
    data.atomic_write(path, safetensors.torch.save({k: v.cpu().contiguous() for k, v in model.state_dict().items()}))


def settings_of(config, *keys):
    """Nested dicts -> the values that the keys have anywhere in them."""
    own = [value for key, value in config.items() if key in keys]
    return own + [v for part in config.values() if isinstance(part, dict) for v in settings_of(part, *keys)]


def refuse_unless(config, **values):
    """Published settings that our block cannot follow."""
    for key, value in values.items():
        if config.get(key, value) != value:
            raise UserError(f"{key} is {config[key]}, not {value}")


def from_gpt2(w, config):
    """-> model_config, weights. Its Conv1D holds (in, out) matrices, ours are (out, in)."""
    refuse_unless(config, activation_function="gelu_new", layer_norm_epsilon=1e-5)
    refuse_unless(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    new = {"h.": "blocks.", "c_attn": "qkv", "mlp.c_proj": "mlp.down", "c_proj": "proj", "c_fc": "up"}
    weights = {}
    for key, value in w.items():
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", key):
            continue  # a causal mask
        if key == "lm_head.weight" and torch.equal(value, w["wte.weight"]):
            continue
        matrix = key.startswith("h.") and value.dim() == 2
        weights[functools.reduce(lambda k, pair: k.replace(*pair), new.items(), key)] = value.T if matrix else value
    V, C = w["wte.weight"].shape
    shape = dict(vocab_size=V, n_embd=C, block_size=len(w["wpe.weight"]), pos="learned", causal=True)
    biases = dict(attn_bias=True, mlp_bias=True, ln_bias=True, gelu_tanh=True)
    return {**shape, **biases, "n_layer": config["n_layer"], "n_head": config["n_head"]}, weights


def from_mdlm(w, config):
    """-> model_config, weights. The adaptive layer norms of MDLM and SDTT are folded into a plain pre-LN block.

    Without time conditioning the noise level that enters is always 0, and what the adaLN layers make of it constant:
    norm(x) w (1 + scale) + shift is a LayerNorm with a bias, and a gate scales the rows of the matrix before it.
    """
    if any(settings_of(config, "time_conditioning")):
        raise UserError("time_conditioning is True, and a plain block does not know the time")
    (V, C), E = w["vocab_embed.embedding"].shape, w["sigma_map.mlp.0.weight"].size(0)
    V, L = V - 1, 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))  # the last row is [MASK]
    freq = w.pop("rotary_emb.inv_freq", None)
    heads = {C // (2 * len(freq))} if freq is not None else set(settings_of(config, "n_heads"))
    if len(heads) != 1:
        raise UserError(f"n_heads is {sorted(heads) or 'missing'}, and no rotary_emb.inv_freq tells the size of a head")
    D = C // heads.pop()
    if freq is not None and not torch.allclose(freq, 10000.0 ** (-torch.arange(0, D, 2) / D), rtol=1e-2):  # bfloat16?
        raise UserError("rotary_emb.inv_freq is not of base 10000")
    ada = lambda n: {"adaLN_modulation.weight": (n * C, E), "adaLN_modulation.bias": (n * C,)}  # noqa: E731
    block = {"norm1.weight": (C,), "norm2.weight": (C,), "attn_qkv.weight": (3 * C, C), "attn_out.weight": (C, C)}
    block |= {"mlp.0.weight": (4 * C, C), "mlp.0.bias": (4 * C,), "mlp.2.weight": (C, 4 * C), "mlp.2.bias": (C,)}
    output = {"norm_final.weight": (C,), "linear.weight": (V + 1, C), "linear.bias": (V + 1,)}
    shapes = {"vocab_embed.embedding": (V + 1, C), "sigma_map.mlp.0.weight": (E, 256), "sigma_map.mlp.0.bias": (E,)}
    shapes |= {"sigma_map.mlp.2.weight": (E, E), "sigma_map.mlp.2.bias": (E,)}
    shapes |= {f"blocks.{i}.{k}": s for i in range(L) for k, s in (block | ada(6)).items()}
    shapes |= {f"output_layer.{k}": s for k, s in (output | ada(2)).items()}
    for key in sorted(shapes.keys() | w.keys()):
        here, wanted = tuple(w[key].shape) if key in w else "missing", shapes.get(key, "unknown")
        if here != wanted:
            raise UserError(f"{key} is {here}; {wanted} was expected")

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"].double(), w[f"{name}.bias"].double())

    sigma = torch.cat([torch.ones(128), torch.zeros(128)]).to(w["vocab_embed.embedding"]).double()  # cos 0, sin 0
    c = F.silu(linear(F.silu(linear(sigma, "sigma_map.mlp.0")), "sigma_map.mlp.2"))  # (E)
    weights = {"wte.weight": w["vocab_embed.embedding"]}
    for i in range(L):
        at = f"blocks.{i}."
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear(c, at + "adaLN_modulation").view(6, C)
        weights[at + "ln_1.weight"], weights[at + "ln_1.bias"] = w[at + "norm1.weight"] * (1 + scale_1), shift_1
        weights[at + "ln_2.weight"], weights[at + "ln_2.bias"] = w[at + "norm2.weight"] * (1 + scale_2), shift_2
        weights[at + "attn.qkv.weight"] = w[at + "attn_qkv.weight"]  # rows [q | k | v], head after head, as here
        weights[at + "attn.proj.weight"] = w[at + "attn_out.weight"] * gate_1[:, None]
        weights[at + "mlp.up.weight"], weights[at + "mlp.up.bias"] = w[at + "mlp.0.weight"], w[at + "mlp.0.bias"]
        weights[at + "mlp.down.weight"] = w[at + "mlp.2.weight"] * gate_2[:, None]
        weights[at + "mlp.down.bias"] = w[at + "mlp.2.bias"] * gate_2
    shift, scale = linear(c, "output_layer.adaLN_modulation").view(2, C)
    weights["ln_f.weight"], weights["ln_f.bias"] = w["output_layer.norm_final.weight"] * (1 + scale), shift
    weights["lm_head.weight"] = w["output_layer.linear.weight"][:V]  # the row for [MASK] is never used
    weights["head_bias"] = w["output_layer.linear.bias"][:V]
    shape = dict(vocab_size=V, n_embd=C, n_layer=L, n_head=C // D)
    shape["block_size"] = max(settings_of(config, "model_length", "length"), default=1024)  # rope needs the longest
    switches = dict(tie_weights=False, mlp_bias=True, ln_bias=True, head_bias=True, gelu_tanh=True)
    return shape | switches, {k: v.float().contiguous() for k, v in weights.items()}
