"""
What guesses the next tokens of a GPT: an LSTM, a CNN, a small GPT, n-grams, the prompt itself, a diffusion model.
"""

import contextlib
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data
from configurator import UserError, choose, print_once, save_config
from model import GPT, Block, config_of, draw_from, probabilities
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of
from plumbing.hardware import compile_trunk, pick_device
from plumbing.huggingface import HuggingFaceModel, is_foreign, padded_as
from plumbing.ngram_files import read_counts, write_counts
from plumbing.runs import refuse_used

# ----------------------------------------------------------------------------------------------------------------------
# small causal networks: GPT with other blocks


class LSTMBlock(nn.Module):
    """x + LSTM(norm(x)). The cache keeps the state after every token, so that a rollback is an index."""

    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd, bias=config.ln_bias)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, cache=None):
        y = self.ln(x).float()  # (B, T, C)
        with torch.autocast(x.device.type, enabled=False):  # on CUDA it would choose float16
            if cache is None:
                return x + self.dropout(self.lstm(y)[0])
            h, c = (
                cache.before(1).transpose(1, 2).contiguous()
            )  # of (2, 1, B, C): the states after the last token
            states = []
            for y_i in y.split(1, 1):
                _, (h, c) = self.lstm(y_i, (h, c))
                states.append(torch.cat([h, c]))  # (2, B, C)
        states = torch.stack(states, 2)  # (2, B, T, C)
        cache(*states[:, :, None])  # h and c, (B, 1, T, C) each, in the places of keys and values
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
            cache(y[:, None], y[:, None])  # in both places: a cache holds pairs
            y = torch.cat([cache.before(before)[0], y], 1)
        return x + self.dropout(F.gelu(self.conv(y.transpose(1, 2))).transpose(1, 2))


# ----------------------------------------------------------------------------------------------------------------------
# drafters without a network, and one with


