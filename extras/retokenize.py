"""
An evaluator of another vocabulary reads saved samples, cut as its own tokenizer cuts them: so
models of different tokenizers compare, in bits per character.
$ python -m extras.save_samples --ckpt=out/pydoc/ckpt.pt --out=a.jsonl
$ python -m extras.retokenize --samples=a.jsonl,b.jsonl --evaluator=hf:Qwen/Qwen2.5-0.5B

Perplexity is per token of the model that wrote the text, so that it stands beside those of eval.py.
"""

import math

import torch
from torch.nn.utils.rnn import pad_sequence

import data
from configurator import UserError, configure
from drafters import load_model
from metrics import evaluator_nats, scored_positions
from plumbing.checkpoints import paths_of
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import pick_device
from plumbing.report import table

# --------------------------------------------------------------------------------------------------
samples = ""  # files of extras.save_samples, by commas
evaluator = "gpt2-large"  # an autoregressive checkpoint, gpt2, hf:NAME
out = "out/retokenize.json"
batch_size = 16  # sequences per forward pass
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def texts_of(ids, eot, decode):
    """[token, ...] -> [text, ...]: those between the end-of-texts, at least one, perhaps ''."""
    parts = [[]]
    for token in ids:
        if token == eot:
            parts.append([])
        else:
            parts[-1].append(token)
    return [decode(part) for part in parts]


def tokens_of(texts, end, encode):
    """[text, ...] -> [token, ...]: with `end` between them, [end-of-text] or []."""
    first, *others = texts
    ids = encode(first)
    for text in others:
        ids = [*ids, *end, *encode(text)]
    return ids


def retokenized(x, prefix, meta, evaluator_meta):
    """
    (n, L) int64 of one tokenizer -> (n, M) int64 of another, padded at the end; (n, M) bool: the
    tokens of the texts themselves, not of the prefix; how many characters these tokens have, except
    a row's first, which has nothing before it and is not scored.

    An end-of-text stays one token, of no characters: spelled out it would add 13 that cost nothing.
    """
    eot = meta.get("eot")
    decode = data.encoder(meta)[1]
    encode, decode_again = data.encoder(evaluator_meta)
    end = [evaluator_meta["eot"]] if "eot" in evaluator_meta else []
    rows = []
    positions = []
    n_characters = 0
    for row in x.tolist():
        known = tokens_of(texts_of(row[:prefix], eot, decode), end, encode)
        texts = texts_of(row[prefix:], eot, decode)
        new = tokens_of(texts, end, encode)
        ids = torch.tensor(known + new, dtype=torch.int64)
        rows.append(ids)
        positions.append(torch.arange(len(ids)) >= len(known))
        n_characters += sum(map(len, texts))
        if not known and new[:1] != end:
            n_characters -= len(decode_again(new[:1]))
    y = pad_sequence(rows, batch_first=True)
    return y, pad_sequence(positions, batch_first=True), n_characters


def measure(x, prefix, meta, evaluator, evaluator_meta, batch_size):
    """
    (n, L) int64, the first `prefix` tokens real text -> {"texts", "genppl", "bits_per_char"}.

    What is scored is the same as in eval.py: not the prefix, nor a text's first token, nor an
    end-of-text after its first. Raises UserError where nothing is left.
    """
    y, is_new, n_characters = retokenized(x, prefix, meta, evaluator_meta)
    scored = scored_positions(y, evaluator_meta.get("eot")) & is_new  # (n, M)
    n_tokens = scored_positions(x, meta.get("eot"), prefix).sum().item()
    if not (n_tokens and n_characters):
        raise UserError(
            f"{len(x)} texts of {x.size(1)} tokens have nothing that is scored: the first token is "
            "not, nor an end-of-text after the first. Draw longer ones."
        )
    nats = evaluator_nats(evaluator, y, scored, batch_size).sum().item()
    return {
        "texts": len(x),
        "genppl": math.exp(nats / n_tokens),
        "bits_per_char": nats / math.log(2) / n_characters,
    }


def main(cfg):
    check_sampling_knobs(cfg)
    if not cfg.samples:
        raise UserError("Name files of extras.save_samples: --samples=a.jsonl,b.jsonl")
    device, _, note = pick_device(cfg.device, "float32")  # what is reported is in float32
    evaluator, checkpoint = load_model(cfg.evaluator, device, cfg.attention)
    if not evaluator.config.causal:
        raise UserError(f"{cfg.evaluator} is a diffusion model; an evaluator is autoregressive.")
    rows = []
    for path in paths_of(cfg.samples):
        x, about = data.load_samples(path)
        args = about["prefix"], about["meta"], evaluator, checkpoint["meta"]
        row = {"samples": path, "model": about["ckpt"], "steps": about["steps"]}
        rows.append(row | measure(x, *args, cfg.batch_size))
    print("\n".join(table(list(rows[0]), [list(row.values()) for row in rows])))
    data.write_json(cfg.out, {"evaluator": cfg.evaluator, "hardware": note, "rows": rows})


if __name__ == "__main__":
    main(cfg)
