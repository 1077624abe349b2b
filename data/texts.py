"""
Texts, one or many, to train.bin and val.bin: what text, pydoc and tiny Shakespeare share. Read
twice, a part at a time.
"""

import collections
import contextlib
import functools
import glob
import hashlib
import http.client
import os
import platform
import re
import types
import urllib.request

import numpy as np
from tqdm import tqdm

import data
from configurator import UserError

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TOKENIZERS = ("char", "words", "gpt2")
# characters of a word: a text without white space is no word. Lines of a table are.
LONGEST_WORD = 100

# --------------------------------------------------------------------------------------------------
# where texts come from. A text is a function that yields its parts, from the start at every call.


def files_of(input):
    """
    A file, a folder (all in it, but not hidden ones) or a glob -> [text of a file, ...], in order
    of their names.
    """
    pattern = os.path.join(glob.escape(input), "**") if os.path.isdir(input) else input
    paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if os.path.isfile(input):
        paths = [input]  # its name may hold a *
    if not paths:
        raise UserError(f"--input={input} is no file, no folder with files, and matches none.")
    return [functools.partial(parts_of, path) for path in paths]


def parts_of(path, size=2**22):
    """
    A file of UTF-8 -> its text in parts of about `size` characters, each cut before a white space.

    None of our tokenizers has a token that begins before a white space and ends after it: parts
    give the same tokens as the whole. Raises UserError if it is no text.
    """
    rest = ""
    try:
        with data.open_text(path) as f:
            while read := f.read(size):
                if "\0" in read:
                    raise UserError(
                        f"{path} holds zero bytes, as UTF-16 has. Convert it to UTF-8, or leave "
                        "it out."
                    )
                rest += read
                found = re.match(r".*\S(?=\s)", rest, re.S)  # greedy: up to the last one
                # a language without white space is cut anywhere
                cut = found.end() if found else len(rest)
                yield rest[:cut]
                rest = rest[cut:]
    except (OSError, UnicodeDecodeError) as error:
        raise data.unreadable(path, error) from None
    yield rest


def python_reference():
    """-> [the language reference that ships inside every Python], where it is from."""
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics))
    return [lambda: [text]], f"pydoc_data.topics of Python {platform.python_version()}"


def tiny_shakespeare(folder):
    """-> [the text of folder/input.txt, which is downloaded if it is not there], where it is from.

    Raises UserError without a network, or if it is another text.
    """
    path = os.path.join(folder, "input.txt")
    if not os.path.exists(path):
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"Could not download {SHAKESPEARE_URL} ({error}). Save it as {path}."
            ) from None
        check_hash(content, SHAKESPEARE_URL, f"Try again, or save the right one as {path}")
        data.atomic_write(path, content)
    with open(path, "rb") as f:
        hint = "Delete it and try again; for a text of your own: data/text/prepare.py --input=FILE"
        check_hash(f.read(), path, hint)
    return [functools.partial(parts_of, path)], SHAKESPEARE_URL


def check_hash(content, where, hint):
    """Raises UserError with the hint unless the content is tiny Shakespeare."""
    found = hashlib.sha256(content).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise UserError(f"{where} has sha256 {found}, not {SHAKESPEARE_SHA256}. {hint}.")


# --------------------------------------------------------------------------------------------------
# their vocabulary, their tokens