class NGram:
    """Counts of all sequences of up to n tokens in sorted integer keys: fitted without a loop over tokens.

    An m-gram's key is (number of its first m - 1 tokens in the table of (m - 1)-grams) * V + its last token: all
    continuations of a context are neighbours. smoothing: 'kneser_ney' (interpolated, absolute discount) or 'laplace'
    (adds alpha to every count after the longest context that was seen).
    """

    def __init__(self, n, vocab_size, smoothing="kneser_ney", discount=0.75, alpha=0.1):
        self.n, self.V, self.smoothing, self.discount, self.alpha = (
            n,
            vocab_size,
            smoothing,
            discount,
            alpha,
        )

    def fit(self, tokens):
        """(N,) token ids, or (R, N) of R texts -> self."""
        tokens = np.atleast_2d(np.asarray(tokens, dtype=np.int64))  # no m-gram spans two texts
        if tokens.shape[1] < self.n:
            raise UserError(
                f"The corpus has {tokens.shape[1]} tokens, fewer than one {self.n}-gram."
            )
        self.keys, self.counts = (
            [np.arange(self.V)],
            [np.bincount(tokens.ravel(), minlength=self.V)],
        )
        number = tokens  # of the m-gram that ends at each position
        for m in range(2, self.n + 1):
            key = number[:, :-1] * self.V + tokens[:, m - 1 :]
            keys, number, counts = np.unique(key, return_inverse=True, return_counts=True)
            number = number.reshape(key.shape)
            self.keys.append(keys)
            self.counts.append(counts)
        return self.prepare()

    def prepare(self):
        """For each m: where a context's m-grams start, the share of each, the weight of what shorter contexts say."""
        used = self.counts
        if (
            self.smoothing == "kneser_ney"
        ):  # below the top, an m-gram counts once for each token that came before it
            longer = range(2, self.n + 1)
            suffixes = [
                self.find(self.grams(m)[:, 1:])[0] for m in longer
            ]  # of each m-gram, without its first token
            used = [
                np.bincount(s, minlength=len(keys))
                for s, keys in zip(suffixes, self.keys, strict=False)
            ]
            used.append(self.counts[-1])
            free = self.discount * (used[0] > 0).sum() / self.V  # for tokens never seen
            self.unigram = (np.maximum(used[0] - self.discount, 0) + free) / used[0].sum()
        else:
            self.unigram = (used[0] + self.alpha) / (used[0].sum() + self.alpha * self.V)
        self.unigram = self.unigram.astype(np.float32)
        # [m - 1] is of m-grams: a share for each, a start and a backoff for each context, an (m - 1)-gram
        self.start, self.share, self.backoff = [None], [None], [None]
        for keys, shorter, count in zip(self.keys[1:], self.keys, used[1:], strict=False):
            context, size = keys // self.V, len(shorter)
            total = np.bincount(context, count, size)
            if self.smoothing == "kneser_ney":
                backoff = (
                    self.discount * np.bincount(context, count > 0, size) / np.maximum(total, 1)
                )
                backoff[total == 0] = 1
                share = np.maximum(count - self.discount, 0) / np.maximum(total, 1)[context]
            else:
                backoff = self.alpha / (
                    total + self.alpha * self.V
                )  # the share of a token that never followed
                share = count / (total + self.alpha * self.V)[context]
            self.start.append(np.concatenate([[0], np.bincount(context, minlength=size).cumsum()]))
            self.share.append(share.astype(np.float32))
            self.backoff.append(backoff.astype(np.float32))
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
        """(B, n - 1) int64, -1 where the text has not begun -> (B, V) float32 log-probabilities of the next token.

        Kneser-Ney interpolates, from short to long contexts: p_m(x) = share(x) + backoff * p_(m-1)(x), with p_1 the
        unigram; a context that was never seen changes nothing. Laplace: p_m(x) = share(x) + backoff.
        """
        p = np.tile(self.unigram, (len(context), 1))  # (B, V)
        for m in range(2, self.n + 1):
            number, found = self.find(context[:, self.n - m :])  # of the last m - 1 tokens
            start, share, tokens = self.start[m - 1], self.share[m - 1], self.keys[m - 1]
            for row in (found & (start[number] < start[number + 1])).nonzero()[0]:
                first, end = start[
                    number[row] : number[row] + 2
                ]  # its continuations are neighbours in the table
                backoff = self.backoff[m - 1][number[row]]
                p[row] = backoff if self.smoothing == "laplace" else backoff * p[row]
                p[row, tokens[first:end] % self.V] += share[first:end]
        return torch.from_numpy(p).log_()

    def __call__(self, idx):
        """(B, T) int64 -> (B, T, V): position i has the log-probabilities of token i + 1."""
        contexts = F.pad(idx.cpu(), (self.n - 1, 0), value=-1).unfold(1, self.n - 1, 1)[
            :, 1:
        ]  # (B, T, n - 1)
        return self.log_probs(contexts.flatten(0, 1).numpy()).view(*idx.shape, -1).to(idx.device)

    def next_logits(self, x, n):
        """(B, L) int64, (B,) -> (B, V): of what follows the first n tokens."""
        where = n[:, None] + torch.arange(self.n - 1, device=x.device)
        context = F.pad(x, (self.n - 1, 0), value=-1).gather(1, where)
        return self.log_probs(context.cpu().numpy()).to(x.device)

    def save(self, path, meta):
        """To a readable file: what it is, then each m-gram with its count."""
        how = {"smoothing": self.smoothing, "discount": self.discount, "alpha": self.alpha}
        about = {"n": self.n, "vocab_size": self.V, **how, "meta": meta}
        write_counts(
            path, about, [np.column_stack([c, self.grams(m)]) for m, c in enumerate(self.counts, 1)]
        )

    @classmethod
    def load(cls, path):
        """-> the model that save wrote, and its meta. Raises UserError if the file is damaged."""
        if not os.path.isfile(path):
            raise UserError(
                f"There is no n-gram file {path}. Make one with: python train.py --arch=ngram"
            )
        try:
            about, tables = read_counts(path)
            meta = about.pop("meta")
            self = cls(**about)
            choose("smoothing", self.smoothing, ("kneser_ney", "laplace"))
            self.keys, self.counts = [np.arange(self.V)], [table[:, 0] for table in tables]
            for table in tables[1:]:
                self.keys.append(self.find(table[:, 1:-1])[0] * self.V + table[:, -1])
            return self.prepare(), meta
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged or not an n-gram file ({str(error)[:80]})."
            ) from None


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
                "In any order there is no q(x_j | x before j): not lossless. Use one step or order 'left'."
            )
        self.model, self.steps, self.window = model, steps, window

    def propose(self, x, n, gamma, settings, generator):
        """(B, L), (B,) -> (B, gamma) tokens, (B, gamma, V) the distributions that they were drawn from."""
        size = self.model.config.block_size
        known = min(int(n.min()), self.window or size, size - gamma)
        where = (
            n[:, None] - known + torch.arange(known + gamma, device=x.device)
        )  # (B, known + gamma)
        z = x.gather(1, where)
        z[:, known:] = self.model.mask_id
        qs = []
        for group in torch.arange(gamma).tensor_split(min(self.steps, gamma)):
            at = known + group.to(x.device)
            q = probabilities(
                self.model.head(self.model.hidden(z)[:, at]), *settings
            )  # (B, group, V)
            z[:, at] = draw_from(q, generator)
            qs.append(q)
        return z[:, known:], torch.cat(qs, 1)


