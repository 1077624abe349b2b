"""
Any model that `transformers` runs, as target, drafter, teacher or judge: hf:NAME_OR_FOLDER, with a GPT's interface.

Decoder-only: Llama, Qwen, GPT-2, ... Encoder-decoder: T5 and its kin; a row of theirs begins with `source` tokens that
the encoder reads, then come the decoder's start token and what the decoder writes.
"""

import dataclasses
import math
import os

import torch
import torch.nn as nn
import torch.nn.functional as F

from configurator import UserError
from data import from_hub, hf_config, hf_meta, hf_tokenizer

CONTEXT = 1024  # tokens of a row, where hf:NAME@TOKENS does not say: all that a model can read would fill any memory


@dataclasses.dataclass
class HuggingFaceConfig:
    """What of a GPTConfig the callers of a model look at."""

    arch: str  # 'hf:NAME_OR_FOLDER' or 'hf:NAME_OR_FOLDER@TOKENS'
    vocab_size: (
        int  # logits of a token: the head's rows; a drafter may be given its target's, see head
    )
    n_embd: int  # C, of what enters the head
    block_size: int  # longest row, in tokens, the source of an encoder included
    causal: bool = True
    dropout: float = 0.0


def name_and_context(path):
    """'hf:NAME' or 'hf:NAME@TOKENS' -> NAME, the longest row that is asked for."""
    name, at, context = path[3:].rpartition("@")
    return (name, int(context)) if at and context.isdigit() else (path[3:], CONTEXT)


def about(path):
    """'hf:NAME_OR_FOLDER' -> a dict like load_checkpoint's, without weights: they come when the model is made."""
    name, context = name_and_context(path)
    config, meta = hf_config(name), hf_meta(name)
    text = config.get_text_config(decoder=True)
    longest = (
        getattr(text, "max_position_embeddings", None) or context
    )  # T5 knows distances only: any length
    longest *= 1 + config.is_encoder_decoder  # a source and a text
    model_config = {
        "vocab_size": text.vocab_size,
        "n_embd": text.hidden_size,
        "block_size": min(longest, context),
    }
    found = {
        "model_config": {"arch": path, **model_config},
        "meta": meta,
        "config": {"dataset": ""},
    }
    return found | {"step": 0, "val_loss": None, "model": None, "ema": None, "made_for": None}


def is_foreign(model_config):
    """Whether a checkpoint's model_config is of a model of transformers, such as a drafter that learned here."""
    return isinstance(model_config, dict) and str(model_config.get("arch")).startswith("hf:")


def context_of(model, meta):
    """-> the model's context, in tokens. A dataset of rows, a source and a text each, shortens it to a row."""
    if "row" in meta:
        model.config.block_size = min(model.config.block_size, meta["row"] - 1)
        model.source = meta["source_tokens"]
    return model.config.block_size


def padded_as(drafter, meta, vocab_size):
    """-> the drafter's meta. One of transformers gets as many logits as its target: sizes of one family have the same
    tokens, but heads that are padded to different numbers of rows.
    """
    if not isinstance(drafter, HuggingFaceModel):
        return meta
    drafter.config.vocab_size = vocab_size
    return meta | {"vocab_size": vocab_size}


def source_of(model):
    """-> how many tokens at the beginning of a row the model's encoder reads: 0 of one that has none, also of a GPT."""
    return model.source if getattr(model, "seq2seq", False) else 0


def written(model, y):
    """(B, T) int64, the token after each place -> (B, T) bool: which of them the model writes.

    All; of one with an encoder what follows the source, up to the first end-of-text: with that the row is filled.
    """
    if not getattr(model, "seq2seq", False):
        return torch.ones_like(y, dtype=torch.bool)
    end = y[:, model.source :] == model.inner.config.eos_token_id
    return F.pad(end.cumsum(1) - end.long() == 0, (model.source, 0))


