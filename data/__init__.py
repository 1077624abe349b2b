"""
Datasets: data/<name>/prepare.py writes train.bin, val.bin (token ids) and meta.json; this file
writes and reads them.
"""

import collections
import contextlib
import difflib
import functools
import glob
import json
import os
import re
import types

import numpy as np
import torch

from configurator import UserError, first_line
from data.tokenizers import (
    GPT2_META,
    chat_prompt,
    from_hub,
    gpt2,
    gpt2_encode,
    hf_config,
    hf_encode,
    hf_meta,
    hf_tokenizer,
    ids_encoder,
    is_bare,
    json_encoder,
    opening_of,
    tokenizer_knob,
)

# what of a meta tells what its token ids mean
VOCABULARY = ("tokenizer", "vocab_size", "itos", "json", "pieces", "transition")
# tokens of a file that are looked at when it is loaded: a file of another vocabulary shows here
CHECKED = 2**24

# --------------------------------------------------------------------------------------------------
# reading


def load(dataset):
    """
    A name under data/, or a folder -> .train, .val (memory-mapped token ids), .meta (dict).

    Where the texts are pairs, .train.starts and .val.starts tell where each begins. Raises
    UserError with the command that makes the dataset if a file of it is missing.
    """
    folder, meta = load_meta(dataset, "train.bin", "val.bin")
    dtype = token_dtype(meta["vocab_size"])
    bins = {}
    for name in ("train", "val"):
        path = os.path.join(folder, f"{name}.bin")
        try:
            bins[name] = np.memmap(path, dtype=dtype, mode="r")
        except ValueError as error:  # an empty file, or half a token
            raise UserError(f"{path} is damaged ({error}). {dataset_hint(folder)}") from None
        largest = bins[name][:CHECKED].max()
        if largest >= meta["vocab_size"]:
            raise UserError(
                f"{path} holds token {largest}, but meta.json names {meta['vocab_size']} tokens. "
                + dataset_hint(folder)
            )
    if "train_pairs" in meta:
        for tokens in bins.values():
            tokens.starts = pair_starts(tokens, meta)
    return types.SimpleNamespace(meta=meta, **bins)


def pair_starts(tokens, meta):
    """(n,) token ids of pairs -> where each begins."""
    if "row" in meta:  # of an encoder-decoder, all of one length
        return np.arange(0, len(tokens), meta["row"])
    ends = np.flatnonzero(tokens == meta["eot"])
    return np.append(0, ends[:-1] + 1)


def load_meta(dataset, *others):
    """
    A name under data/, or a folder -> the folder, its meta. Raises UserError unless it holds the
    others as well, whole.
    """
    if not dataset:
        raise UserError(
            "No dataset is named, and the model tells none. Name one, of its vocabulary: "
            "--dataset=NAME"
        )
    folder = os.path.join(os.path.dirname(__file__), dataset)
    # of two folders of this name, here and under data/, the one here if it is a dataset
    if os.path.isdir(dataset) and not os.path.isdir(folder):
        folder = dataset
    if os.path.exists(os.path.join(dataset, "meta.json")):
        folder = dataset
    for name in ("meta.json", *others):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            continue
        if "train.bin" in others and holds_passages(folder):
            raise UserError(
                f"{folder} has passages for extras.lambada, but no text to train on or to "
                "validate with. Take another --dataset."
            )
        raise UserError(f"{path} is missing. {dataset_hint(folder)}")
    path = os.path.join(folder, "meta.json")
    try:
        meta = read_json(path)
        if "tokenizer" not in meta:
            raise ValueError("it names no tokenizer")
    except (OSError, ValueError, TypeError) as error:
        why = first_line(error)
        raise UserError(f"{path} is damaged ({why}). {dataset_hint(folder)}") from None
    return folder, meta


def holds_passages(folder):
    """Whether it is LAMBADA's, prepared or not, or one that its prepare.py has written."""
    is_lambada = os.path.basename(folder) == "lambada"
    return is_lambada or os.path.exists(os.path.join(folder, "passages.jsonl"))


