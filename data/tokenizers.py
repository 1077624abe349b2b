"""
Tokenizers that others made: GPT-2's, by hf:NAME_OR_FOLDER those of any model of `transformers`, a
tokenizer.json.
"""

import functools
import hashlib
import json
import os
import re

from configurator import UserError, first_line, print_once

GPT2_META = {"tokenizer": "gpt2", "vocab_size": 50257, "eot": 50256}
GPT2_PIECES = "08f8f6dd8cd5c8a2"  # what pieces_of says of its vocabulary


def is_bare(name):
    """
    Whether it is a word, as 'gpt2': --tokenizer takes it for a tokenizer of ours, never for a file
    or a model of this name.
    """
    return re.fullmatch(r"[\w-]*", name) is not None


def tokenizer_knob(path, meta):
    """What load_model takes, its meta -> the knob that prepares a text in its vocabulary."""
    if meta["tokenizer"] == "gpt2":
        return "--tokenizer=gpt2"
    return f"--tokenizer={'./' if is_bare(path) else ''}{path}"


def gpt2():
    """-> the GPT-2 tokenizer. tiktoken downloads it once, to TIKTOKEN_CACHE_DIR if that is set."""
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:
        hint = "Run once with a network, or set TIKTOKEN_CACHE_DIR to a folder that holds it"
        raise UserError(
            f"Could not download the GPT-2 vocabulary ({str(error)[:80]}...). {hint}."
        ) from None


def gpt2_encode(text, special=("<|endoftext|>",)):
    """
    str -> [int]. special: what of the text means a token that is no text. Raises UserError for what
    tiktoken cannot encode.
    """
    try:
        return gpt2().encode(text, allowed_special=set(special), disallowed_special=())
    except ValueError as error:  # its regular expression backtracks over a run of white space
        longest = max(map(len, re.findall(r"\s+", text)), default=0)
        raise UserError(
            f"GPT-2's tokenizer cannot read a run of {longest} white space characters "
            f"({first_line(error)}). Shorten it, or take --tokenizer=words."
        ) from None


def import_transformers():
    """-> the package, told to be quiet. Raises UserError if it is missing."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "hf: needs a package that is missing: pip install 'transformers>=5.24,<6'"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def from_hub(kind, name, **options):
    """
    What transformers.KIND finds of a model NAME or folder: configuration, tokenizer or weights;
    safetensors only.

    Raises UserError if the package or the model is missing. No code of a model is ever executed.
    """
    finder = getattr(import_transformers(), kind)
    try:
        return finder.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        if "backend tokenizer" in str(error):  # it looked for a tokenizer's files, in vain
            raise no_tokenizer(name) from None
        hint = ""
        if os.path.isdir(name):
            hint = " A folder that this project exported is read without hf:."
        raise UserError(f"hf:{name} cannot be loaded ({first_line(error)}).{hint}") from None


def no_tokenizer(name):
    """-> the UserError for a model whose tokenizer was forgotten."""
    return UserError(
        f"hf:{name} has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json). Save the "
        "one that it was trained with beside it: tokenizer.save_pretrained(FOLDER)"
    )


@functools.lru_cache  # an encoder is made often
def hf_tokenizer(name):
    """Raises UserError if there is none: transformers makes one of special tokens then."""
    tokenizer = from_hub("AutoTokenizer", name)
    texts = tokenizer.get_vocab().keys() - tokenizer.all_special_tokens
    if len(texts) < 2 and not has_tokenizer_files(name, tokenizer):
        raise no_tokenizer(name)
    return tokenizer


def has_tokenizer_files(name, tokenizer):
    """Whether a model NAME or folder has one of the files with a tokenizer's vocabulary."""
    for file in ("tokenizer.json", *tokenizer.vocab_files_names.values()):
        try:
            import_transformers().utils.cached_file(name, file)
            return True
        except OSError:
            continue
    return False


@functools.lru_cache  # one load of a model asks three times
def hf_config(name):
    return from_hub("AutoConfig", name)