class HuggingFaceModel(nn.Module):
    """To be inherited beside GPT, whose head and losses it keeps; hidden and the cache are its own.

    The model's head is taken out of it: what it then calls its logits is what enters the head, scaled as it should be.
    DIFFERS from a training in transformers: always in eval mode, without dropout.
    """

    def __init__(self, model_config, attention="sdpa"):
        nn.Module.__init__(self)
        self.config, self.mask_id, self.wpe = HuggingFaceConfig(**model_config), None, None
        self.source = 0  # tokens at the beginning of a row that the encoder, if there is one, reads
        name, _ = name_and_context(self.config.arch)
        self.seq2seq = hf_config(name).is_encoder_decoder
        kind = "AutoModelForSeq2SeqLM" if self.seq2seq else "AutoModelForCausalLM"
        kernel = {"manual": "eager", "flash_attn": "flash_attention_2"}.get(
            attention
        )  # else as transformers chooses
        how = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": kernel}
        self.inner = from_hub(kind, name, **how).eval()
        self.lm_head = self.inner.get_output_embeddings()
        self.refuse_unless_it_is_what_it_seems()

    @property
    def wte(self):
        return self.inner.get_input_embeddings()

    @property
    def head_bias(self):
        return self.lm_head.bias

    def train(self, mode=True):
        return self

    def head(self, h):
        """(..., C) -> (..., V) logits; past the head's own rows -inf, for a target with a longer padding."""
        z = super().head(h)
        return F.pad(z, (0, self.config.vocab_size - z.size(-1)), value=-math.inf)

    def hidden(self, idx, cache=None):
        """(B, T) int64 -> (B, T, C); zeros where the encoder reads. With a RowsCache, idx follow the cached tokens."""
        T = idx.size(1)
        end = max(cache.lengths) + T if cache else T
        if end > self.config.block_size:
            raise UserError(
                f"{end} tokens are more than the context of {self.config.block_size}: see hf:NAME@TOKENS."
            )
        if not cache:
            return self.states(idx)
        h = torch.cat(
            [
                self.states(idx[rows], cache.lengths[rows.start], part)
                for rows, part in cache.parts()
            ]
        )
        cache.lengths = [n + T for n in cache.lengths]
        return h

    def states(self, idx, start=0, past=None):
        """(b, T) int64 that follow the first `start` tokens, those in `past` -> (b, T, C)."""
        idx = idx.clamp(max=self.wte.num_embeddings - 1)  # a token of a target's longer padding
        source = source_of(self)
        how = {
            "use_cache": past is not None,
            "cache": past and past.take_back(max(start - source, 0)),
        }
        if not self.seq2seq:
            return self.inner(input_ids=idx, **how).logits
        n = max(source - start, 0)  # tokens of the source in idx: all of them, or none
        if not source or n not in (0, source) or (n and past and past.encoded):
            raise UserError(
                f"{self.config.arch} has an encoder: it needs a prompt to read, and a text in its context."
            )
        if n:
            mask = (idx[:, :n] != self.inner.config.pad_token_id).long()
            read = {"input_ids": idx[:, :n], "attention_mask": mask}
            encoded = {
                "encoder_outputs": (self.inner.get_encoder()(**read).last_hidden_state,),
                "attention_mask": mask,
            }
        if n and past:
            past.encoded = encoded
        encoded = encoded if n else past.encoded
        h = self.inner(decoder_input_ids=idx[:, n:], **encoded, **how).logits
        return F.pad(h, (0, 0, n, 0))

    def new_cache(self, batch_size):
        return RowsCache(self.seq2seq, batch_size)

    def take_head_out(self):
        self.inner.set_output_embeddings(nn.Identity())

    @torch.no_grad()
    def refuse_unless_it_is_what_it_seems(self):
        """Takes the head out. Refuses a model whose logits are not the head's alone (soft-capped ones), and one whose
        cache cannot be taken back (linear attention, sliding windows).
        """
        x, name, self.source = (
            torch.arange(8)[None] % self.config.vocab_size,
            self.config.arch,
            3 * self.seq2seq,
        )
        ids = (
            {"input_ids": x[:, :3], "decoder_input_ids": x[:, 3:]}
            if self.seq2seq
            else {"input_ids": x}
        )
        found = getattr(self.inner(**ids, use_cache=True), "cache", None)
        found = getattr(found, "self_attention_cache", found)
        kinds = {type(layer).__name__ for layer in getattr(found, "layers", [found])}
        if kinds != {"DynamicLayer"}:
            raise UserError(
                f"{name} remembers by {', '.join(sorted(kinds))}, which cannot take drafts back."
            )
        if hasattr(self.inner, "final_logits_bias"):
            raise UserError(
                f"{name} adds a bias to its logits outside the head, as BART does: not known here."
            )
        logits = self.states(x)[:, self.source :]
        self.take_head_out()
        h, cache = self.hidden(x), self.new_cache(1)
        self.hidden(x[:, :7], cache)
        cache.lengths = [5]
        again = self.hidden(x[:, 5:], cache)
        for what, a, b in (
            ("logits", self.head(h[:, self.source :]), logits),
            ("cached states", again, h[:, 5:]),
        ):
            if (a - b).abs().max() > 1e-3 * b.abs().max():
                raise UserError(
                    f"{name} makes its {what} in a way of its own, which is not known here."
                )
        self.source = 0

    def state_dict(self, **kw):
        """Without the second names of tied weights."""
        own = super().state_dict(**kw)
        return {n: own[n] for n, _ in self.named_parameters()}

    def load_state_dict(self, weights):
        return super().load_state_dict(weights, strict=False)  # as state_dict has no second names

    def save(self, folder):
        """Writes a folder that hf:FOLDER loads."""
        self.inner.set_output_embeddings(self.lm_head)
        self.inner.save_pretrained(f"{folder}.tmp")
        self.take_head_out()
        hf_tokenizer(name_and_context(self.config.arch)[0]).save_pretrained(f"{folder}.tmp")
        os.replace(f"{folder}.tmp", folder)


