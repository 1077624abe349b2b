"""
Drafters, which propose the next tokens of a GPT: n-grams, prompt lookup, an LSTM, a CNN. (A small
GPT is in model.py. speculative.Network makes a drafter of any network.)

N-grams: Chen & Goodman 1999 (interpolated Kneser-Ney). Prompt lookup: Saxena 2023.
"""

import importlib
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data
from configurator import UserError, choose, first_line, print_once
from model import GPT, Block, GPTConfig, draw, probabilities
from plumbing.checkpoints import (
    checkpoint_hint,
    load_checkpoint,
    load_weights,
    weights_of,
    without_weights,
)
from plumbing.hardware import prepare_for_sampling
from plumbing.ngram_files import read_counts, write_counts
from speculative import Network

# --------------------------------------------------------------------------------------------------
# small causal networks: GPT with other blocks

KERNEL_SIZE = 5  # tokens that a convolution sees


class LSTMBlock(nn.Module):
    """x + LSTM(norm(x)). The cache keeps the state after every token, so drafts can be undone."""

    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache=None, layer=0):
        y = self.ln(x).float()  # (B, T, C)
        with torch.autocast(x.device.type, enabled=False):  # CUDA's would run an LSTM in float16
            if cache is None:
                return x + self.dropout(self.lstm(y)[0])
            # token by token: the cache keeps the state after each
            state = cache.last(layer, 1)[:, :, 0]  # (2, B, 1, C): h and c after the last token
            h, c = state.transpose(1, 2).contiguous()  # (1, B, C) each, as nn.LSTM has them
            states = []
            for y_i in y.split(1, dim=1):
                _, (h, c) = self.lstm(y_i, (h, c))
                states.append(torch.cat([h, c]))  # (2, B, C)
        h, c = torch.stack(states, dim=2)  # (B, T, C) each
        cache.append(layer, h[:, None], c[:, None])  # instead of keys and values, as one head
        return x + h.to(x.dtype)  # no dropout: only generation has a cache


class ConvBlock(nn.Module):
    """x + GELU(conv(norm(x))), padded on the left only: a position sees itself and the past."""

    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.conv = nn.Conv1d(config.n_embd, config.n_embd, KERNEL_SIZE)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache=None, layer=0):
        y = self.ln(x)  # (B, T, C)
        if cache is None:
            padded = F.pad(y, (0, 0, KERNEL_SIZE - 1, 0))  # (B, KERNEL_SIZE - 1 + T, C)
        else:
            before = cache.last(layer, KERNEL_SIZE - 1)[0, :, 0].to(y.dtype)
            padded = torch.cat([before, y], dim=1)
            cache.append(layer, y[:, None], y[:, None])  # twice: a cache holds pairs
        y = self.conv(padded.transpose(1, 2)).transpose(1, 2)  # (B, T, C)
        return x + self.dropout(F.gelu(y))


# --------------------------------------------------------------------------------------------------
# drafters without a network