def dataset_hint(folder):
    """The command that prepares a dataset, or the names of those that there are."""
    root = os.path.dirname(__file__)
    name = os.path.basename(folder)
    known = sorted(d for d in os.listdir(root) if os.path.exists(f"{root}/{d}/prepare.py"))
    has_text = all(os.path.exists(os.path.join(folder, f"{n}.bin")) for n in ("train", "val"))
    if has_text and not os.path.exists(os.path.join(folder, "meta.json")):
        return nanogpt_hint(folder)
    if name in known:
        return f"Make it with: python data/{name}/prepare.py"
    if os.path.isdir(folder):
        return "Write it again, with the prepare.py that made it."
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}"


def nanogpt_hint(folder):
    """The command that takes a folder with token ids but no meta.json, as nanoGPT writes them."""
    if not os.path.exists(os.path.join(folder, "meta.pkl")):
        command = f"python data/nanogpt/prepare.py --input={folder}"
        return f"If it is nanoGPT's, of GPT-2 byte pairs: {command}. Else prepare it again."
    text = os.path.join(folder, "input.txt")
    text = text if os.path.exists(text) else "FILE"
    return (
        f"{folder} has characters of nanoGPT, whose meta.pkl is a pickle, and none is loaded here. "
        f"Make them again: python data/text/prepare.py --input={text} --tokenizer=char "
        f"--out_dir={folder}"
    )


def block_starts(tokens, length, step):
    """
    -> where a block of `length` tokens may begin: at every step-th token or, of pairs, with a pair.
    """
    last = len(tokens) - length
    if last < 0:
        raise UserError(
            f"The corpus has {len(tokens)} tokens, fewer than one block of {length}. Take a longer "
            "text, or shorter blocks (--block_size where a model is trained, else --length)."
        )
    starts = getattr(tokens, "starts", None)
    return range(0, last + 1, step) if starts is None else starts[starts <= last]


def batch(tokens, batch_size, length, generator):
    """
    (n,) token ids -> (batch_size, length) int64 from random positions. Same generator state, same
    batch.
    """
    starts = block_starts(tokens, length, 1)
    drawn = torch.randint(len(starts), (batch_size,), generator=generator).tolist()
    return stacked(tokens, [starts[i] for i in drawn], length)


def blocks(tokens, length, limit):
    """
    (n,) token ids -> (at most limit, length) int64: blocks side by side (of pairs: beginnings),
    spread evenly.
    """
    starts = block_starts(tokens, length, length)
    chosen = np.linspace(0, len(starts) - 1, min(len(starts), limit)).astype(int)
    return stacked(tokens, [starts[i] for i in chosen], length)