# ----------------------------------------------------------------------------------------------------------------------
# loading


class HuggingFace(HuggingFaceModel, GPT):
    """A model that runs through transformers, with the head and the losses of a GPT."""


def new_model(config):
    """GPTConfig -> a GPT of the blocks that its arch names."""
    return GPT(config, {"gpt": Block, "lstm": LSTMBlock, "cnn": ConvBlock}[config.arch])


def load_model(path, device="cpu", attention="sdpa"):
    """-> GPT in eval mode with the averaged weights where there are any, and the checkpoint's dict without weights."""
    saved = load_checkpoint(path)
    if is_foreign(saved["model_config"]):
        model = HuggingFace(saved["model_config"], attention)
    else:
        model = new_model(
            config_of(saved, path, attention=attention)
        )  # not the one it was trained with
    load_weights(model, weights_of(saved))
    left = ("model", "ema", "optimizer", "optimizers")
    return model.to(device).eval(), {k: v for k, v in saved.items() if k not in left}


def load_to_sample(path, cfg):
    """-> model, its checkpoint, the context to sample it in, and a note on device and number format.

    Whole sequences go through in bfloat16. A cached autoregressive step on a CPU multiplies one row: float32 is faster.
    """
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    model, checkpoint = load_model(path, device, cfg.attention)
    if model.config.causal and device.type == "cpu":
        autocast, note = contextlib.nullcontext(), note.rpartition(", ")[0] + ", float32"
    if cfg.compile == "on":
        compile_trunk(model, device)
    return model, checkpoint, autocast, note


def load_drafter(path, target, meta, cfg):
    """-> a drafter for the target: 'lookup', an n-gram file (.txt) or a checkpoint, of the same vocabulary."""
    if not target.config.causal:
        raise UserError(
            "--draft makes an autoregressive model faster; this checkpoint is a diffusion model."
        )
    if path == "lookup":
        return Lookup(target.config.vocab_size)
    if path.endswith(".txt"):
        drafter, its_meta = NGram.load(path)
    else:
        drafter, checkpoint = load_model(path, target.wte.weight.device, cfg.attention)
        its_meta = padded_as(drafter, checkpoint["meta"], meta["vocab_size"])
        if drafter.config.block_size < (cfg.length or target.config.block_size):
            raise UserError(
                f"The text is longer than {path}'s context: use --length={drafter.config.block_size}."
            )
        drafter = drafter if drafter.config.causal else Diffusion(drafter, cfg.draft_steps)
    if not data.same_vocabulary(meta, its_meta):
        raise UserError(f"The drafter {path} has another vocabulary than the target.")
    return drafter


def fit_ngram(cfg, tokens, corpus):
    """Counts the tokens and writes out_dir/ngram.txt."""
    refuse_used(cfg.out_dir)
    path = os.path.join(cfg.out_dir, "ngram.txt")
    V, how = corpus.meta["vocab_size"], (cfg.smoothing, cfg.ngram_discount, cfg.ngram_alpha)
    model, val = NGram(cfg.ngram_n, V, *how).fit(tokens), data.blocks(corpus.val, 129, 200)
    nats = -torch.cat([model(b[:, :-1]).gather(2, b[:, 1:, None]) for b in val.split(8)]).mean()
    model.save(path, corpus.meta)
    save_config(cfg, cfg.out_dir)
    print_once(
        f"validation {nats:.4f} nats per token, {sum(map(len, model.keys)):,} n-grams saved to {path}"
    )