def pieces_of(vocabulary):
    """{piece: id} -> a short hash of what each id means."""
    pairs = sorted((i, piece) for piece, i in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def hf_meta(name):
    """A model NAME of a hub, or its folder -> the meta of its vocabulary; GPT-2's is ours.

    vocab_size is the number of its tokens. Heads have some more rows, which pad them; sizes of one
    family are padded to different numbers.
    """
    tokenizer = hf_tokenizer(name)
    config = hf_config(name)
    vocabulary = tokenizer.get_vocab()  # {piece: id}
    special = {"eot": tokenizer.eos_token_id}
    if special["eot"] is None:  # else a text begins after it: see data.start_token
        special["start"] = tokenizer.bos_token_id
    if config.is_encoder_decoder:
        special["start"] = config.decoder_start_token_id
        special["pad"] = config.pad_token_id
    special = {key: i for key, i in special.items() if i is not None}

    rows = config.get_text_config(decoder=True).vocab_size
    vocab_size = min(max(vocabulary.values()) + 1, rows)
    at_ends = {tokenizer.bos_token_id, *special.values()} - {None}
    check_rows(name, rows, tuple(sorted(at_ends)))
    pieces = pieces_of(vocabulary)
    if (pieces, vocab_size) == (GPT2_PIECES, GPT2_META["vocab_size"]):
        return GPT2_META
    return {"tokenizer": f"hf:{name}", "vocab_size": vocab_size, "pieces": pieces, **special}


@functools.lru_cache  # says it once
def check_rows(name, rows, special):
    """
    Says which tokens of its tokenizer are beyond the model's rows: some that were added
    later. Raises UserError if one of them is special, for these come without being asked for.
    """
    missing = {i: piece for piece, i in hf_tokenizer(name).get_vocab().items() if i >= rows}
    if not missing:
        return
    some = ", ".join(f"{missing[i]!r} ({i})" for i in sorted(missing)[:3])
    said = f"hf:{name} has an embedding of {rows} tokens, but its tokenizer has more: {some}"
    for i in special:
        if i in missing:
            raise UserError(
                f"{said}. Texts begin or end with {missing[i]!r}: give it a row, in transformers "
                f"by model.resize_token_embeddings({max(missing) + 1})."
            )
    print_once(f"{said}. A text with one of these raises an error.")


def hf_encode(meta, text, **options):
    """-> [int]. Raises UserError for a token that the model has no row for."""
    tokenizer = hf_tokenizer(meta["tokenizer"].removeprefix("hf:"))
    ids = tokenizer.encode(text, **options)
    check_ids(ids, meta, tokenizer.convert_ids_to_tokens)
    return ids


def check_ids(ids, meta, token_of):
    """Raises UserError if one is not below the vocabulary's size, and names its token."""
    largest = max(ids, default=0)
    if largest >= meta["vocab_size"]:
        raise UserError(
            f"The text has {token_of(largest)!r}, token {largest}, which the model cannot write: "
            f"it has {meta['vocab_size']} tokens. Leave it out of the text."
        )


@functools.lru_cache  # a model is loaded more than once
def opening_of(name):
    """
    A model NAME or folder -> [id, ...] that its tokenizer puts before any text, a BOS or nothing;
    [id, ...], at least one, that stands where there is no text to begin with.
    """
    tokenizer = hf_tokenizer(name)
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    n = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    opening = whole[:n]
    alone = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    return opening, opening or alone[:1] or [0]


def chat_prompt(meta, text):
    """
    -> the ids that a chat model continues with its answer to text: as the tokenizer's own chat
    template puts it.
    """
    name = meta["tokenizer"].removeprefix("hf:")
    if name == meta["tokenizer"]:
        raise UserError("Only tokenizers of hf: models have a chat template: leave --chat out.")
    tokenizer = hf_tokenizer(name)
    if not tokenizer.chat_template:
        raise UserError(f"hf:{name} has no chat template: leave --chat out.")
    message = {"role": "user", "content": text}
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return hf_encode(meta, prompt, add_special_tokens=False)


def json_encoder(meta):
    """
    meta with a tokenizer.json as its "json" -> encode, decode. Raises UserError without the
    package.
    """
    tokenizer = json_tokenizer(meta["json"])

    def encode(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        check_ids(ids, meta, tokenizer.id_to_token)
        return ids

    return encode, lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


@functools.lru_cache(maxsize=4)
def json_tokenizer(text):
    try:
        import tokenizers

        return tokenizers.Tokenizer.from_str(text)
    except ImportError:
        raise UserError(
            "A tokenizer.json needs a package that is missing: pip install tokenizers"
        ) from None
    except Exception as error:  # the package raises this very class
        raise UserError(f"Its tokenizer.json cannot be read ({first_line(error)}).") from None


def ids_encoder(meta):
    """Of a vocabulary whose words nobody told us: a text is its token ids, "3 1 4 "."""

    def encode(text):
        odd = [
            word
            for word in text.split()
            if not (word.isdecimal() and int(word) < meta["vocab_size"])
        ]
        if odd:
            raise UserError(
                f"{odd[0]!r} is no token id from 0 to {meta['vocab_size'] - 1}, all that there "
                "are here."
            )
        return [int(word) for word in text.split()]

    return encode, lambda ids: "".join(f"{i} " for i in ids)
