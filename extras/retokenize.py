"""
An evaluator of another vocabulary reads saved samples, cut as its own tokenizer cuts them: so
models of different tokenizers compare, in bits per character.
$ python -m extras.save_samples --ckpt=out/pydoc/ckpt.pt --out=a.jsonl
$ python -m extras.retokenize --samples=a.jsonl,b.jsonl --evaluator=hf:Qwen/Qwen2.5-0.5B

Perplexity is per token of the model that wrote the text, so that it stands beside those of eval.py.
"""

import math
import os

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
batch_size = 16  # sequences per forward pass, on each process
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def retokenized(x, prefix, decode, encode):
    """
    (n, L) int64 of one tokenizer -> (n, M) int64 of another, padded at the end, and (n, M) bool:
    the tokens of the texts themselves, not of the prefix. End-of-text stays one token.
    """
    rows = []
    positions = []
    for row in x.tolist():
        known = encode(decode(row[:prefix]))
        new = encode(decode(row[prefix:]))
        ids = torch.tensor(known + new)
        rows.append(ids)
        positions.append(torch.arange(len(ids)) >= len(known))
    return pad_sequence(rows, batch_first=True), pad_sequence(positions, batch_first=True)


def n_characters(x, prefix, decode):
    """(n, L) int64 -> how many characters the texts have after the prefix."""
    return sum(len(decode(row)) for row in x[:, prefix:].tolist())


def measure(x, prefix, meta, evaluator, evaluator_meta, batch_size):
    """
    (n, L) int64, of which `prefix` tokens are real text -> {"texts", "genppl", "bits_per_char"}.

    What is scored is the same as in eval.py: not the prefix, nor a text's first token, nor an
    end-of-text after its first.
    """
    decode = data.encoder(meta)[1]
    encode = data.encoder(evaluator_meta)[0]
    y, is_new = retokenized(x, prefix, decode, encode)  # (n, M) both
    scored = scored_positions(y, evaluator_meta.get("eot")) & is_new
    nats = evaluator_nats(evaluator, y, scored, batch_size).sum().item()
    n_tokens = scored_positions(x, meta.get("eot"), prefix).sum().item()
    characters = n_characters(x, prefix, decode)
    return {
        "texts": len(x),
        "genppl": math.exp(nats / n_tokens),
        "bits_per_char": nats / math.log(2) / characters,
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
    os.makedirs(os.path.dirname(cfg.out) or ".", exist_ok=True)
    data.write_json(cfg.out, {"evaluator": cfg.evaluator, "hardware": note, "rows": rows})


if __name__ == "__main__":
    main(cfg)