class NGram:
    """
    Counts of all sequences of up to n tokens in sorted integer keys, without a loop over tokens.

    The key of an m-gram is (index of its first m - 1 tokens in the table of (m - 1)-grams) * V +
    its last token: so all continuations of a context are neighbors in the table.
    smoothing: 'kneser_ney' (interpolated) or 'laplace' (adds alpha to every count).
    """

    def __init__(self, n, vocab_size, smoothing="kneser_ney", discount=0.75, alpha=0.1):
        choose("smoothing", smoothing, ("kneser_ney", "laplace"))
        self.n = n
        self.V = vocab_size
        self.smoothing = smoothing
        self.discount = discount
        self.alpha = alpha

    def fit(self, tokens):
        """(N,) token ids, or (R, N) of R texts -> self."""
        tokens = np.atleast_2d(np.asarray(tokens, dtype=np.int64))  # no m-gram spans two texts
        if tokens.shape[1] < self.n:
            n = tokens.shape[1]
            raise UserError(f"The corpus has {n} tokens, fewer than one {self.n}-gram.")
        self.keys = [np.arange(self.V)]
        self.counts = [np.bincount(tokens.ravel(), minlength=self.V)]
        index = tokens  # column j: the table index of the m-gram that starts at token j
        for m in range(2, self.n + 1):
            key = index[:, :-1] * self.V + tokens[:, m - 1 :]
            keys, index, counts = np.unique(key, return_inverse=True, return_counts=True)
            index = index.reshape(key.shape)
            self.keys.append(keys)
            self.counts.append(counts)
        return self.prepare()

    def prepare(self):
        """
        What probs looks up: unigram (V,), and for m = 2 ... n, as item m - 1 of a list,

            start     (number of contexts + 1)  where a context's continuations start among m-grams
            fraction  (number of m-grams)       of a context's continuations that are this one
            backoff   (number of contexts)      Kneser-Ney: the weight of the shorter context's p;
                                                Laplace: p of a token that never followed

        A context is an (m - 1)-gram.
        """
        used = self.counts
        V = self.V
        if self.smoothing == "kneser_ney":
            used = self.continuation_counts()
            # what is discounted is divided evenly among all tokens, seen or not
            added = self.discount * (used[0] > 0).sum() / V
            self.unigram = (np.maximum(used[0] - self.discount, 0) + added) / used[0].sum()
        else:
            self.unigram = (used[0] + self.alpha) / (used[0].sum() + self.alpha * V)
        self.unigram = self.unigram.astype(np.float32)

        self.start = [None]
        self.fraction = [None]
        self.backoff = [None]
        for m in range(2, self.n + 1):
            context = self.keys[m - 1] // V  # (number of m-grams)
            count = used[m - 1]
            n_contexts = len(self.keys[m - 2])
            total = np.bincount(context, count, n_contexts)
            if self.smoothing == "kneser_ney":
                seen = np.bincount(context, count > 0, n_contexts)
                backoff = self.discount * seen / np.maximum(total, 1)
                backoff[total == 0] = 1
                discounted = np.maximum(count - self.discount, 0)
                fraction = discounted / np.maximum(total, 1)[context]
            else:
                backoff = self.alpha / (total + self.alpha * V)  # of a token that never followed
                fraction = count / (total + self.alpha * V)[context]
            n_continuations = np.bincount(context, minlength=n_contexts)
            self.start.append(np.concatenate([[0], n_continuations.cumsum()]))
            self.fraction.append(fraction.astype(np.float32))
            self.backoff.append(backoff.astype(np.float32))
        return self

    def continuation_counts(self):
        """Kneser-Ney: an m-gram with m < n counts the different tokens that precede it."""
        used = []
        for m in range(1, self.n):
            suffix = self.find(self.grams(m + 1)[:, 1:])  # of each (m + 1)-gram
            used.append(np.bincount(suffix, minlength=len(self.keys[m - 1])))
        return [*used, self.counts[-1]]

    def grams(self, m):
        """-> (M, m): all m-grams in the order of their table."""
        columns = []
        index = np.arange(len(self.keys[m - 1]))
        for keys in self.keys[m - 1 : 0 : -1]:
            index, last = np.divmod(keys[index], self.V)
            columns.append(last)
        return np.stack([index, *columns[::-1]], 1)

    def find(self, grams):
        """(B, m) -> (B,): their index in the table of m-grams, which has all of them."""
        index = grams[:, 0]
        for keys, token in zip(self.keys[1:], grams.T[1:], strict=False):
            index = np.searchsorted(keys, index * self.V + token)
        return index

    def index_of(self, gram):
        """[token, ...] -> its index in the table of m-grams of its length m, None: not in it."""
        index = gram[0]
        for keys, token in zip(self.keys[1:], gram[1:], strict=False):
            key = index * self.V + token
            index = keys.searchsorted(key)
            if index == len(keys) or keys[index] != key:
                return None
        return index

    def probs(self, text):
        """
        [token, ...] (the last n - 1 count) -> (V,) float32 array: probabilities of the
        next token.

        Kneser-Ney, from short contexts to long: p_m(x) = fraction(x) + backoff * p_(m-1)(x), with
        p_1 the unigram. Laplace: p_m(x) = fraction(x) + backoff. It stops at the first context that
        was never seen or never continued: none of the longer contexts was seen.

        index_of finds a context, prepare says what is stored for it, and the last token of m-gram i
        is keys[m - 1][i] % V.
        """
        p = self.unigram.copy()
        for m in range(2, min(self.n, len(text) + 1) + 1):
            index = self.index_of(text[-(m - 1) :])
            if index is None:
                break
            first, end = self.start[m - 1][index : index + 2]
            if first == end:  # the context occurs only at the end of a text
                break
            if self.smoothing == "laplace":
                p[:] = self.backoff[m - 1][index]  # the longest context that is known decides alone
            else:
                p *= self.backoff[m - 1][index]
            followers = self.keys[m - 1][first:end] % self.V
            p[followers] += self.fraction[m - 1][first:end]
        return p

    def logits(self, idx):
        """(B, T) int64 -> (B, T, V): position i has the log-probabilities of token i + 1."""
        p = []
        for text in idx.tolist():
            for i in range(len(text)):
                p.append(self.probs(text[max(0, i + 2 - self.n) : i + 1]))
        return torch.from_numpy(np.stack(p)).log().view(*idx.shape, -1).to(idx.device)

    def propose(self, x, n, settings, generator):
        """(T,) int64 -> drafts (n,), q (n of (V,)): see speculative.py."""
        text = x.tolist()
        q = []
        for _ in range(n):
            p = torch.from_numpy(self.probs(text))  # (V)
            q.append(probabilities(p.log(), **settings))
            text.append(int(draw(q[-1], generator)))
        drafts = torch.tensor(text[len(x) :], dtype=torch.int64, device=x.device)
        return drafts, [q_i.to(x.device) for q_i in q]

    def save(self, path, meta):
        """To a readable file: what it is, then each m-gram with its count."""
        about = {"n": self.n, "vocab_size": self.V, "smoothing": self.smoothing}
        about |= {"discount": self.discount, "alpha": self.alpha, "meta": meta}
        tables = []
        for m, count in enumerate(self.counts, 1):
            tables.append(np.column_stack([count, self.grams(m)]))
        write_counts(path, about, tables)

    @classmethod
    def load(cls, path):
        """-> the model that save wrote, and its meta. Raises UserError if the file is damaged."""
        if not os.path.isfile(path):
            raise UserError(
                f"There is no n-gram file {path}. Make one: python train.py --arch=ngram"
            )
        try:
            about, tables = read_counts(path)
            meta = about.pop("meta")
            self = cls(**about)
            self.keys = [np.arange(self.V)]
            self.counts = [table[:, 0] for table in tables]
            for table in tables[1:]:
                self.keys.append(self.find(table[:, 1:-1]) * self.V + table[:, -1])
            return self.prepare(), meta
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            why = first_line(error)
            raise UserError(f"{path} is damaged or not an n-gram file ({why}).") from None