def stacked(tokens, starts, length):
    """(n,) token ids -> (len(starts), length) int64."""
    rows = [tokens[start : start + length] for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def encoder(meta):
    """
    meta -> encode(str) -> [int], decode([int]) -> str. encode raises UserError for an unknown
    character.
    """
    if meta["tokenizer"] == "gpt2":
        return gpt2_encode, gpt2().decode
    if meta["tokenizer"].startswith("hf:"):
        tokenizer = hf_tokenizer(meta["tokenizer"][3:])
        encode = functools.partial(hf_encode, meta, add_special_tokens=False)
        n = max(tokenizer.get_vocab().values()) + 1

        def decode(ids):
            # an id past the last token is a row of the head that only pads it
            return tokenizer.decode([i for i in ids if i < n], skip_special_tokens=True)

        return encode, decode
    if meta["tokenizer"] in ("json", "ids"):  # of a published model
        return {"json": json_encoder, "ids": ids_encoder}[meta["tokenizer"]](meta)
    itos = meta["itos"]  # characters, and perhaps longer pieces
    return piece_encoder(itos), lambda ids: "".join(itos[i] for i in ids)


# a word, or punctuation, and the white space before it
SEGMENT = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")


def piece_encoder(itos):
    """
    [piece, ...] -> encode(str) -> [int]: from left to right, always the longest piece that fits.
    """
    stoi = {piece: i for i, piece in enumerate(itos)}
    # two characters -> the lengths of the pieces that begin with them, longest first: trying all
    # lengths would take the square of the longest piece's
    lengths = {}
    for piece in sorted(itos, key=len, reverse=True):
        found = lengths.setdefault(piece[:2], [])
        if len(piece) not in found[-1:]:
            found.append(len(piece))

    def spelled(text):
        ids = []
        i = 0
        while i < len(text):
            for n in (*lengths.get(text[i : i + 2], ()), 1):  # every character is a piece
                piece = text[i : i + n]
                if piece in stoi:
                    break
            ids.append(stoi[piece])
            i += len(piece)
        return ids

    # If no piece goes on from one segment into the next, as none of ours does, a segment's ids are
    # always the same, and most segments have been seen before.
    remembered = functools.lru_cache(2**18)(spelled)
    apart = all(map(SEGMENT.fullmatch, itos))

    def encode(text):
        unknown = sorted(set(text) - stoi.keys())
        if unknown:
            known = "".join(c for c in itos if len(c) == 1)
            raise UserError(f"The vocabulary has no {unknown[0]!r}. It has: {known!r}")
        segments = SEGMENT.findall(text) if apart else [text]
        ids = []
        for part in segments:
            ids += remembered(part) if len(part) < 32 else spelled(part)
        return ids

    return encode


def same_vocabulary(a, b):
    """
    Two metas: do their token ids mean the same? What the pieces of a tokenizer are says more than
    its name.
    """
    if "pieces" in a and "pieces" in b:
        return (a["pieces"], a["vocab_size"]) == (b["pieces"], b["vocab_size"])
    return all(a.get(k) == b.get(k) for k in VOCABULARY)


def start_token(meta):
    """
    What an autoregressive model starts from when there is no prompt: end-of-text, or the first
    character.

    Where texts begin and end, in datasets, prompts, samples and what is evaluated alike: after
    each of several texts, and so before the next one, stands end-of-text. No BOS stands anywhere.
    A decoder of transformers whose tokenizer puts one before a text reads it first, whatever it is
    given (opened, in extras/huggingface.py); an encoder-decoder starts from its own token.
    """
    return meta.get("start", meta.get("eot", 0))


def encode_prompt(meta, text):
    """
    A text, perhaps '' -> the ids that a model continues: at least a start token, after a source if
    there is one.
    """
    start = [start_token(meta)]
    if not text:
        return start
    if "pad" in meta:  # an encoder reads it, closed as its tokenizer does, and the decoder starts
        return hf_encode(meta, text) + start
    return encoder(meta)[0](text)


# --------------------------------------------------------------------------------------------------
# files: what eval.py takes beside a dataset, and how they are found


def matching(pattern, folder=""):
    """-> what matches, relative to the folder, in natural order: round_10 after round_9."""
    return sorted(glob.glob(pattern, root_dir=folder or None), key=natural_key)


def natural_key(path):
    """'round_10.pt' -> ['round_', 10, '.pt']: numbers sort as numbers, all else as text."""
    parts = re.split(r"(\d+)", path)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def open_text(path):
    """
    The one way to read a text or a .jsonl: UTF-8, without a byte order mark, every line ended by LF
    alone, whatever ended it in the file.
    """
    return open(path, encoding="utf-8-sig")


def unreadable(path, error):
    """The OSError or UnicodeDecodeError that open_text or what it opened raised -> UserError."""
    if isinstance(error, OSError):
        return UserError(f"{path} cannot be read ({error.strerror}).")
    start = error.start
    try:
        with open(path, "rb") as f:
            f.read().decode()
    except UnicodeDecodeError as of_whole:  # the other was of a part of the file
        start = of_whole.start
    return UserError(f"{path} is not UTF-8 ({error.reason} at byte {start}). Convert it first.")


def read_text(text):
    """'FILE:path' -> the file's text; anything else is the text itself."""
    if not text.startswith("FILE:"):
        return text
    path = text.removeprefix("FILE:")
    try:
        with open_text(path) as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def read_json(path):
    with open_text(path) as f:
        return json.load(f)


def numbered_rows(path):
    """A .jsonl -> (number of its line, object), ...; blank lines are none. Raises ValueError."""
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: no JSON ({error.msg})") from None
            yield number, row


def read_jsonl(path):
    """-> [object of a line, ...]"""
    return [row for _, row in numbered_rows(path)]


def read_prompts(path):
    """-> [(prompt, the text that should follow), ...]. Raises UserError."""
    pairs = []
    try:
        for number, row in numbered_rows(path):
            for key in ("prompt", "reference"):
                if not (isinstance(row, dict) and isinstance(row.get(key), str)):
                    raise ValueError(f"line {number}: no text {key!r}")
            pairs.append((row["prompt"], row["reference"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds no prompts ({first_line(error)}). data/cnn_dailymail/prepare.py makes "
            "them."
        ) from None
    return pairs


def load_prompts(path, meta, limit):
    """
    -> (n, P) int64, the texts that should follow. Only prompts of the commonest length, at most
    `limit`.
    """
    rows = [(encode_prompt(meta, prompt), reference) for prompt, reference in read_prompts(path)]
    lengths = collections.Counter(len(ids) for ids, _ in rows)
    P = max(lengths, key=lengths.get, default=0)
    rows = [row for row in rows if len(row[0]) == P][:limit]
    if len(rows) < 7:
        raise UserError(
            f"{path} holds {len(rows)} prompts of one length, {P} tokens; the intervals need at "
            "least 7."
        )
    return torch.tensor([ids for ids, _ in rows]), [reference for _, reference in rows]


# what a file of saved samples says of them in its first line
SAMPLES_ARE = {
    "ckpt",
    "steps",
    "causal",
    "temperature",
    "top_p",
    "prefix",
    "continuations",
    "dataset",
    "meta",
}


def load_samples(path):
    """
    -> (n, L) int64, what a file of saved samples says of them: SAMPLES_ARE. Raises UserError if the
    file is damaged.
    """
    try:
        about, *lines = read_jsonl(path)
        about = {**about, "cooling": about.get("cooling") or 1.0}  # older files do not say it
        x = torch.tensor([line["tokens"] for line in lines])
        missing = SAMPLES_ARE - about.keys()
        if missing:
            raise ValueError(f"no {min(missing)}")
        if x.dim() != 2 or not 0 <= x.min() <= x.max() < about["meta"]["vocab_size"]:
            raise ValueError("tokens that are no samples of one length and vocabulary")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no samples ({str(error)[:80]}). python -m extras.save_samples writes "
            "them."
        ) from None
    return x, about


# --------------------------------------------------------------------------------------------------
# writing


def token_dtype(vocab_size):
    return np.uint16 if vocab_size <= 65536 else np.uint32


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """
    -> a file to write to, which becomes path at the end: a kill leaves the old file or the new one,
    never a half.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        f = open(f"{path}.tmp", mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error}).") from None
    try:
        with f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(f"{path}.tmp", path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(f"{path}.tmp")
        raise


def atomic_write(path, content):
    """bytes or array -> path, whole or not at all."""
    with replacing(path) as f:
        f.write(content if isinstance(content, bytes) else memoryview(content))


def write(folder, train, val, meta):
    """Token ids and meta -> folder/train.bin, val.bin, meta.json."""
    dtype = token_dtype(meta["vocab_size"])
    check_counts(len(train), len(val))
    remove_meta(folder)
    for name, ids in (("train", train), ("val", val)):
        atomic_write(os.path.join(folder, f"{name}.bin"), np.ascontiguousarray(ids, dtype=dtype))
    write_meta(folder, {**meta, "train_tokens": len(train), "val_tokens": len(val)})


def check_counts(n_train, n_val):
    """Raises UserError for a dataset without tokens to train on or to validate with."""
    if not (n_train and n_val):
        raise UserError(
            f"The text has {n_train} training and {n_val} validation tokens. Give a longer one, or "
            "another --tokenizer."
        )


def write_json(path, what):
    atomic_write(path, json.dumps(what, indent=1).encode())


def write_jsonl(path, rows):
    """Objects -> path, one a line."""
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def remove_meta(folder):
    """Before the first new file is there: an old meta.json must not vouch for it."""
    if os.path.exists(os.path.join(folder, "meta.json")):
        os.remove(os.path.join(folder, "meta.json"))


def write_meta(folder, meta):
    """meta.json comes last: it vouches for the two .bin files."""
    write_json(os.path.join(folder, "meta.json"), meta)
    sizes = f"{meta['train_tokens']:,} training and {meta['val_tokens']:,} validation tokens"
    print(f"{folder}: {sizes}, vocabulary of {meta['vocab_size']}")