def survey(texts, words, kept=2**20):
    """
    texts -> .lengths in characters, .blank (which have no more than white space), .chars, .words
    (Counter, empty unless asked for), .sha256 of all of them.

    Words that are rare so far are forgotten whenever there are more than `kept`: a text has no end
    of them.
    """
    found = types.SimpleNamespace(lengths=[], blank=[], chars=set(), words=collections.Counter())
    digest = hashlib.sha256()
    bar = progress("read")
    for text in texts:
        found.lengths.append(0)
        found.blank.append(True)
        for part in text():
            found.lengths[-1] += len(part)
            found.blank[-1] &= not part.strip()
            found.chars |= set(part)
            digest.update(part.encode())
            if words:
                pieces = re.findall(r" ?\w+|\n\s*|[^\w\s]+| +", part)
                found.words.update(word for word in pieces if len(word) <= LONGEST_WORD)
            bar.update(len(part))
            if len(found.words) > kept:
                found.words = collections.Counter(dict(found.words.most_common(kept // 2)))
    bar.close()
    found.sha256 = digest.hexdigest()
    return found


def progress(doing, total=None):
    """-> a bar of characters, which appears when it takes longer than a moment."""
    return tqdm(desc=doing, total=total, unit="char", unit_scale=True, delay=2)


def vocabulary(tokenizer, found, n_words):
    """One of TOKENIZERS, what survey found -> the meta that data.encoder reads."""
    if tokenizer == "gpt2":
        return data.GPT2_META
    chars = found.chars
    if len(found.lengths) > 1:
        chars = chars | {"\n"}  # an empty line closes each text
    chars = sorted(chars)
    if tokenizer == "char":
        return {"tokenizer": "char", "vocab_size": len(chars), "itos": chars}
    # the words, line breaks and runs of punctuation that, as one token each, save most characters'
    # tokens
    saved = {word: count * (len(word) - 1) for word, count in found.words.items() if len(word) > 1}
    n_words = n_words or min(max(sum(found.lengths) // 250, 256), 8000)
    by_saving = sorted(saved, key=lambda word: (-saved[word], word))
    itos = chars + sorted(by_saving[:n_words])
    return {"tokenizer": "pieces", "vocab_size": len(itos), "itos": itos}


def training_characters(lengths, val_fraction):
    """
    [characters of a text, ...] -> how many of each, from its beginning, are to train; the others
    validate.

    Of many texts whole ones are held out, spread evenly; of few, the end of each.
    """
    if len(lengths) * val_fraction < 1:
        return [int((1 - val_fraction) * n) for n in lengths]
    every = round(1 / val_fraction)
    return [0 if i % every == every - 1 else n for i, n in enumerate(lengths)]


def write_texts(folder, texts, source, tokenizer, *, n_words=0, val_fraction=0.1, meta=None):
    """
    texts -> folder/train.bin, val.bin, meta.json. n_words, val_fraction: as in
    data/text/prepare.py.

    meta: of a model or a dataset whose vocabulary is taken. Texts of several files are closed by
    end-of-text, or, where the vocabulary has none, an empty line.
    """
    found = survey(texts, words=tokenizer == "words")
    to_train = training_characters(found.lengths, val_fraction)
    total = sum(found.lengths)
    if not 0 < sum(to_train) < total:
        raise UserError(
            f"{source} has {total} characters, too few to train on some and validate on others."
        )
    texts = without_blank(texts, found.blank)
    if meta:
        meta = {key: meta[key] for key in (*data.VOCABULARY, "eot", "start") if key in meta}
    else:
        meta = vocabulary(tokenizer, found, n_words)
    counts = write_bins(folder, texts, to_train, total, meta)
    about = {"source": source, "sha256": found.sha256}
    data.write_meta(folder, {**meta, **about, **counts})


def without_blank(texts, blank):
    """texts, [whether each is blank, ...] -> texts, the blank ones empty. Says how many are."""
    if any(blank):
        print(f"{sum(blank)} of {len(texts)} files have no text and are left out.")
    return [(lambda: []) if empty else text for text, empty in zip(texts, blank, strict=True)]


def write_bins(folder, texts, to_train, n_characters, meta):
    """
    texts, [characters of each to train on, ...], those of all texts, a vocabulary -> folder/
    train.bin, val.bin; returns how many tokens they have. Only write_meta makes them loadable.
    """
    encode, _ = data.encoder(meta)
    dtype = np.dtype(data.token_dtype(meta["vocab_size"]))
    closing = []
    if len(texts) > 1:
        closing = [meta["eot"]] if "eot" in meta else encode("\n\n")
    bar = progress("write", n_characters)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        bins = {}
        for name in ("train", "val"):
            replaced = data.replacing(os.path.join(folder, f"{name}.bin"))
            bins[name] = stack.enter_context(replaced)
        for text, n_train in zip(texts, to_train, strict=True):
            used = set()
            for name, part in cut_in_two(text(), n_train):
                bins[name].write(np.array(encode(part), dtype).data)
                bar.update(len(part))
                used.add(name)
            for name in used:
                bins[name].write(np.array(closing, dtype).data)
        counts = {f"{name}_tokens": f.tell() // dtype.itemsize for name, f in bins.items()}
        data.check_counts(*counts.values())
        data.remove_meta(folder)
    return counts


def cut_in_two(parts, n_train):
    """[part of a text, ...], its characters to train on -> ("train" or "val", a part), ..."""
    left = n_train
    for part in parts:
        cut = min(left, len(part))
        left -= cut
        if cut:
            yield "train", part[:cut]
        if cut < len(part):
            yield "val", part[cut:]