class Lookup:
    """
    Prompt lookup: where the last tokens occurred earlier, propose what followed them then; without
    a match of at least `shortest` tokens, nothing.
    """

    def __init__(self, vocab_size, shortest=2, longest=3):
        self.V = vocab_size
        self.shortest = shortest
        self.longest = longest

    def propose(self, x, n, settings, generator):
        """(T,) int64 -> drafts (g,) with g <= n, q (g of (V,)): see speculative.py."""
        text = x.tolist()
        for m in range(self.longest, self.shortest - 1, -1):
            end = text[-m:]
            for start in range(len(text) - m - 1, -1, -1):  # the latest match first
                if text[start : start + m] == end:
                    # a match near the end goes on with itself: 0 1 0 1 is followed by 0 1 0 1 ...
                    period = len(text) - start - m
                    i = torch.arange(n, device=x.device) % period
                    drafts = x[start + m + i]
                    q = F.one_hot(drafts, self.V).float()  # all probability on that token
                    return drafts, q
        return x[:0], []


def fit_ngram(tokens, corpus, n, smoothing, out_dir):
    """Counts the tokens and writes out_dir/ngram.txt."""
    path = os.path.join(out_dir, "ngram.txt")
    model = NGram(n, corpus.meta["vocab_size"], smoothing).fit(tokens)
    length = min(129, len(corpus.val))
    nats = []
    for part in data.blocks(corpus.val, length, 200).split(8):  # 200 blocks of 128 predictions
        log_p = model.logits(part[:, :-1])  # (8, 128, V)
        nats.append(-log_p.gather(2, part[:, 1:, None]))
    nats = torch.cat(nats).mean()
    model.save(path, corpus.meta)
    n_grams = sum(map(len, model.keys))
    print_once(f"validation {nats:.4f} nats per token, {n_grams:,} n-grams saved to {path}")