class Past:
    """The keys and values of some rows, and what the encoder made of their sources."""

    def __init__(self, cache, encoded=None):
        self.cache, self.encoded = cache, encoded

    def take_back(self, n):
        """-> the cache with no more than its first n tokens."""
        self.cache.crop(min(n - self.cache.get_seq_length(), 0))
        return self.cache

    def of(self, rows):
        """-> those of some of the rows alone."""
        if not self.encoded:
            return Past(select(self.cache, rows))
        mask, (states,) = self.encoded["attention_mask"][rows], self.encoded["encoder_outputs"]
        return Past(
            select(self.cache, rows), {"attention_mask": mask, "encoder_outputs": (states[rows],)}
        )


def select(cache, rows):
    """A cache of transformers -> that of some of its rows."""
    import transformers

    if isinstance(cache, transformers.EncoderDecoderCache):
        both = cache.self_attention_cache, cache.cross_attention_cache
        return transformers.EncoderDecoderCache(*(select(part, rows) for part in both))
    return transformers.DynamicCache(
        [(layer.keys[rows], layer.values[rows]) for layer in cache.layers]
    )


class RowsCache:
    """A KVCache (its lengths, forget_after and keep) of caches of transformers, which take back as much in every row.

    So rows share one while they are equally long, as in generate; once they differ, each has its own, and a batch is a
    loop over its rows.
    """

    def __init__(self, seq2seq, batch_size):
        import transformers

        cache = transformers.DynamicCache()
        both = (
            transformers.EncoderDecoderCache(cache, transformers.DynamicCache())
            if seq2seq
            else cache
        )
        self.lengths, self.pasts = [0] * batch_size, [Past(both)]

    def parts(self):
        """-> [(slice of rows, their Past), ...]"""
        if len(set(self.lengths)) > 1 and len(self.pasts) == 1:
            self.pasts = [self.pasts[0].of(slice(i, i + 1)) for i in range(len(self.lengths))]
        n = len(self.lengths) // len(self.pasts)
        return [(slice(i * n, i * n + n), past) for i, past in enumerate(self.pasts)]

    def forget_after(self, n):
        """(B,) int64: how many tokens a row has at most from now on."""
        self.lengths = list(map(min, self.lengths, n.tolist()))

    def keep(self, rows):
        """(B,) bool: drops the other rows."""
        kept = rows.tolist()
        self.lengths = [n for n, k in zip(self.lengths, kept, strict=True) if k]
        if len(self.pasts) == 1:
            self.pasts = [self.pasts[0].of(rows)]
        else:
            self.pasts = [past for past, k in zip(self.pasts, kept, strict=True) if k]
