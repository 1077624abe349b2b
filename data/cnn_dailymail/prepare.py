"""
CNN / Daily Mail (See et al. 2017) as GPT-2 byte pairs: 300 K news articles, each with a summary to
learn to write.
$ python data/cnn_dailymail/prepare.py                        (minutes; downloads 0.8 GB)
$ python data/cnn_dailymail/prepare.py --input='my/*.jsonl'  (.parquet, .csv; article, highlights)
$ python data/cnn_dailymail/prepare.py --tokenizer=hf:google/flan-t5-small \\
      --out_dir=data/cnn_dailymail_t5

A pair is: article, "\nTL;DR:", " " + summary, end of text; the prompt is that of GPT-2 (Radford et
al. 2019, 3.6). For an encoder-decoder it is a row: the source (prefix + article), padded to
prompt_tokens; the start token; the summary; its end, repeated so that these are summary_tokens.
"""

import collections
import functools
import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import UserError, check_at_least, choose, configure
from data.documents import documents, hold_out, with_text, write_documents

# --------------------------------------------------------------------------------------------------
# gets train.bin, val.bin, prompts.jsonl, meta.json
out_dir = os.path.dirname(os.path.abspath(__file__))
input = ""  # files of your own (a glob) instead of the download
tokenizer = "gpt2"  # or hf:NAME_OR_FOLDER, also of an encoder-decoder such as T5
prompt_tokens = 512  # of a prompt, TL;DR: included; an article is cut to fit
prefix = "summarize: "  # of a source that an encoder reads
summary_tokens = 128  # of an encoder-decoder: start, summary and end; a longer one is cut
n_prompts = 1000  # at most; {"prompt", "reference"} a line, all exactly prompt_tokens long
val_fraction = 0.05  # of the pairs of your own files; prompts come from these
num_proc = os.cpu_count() or 1  # processes
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

HUB = {"path": "abisee/cnn_dailymail", "name": "3.0.0"}
COLUMNS = ["article", "highlights"]
TLDR = "\nTL;DR:"


def meta_of(cfg):
    """-> the meta of the tokenizer's vocabulary; of an encoder-decoder's also what a row is."""
    meta = data.GPT2_META
    if cfg.tokenizer.startswith("hf:"):
        meta = data.hf_meta(cfg.tokenizer.removeprefix("hf:"))
    else:
        choose("tokenizer", cfg.tokenizer, ("gpt2", "hf:NAME_OR_FOLDER"))
    if "eot" not in meta:
        raise UserError(f"{cfg.tokenizer} has no token for the end of a text: pairs need one.")
    if "pad" not in meta:
        return meta
    row = cfg.prompt_tokens + cfg.summary_tokens
    return meta | {"row": row, "source_tokens": cfg.prompt_tokens, "prefix": cfg.prefix}


def encoder_of(meta):
    """-> encode(str) -> [int], without tokens that mean more than text."""
    if meta["tokenizer"] == "gpt2":
        return functools.partial(data.gpt2_encode, special=())
    return data.encoder(meta)[0]


def prompt_ids(article, prompt_tokens, meta=data.GPT2_META):
    """
    A text -> the ids of its beginning and TL;DR:, prompt_tokens of them or, if it is short, fewer.

    For an encoder: of the prefix, its beginning, and the end that the tokenizer gives to a text.
    """
    if "row" in meta:
        # at last the decoder's start
        *ids, end, _ = data.encode_prompt(meta, meta["prefix"] + article.strip())
        return [*ids[: prompt_tokens - 1], end]
    encode = encoder_of(meta)
    tail = encode(TLDR)
    return encode(article.strip())[: prompt_tokens - len(tail)] + tail


def tokenize(row, prompt_tokens, meta=data.GPT2_META):
    encode = encoder_of(meta)
    ids = prompt_ids(row["article"], prompt_tokens, meta)
    summary = row["highlights"].strip()
    if "row" in meta:
        ids += [meta["pad"]] * (prompt_tokens - len(ids)) + [meta["start"], *encode(summary)]
        ids = ids[: meta["row"] - 1]
        ids += [meta["eot"]] * (meta["row"] - len(ids))
    else:
        ids += [*encode(" " + summary), meta["eot"]]
    return {"ids": ids, "len": len(ids)}


def prompts(pairs, prompt_tokens, meta=data.GPT2_META):
    """
    Rows -> [{"prompt", "reference"}] of exactly prompt_tokens tokens, Counter of the rows that give
    none.

    A cut inside a character or between two line breaks makes a text that byte pairs encode
    otherwise: left out.
    """
    encode, decode = data.encoder(meta)
    if "row" in meta:
        encode = lambda text: data.encode_prompt(meta, text)[:-1]  # noqa: E731
    kept = []
    left_out = collections.Counter(too_short=0, not_exact=0)
    for row in pairs:
        ids = prompt_ids(row["article"], prompt_tokens, meta)
        text = decode(ids)
        if len(ids) < prompt_tokens:
            left_out["too_short"] += 1
        elif encode(text) != ids:
            left_out["not_exact"] += 1
        else:
            kept.append({"prompt": text, "reference": row["highlights"].strip()})
    return kept, left_out


def splits(cfg):
    """-> Datasets of pairs: to train, to validate, to make prompts of."""
    if cfg.input:
        rows = with_text(documents(HUB, cfg.input, COLUMNS), COLUMNS)
        train, val = hold_out(rows, cfg.val_fraction)
        return train, val, val
    found = []
    for name in ("train", "validation", "test"):
        rows = documents({**HUB, "split": name}, cfg.input, COLUMNS)
        found.append(with_text(rows, COLUMNS))
    return found


def main(cfg):
    check_at_least(cfg, summary_tokens=3, n_prompts=1, num_proc=1)
    meta = meta_of(cfg)
    n_tail = len(encoder_of(meta)(TLDR))
    check_at_least(cfg, prompt_tokens=n_tail + 1)
    train, val, test = splits(cfg)
    # the download is in order of newspaper
    kept, left_out = prompts(test.shuffle(seed=2357), cfg.prompt_tokens, meta)
    if not kept:
        raise UserError(
            f"No article of {len(test)} fills --prompt_tokens={cfg.prompt_tokens} exactly. "
            "Lower it."
        )
    options = {
        "fn_kwargs": {"prompt_tokens": cfg.prompt_tokens, "meta": meta},
        "remove_columns": test.column_names,
        "desc": "tokenizing",
        "num_proc": cfg.num_proc,
    }
    train = train.map(tokenize, **options)
    val = val.map(tokenize, **options)
    counts = write_documents(cfg.out_dir, train, val, meta["vocab_size"])
    used = kept[: cfg.n_prompts]
    data.write_jsonl(os.path.join(cfg.out_dir, "prompts.jsonl"), used)
    about = {"source": cfg.input or HUB["path"], "train_pairs": len(train), "val_pairs": len(val)}
    about |= {**counts, "prompt_tokens": cfg.prompt_tokens, "prompts": len(used), **left_out}
    data.write_meta(cfg.out_dir, meta | about)
    print(
        f"{len(used)} prompts of {cfg.prompt_tokens} tokens, of {len(test)} articles: "
        f"{left_out['too_short']} too short, {left_out['not_exact']} not the same when encoded "
        f"again, {len(kept) - len(used)} not needed"
    )


if __name__ == "__main__":
    main(cfg)