# --------------------------------------------------------------------------------------------------
# loading


def new_model(config):
    """GPTConfig -> a GPT of the blocks that its arch names."""
    blocks = {"gpt": Block, "lstm": LSTMBlock, "cnn": ConvBlock}
    return GPT(config, blocks[config.arch])


def model_of(checkpoint, path, attention="sdpa"):
    """A checkpoint's dict -> its model, with averaged weights where there are any, in eval mode."""
    try:
        config = GPTConfig(**{**checkpoint["model_config"], "attention": attention})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} cannot be read as a model: {first_line(error)}.") from None
    model = new_model(config)
    load_weights(model, weights_of(checkpoint))
    return model.eval()


def load_model(path, device="cpu", attention="sdpa", dtype=torch.float32):
    """
    -> GPT in eval mode, and the checkpoint's dict without its weights.

    path: a ckpt.pt, or something that extras/ loads: a published name such as gpt2 or mdlm-owt,
    hf:NAME, a folder with a model.safetensors. (The core imports extras/ only here.) dtype: of the
    weights of hf:NAME; all others are float32.
    """
    saved = None
    source = path
    if os.path.isfile(path):
        saved = load_checkpoint(path)
        source = saved["model_config"].get("arch", "gpt")  # hf:NAME: a network of transformers
        if not source.startswith("hf:"):
            return model_of(saved, path, attention).to(device), without_weights(saved)

    extra = "huggingface" if source.startswith("hf:") else "published"
    try:
        module = importlib.import_module(f"extras.{extra}")
    except ModuleNotFoundError as error:
        if not error.name.startswith("extras"):
            raise
        folder = os.path.dirname(path)
        raise UserError(f"There is no checkpoint {path}. {checkpoint_hint(folder)}") from None
    if saved:
        return module.from_checkpoint(saved, device, attention, dtype)
    if extra == "huggingface":
        return module.load_model(path, device, attention, dtype)
    return module.load_model(path, device, attention)


def check_context(drafter, path, length):
    """Raises UserError for a network whose context is smaller than the texts."""
    if isinstance(drafter, Network) and drafter.model.config.block_size < length:
        size = drafter.model.config.block_size
        raise UserError(f"The text is longer than {path}'s context: use --length={size}.")


def load_drafter(path, target, meta, attention="sdpa"):
    """
    path: 'lookup', an n-gram file (.txt) or a model -> a drafter with the target's vocabulary.
    """
    if not target.config.causal:
        raise UserError("--draft makes a GPT faster; this is a diffusion model. Leave --draft out.")
    if path == "lookup":
        return Lookup(target.config.vocab_size)
    if path.endswith(".txt"):
        drafter, drafter_meta = NGram.load(path)
    else:
        weight = target.wte.weight
        model, checkpoint = load_model(path, weight.device, attention, weight.dtype)
        if not model.config.causal:
            raise UserError(f"{path} is a diffusion model. Use python -m extras.diffusion_drafter")
        prepare_for_sampling(model)
        drafter = Network(model)
        drafter_meta = checkpoint["meta"]
    if not data.same_vocabulary(meta, drafter_meta):
        raise UserError(f"The drafter {path} has another vocabulary than the target.")
    return drafter
