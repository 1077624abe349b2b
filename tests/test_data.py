"""
python -m pytest tests/test_data.py

what prepare.py writes, what data reads, and what both refuse
"""

import base64
import collections
import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
from pydoc_data.topics import topics

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from conftest import ROOT, needs_gpt2, run
from pyarrow import parquet

import data
from data import documents, texts
from data.cnn_dailymail import prepare as cnn
from data.lambada import prepare as lambada
from plumbing.randomness import seeded

SHAKESPEARE = os.path.join(ROOT, "data", "shakespeare_char", "input.txt")


def test_pydoc_comes_back_as_it_went_in(pydoc):
    corpus = data.load(pydoc)
    encode, decode = data.encoder(corpus.meta)
    text = decode(np.concatenate([corpus.train, corpus.val]).tolist())
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.meta["sha256"]
    assert (
        len(corpus.val) == corpus.meta["val_tokens"]
        and abs(len(corpus.val) / len(text) - 0.1) < 0.001
    )
    assert encode(decode(corpus.val[:50].tolist())) == corpus.val[:50].tolist()
    assert 'The "if" statement' in text


def test_word_pieces_come_back_as_they_went_in(tmp_path):
    run("data/pydoc/prepare.py", f"--out_dir={tmp_path}", "--n_words=300")
    corpus = data.load(str(tmp_path))
    encode, decode = data.encoder(corpus.meta)
    text = decode(corpus.train.tolist()) + decode(corpus.val.tolist())
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.meta["sha256"]
    # pieces are longer than characters
    assert len(text) > 1.7 * (len(corpus.train) + len(corpus.val))
    assert decode(encode("is xyzzy the")) == "is xyzzy the" and len(encode(" the")) == 1


def test_preparing_again_writes_the_same_files(pydoc):
    before = {f: open(os.path.join(pydoc, f), "rb").read() for f in sorted(os.listdir(pydoc))}
    run("data/pydoc_char/prepare.py", f"--out_dir={pydoc}")
    assert sorted(before) == ["meta.json", "train.bin", "val.bin"]  # and no temporary file
    assert before == {f: open(os.path.join(pydoc, f), "rb").read() for f in before}


def test_markov_has_the_entropy_it_says(markov):
    corpus = data.load(markov)
    P, pi = (np.array(corpus.meta[k]) for k in ("transition", "stationary"))
    np.testing.assert_allclose(pi @ P, pi, atol=1e-12)
    x = corpus.train.astype(int)
    empirical = -np.log(P[x[:-1], x[1:]]).mean()
    assert abs(empirical - corpus.meta["entropy_rate"]) < 0.01
    assert np.abs(np.bincount(x, minlength=8) / len(x) - pi).max() < 0.01
    _, said = run("data/markov/prepare.py", f"--out_dir={markov}", "--vocab_size=99", ok=False)
    assert "vocab_size" in said


def test_a_batch_is_a_function_of_its_generator(pydoc):
    tokens = data.load(pydoc).train
    a, b = (data.batch(tokens, 4, 16, seeded(5)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.int64 and a.shape == (4, 16)
    assert not torch.equal(a, data.batch(tokens, 4, 16, seeded(6)))
    text = bytes(tokens[:].astype(np.uint8))
    assert all(bytes(row.to(torch.uint8).tolist()) in text for row in a)
    last = data.batch(tokens[:16], 2, 16, seeded(0))  # a corpus of exactly one block
    assert last[0].tolist() == tokens[:16].tolist()


def test_blocks_lie_side_by_side_and_spread_over_the_text():
    x = data.blocks(np.arange(100), 10, 3)
    assert x[:, 0].tolist() == [0, 40, 90] and x[1].tolist() == list(range(40, 50))
    assert len(data.blocks(np.arange(100), 10, 99)) == 10


def test_what_is_missing_or_too_short_is_named(pydoc, tmp_path, error_of):
    assert "python data/openwebtext/prepare.py" in error_of(data.load, "openwebtext")
    assert "fewer than one block of 16" in error_of(data.batch, np.arange(9), 4, 16, seeded(0))
    assert "fewer than one block of 16" in error_of(data.blocks, np.arange(9), 16, 4)
    (tmp_path / "half").mkdir()
    for name in ("meta.json", "val.bin"):
        shutil.copy(os.path.join(pydoc, name), tmp_path / "half")
    assert "train.bin is missing. Write it again" in error_of(data.load, str(tmp_path / "half"))
    (tmp_path / "half" / "train.bin").write_bytes(b"123")
    assert "train.bin is damaged" in error_of(data.load, str(tmp_path / "half"))
    for text in ("{", "[]", "3", '{"vocab_size": 3}'):
        (tmp_path / "half" / "meta.json").write_text(text)
        assert "meta.json is damaged" in error_of(data.load, str(tmp_path / "half"))
    encode, _ = data.encoder(data.load(pydoc).meta)
    assert (
        "no '\\u4e16'"
        in error_of(encode, "hello \u4e16").encode("ascii", "backslashreplace").decode()
    )


def test_a_folder_that_is_no_dataset_does_not_hide_one_of_its_name(tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    for name in ("openwebtext", "mine"):
        (tmp_path / name).mkdir()
    assert os.path.join("data", "openwebtext", "meta.json") in error_of(
        data.load_meta, "openwebtext"
    )
    assert "mine/meta.json is missing. Write it again" in error_of(data.load_meta, "mine")
    (tmp_path / "openwebtext" / "meta.json").write_text('{"tokenizer": "char"}')
    assert data.load_meta("openwebtext")[0] == "openwebtext"


def test_passages_are_no_text_to_train_on(tmp_path, error_of):
    (tmp_path / "meta.json").write_text(json.dumps({"tokenizer": "char", "vocab_size": 2}))
    (tmp_path / "passages.jsonl").write_text("")
    assert "no text to train on" in error_of(data.load, str(tmp_path))
    assert "no text to train on" in error_of(data.load, "lambada")  # before it is prepared, too


def test_a_prompt_in_a_file_is_read_as_a_dataset_is(tmp_path, error_of):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (text,) = texts.files_of(str(path))
    assert data.read_text(f"FILE:{path}") == "".join(text()) == "one\ntwo\nthree\n"
    assert data.read_text("a\r\n") == "a\r\n"
    for other in (tmp_path, tmp_path / "none.txt"):
        assert f"{other} cannot be read" in error_of(data.read_text, f"FILE:{other}")
    path.write_bytes(b"x" * 300_000 + b"caf\xe9")  # more than is decoded at a time
    for read in (lambda: data.read_text(f"FILE:{path}"), lambda: list(text())):
        assert "is not UTF-8" in (said := error_of(read)) and "at byte 300003" in said


def with_mark(rows):
    """-> a .jsonl as some editors save it: a byte order mark, CR LF, blank lines."""
    return b"\xef\xbb\xbf" + b"\r\n \r\n".join(json.dumps(row).encode() for row in rows) + b"\r\n"


def test_a_jsonl_may_have_a_mark_cr_lf_and_blank_lines(tmp_path):
    rows = [{"a": 1}, {"b": "\u2028\r\n"}]
    (tmp_path / "a.jsonl").write_bytes(with_mark(rows))
    assert list(data.numbered_rows(tmp_path / "a.jsonl")) == [(1, rows[0]), (3, rows[1])]


def test_prompts_are_read_so_and_what_is_none_has_its_line(tmp_path, error_of):
    path = tmp_path / "prompts.jsonl"
    meta = {"tokenizer": "char", "vocab_size": 10, "itos": list("0123456789")}
    pairs = [{"prompt": f"{i}", "reference": "x"} for i in range(7)]
    path.write_bytes(with_mark(pairs))
    x, references = data.load_prompts(path, meta, 9)
    assert x[:, 0].tolist() == list(range(7)) and references == ["x"] * 7
    path.write_bytes(with_mark(pairs[:6]))
    assert "6 prompts of one length" in error_of(data.load_prompts, path, meta, 9)
    for row, words in ("[]", "no text 'prompt'"), ("{", "no JSON"), ('{"prompt": 1}', "no text"):
        path.write_bytes(with_mark(pairs) + row.encode())
        said = error_of(data.load_prompts, path, meta, 9)
        assert f"line 14: {words}" in said and "cnn_dailymail/prepare.py" in said


def test_numbers_in_names_sort_as_numbers(tmp_path):
    names = ["a10.pt", "a9.pt", "b1.pt", "long_2.pt", "a9_10.pt", "a9_9.pt"]
    for name in names:
        (tmp_path / name).write_text("")
    found = ["a9.pt", "a9_9.pt", "a9_10.pt", "a10.pt", "b1.pt", "long_2.pt"]
    assert data.matching("*.pt", str(tmp_path)) == found


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    data.write(str(tmp_path), [70_000, 1], [2], {"tokenizer": "char", "vocab_size": 70_001})
    assert data.load(str(tmp_path)).train.tolist() == [70_000, 1]


def test_a_file_of_another_vocabulary_than_its_meta_raises_when_it_is_loaded(tmp_path, error_of):
    data.write(str(tmp_path), [1, 2, 3], [1], {"tokenizer": "char", "vocab_size": 4})
    data.load(str(tmp_path))
    (tmp_path / "meta.json").write_text(json.dumps({"tokenizer": "char", "vocab_size": 3}))
    said = error_of(data.load, str(tmp_path))
    assert "train.bin holds token 3, but meta.json names 3 tokens. Write it again" in said


def test_a_dataset_without_a_token_is_not_written(tmp_path, error_of):
    said = error_of(data.write, str(tmp_path), [1], [], {"tokenizer": "char", "vocab_size": 4})
    assert "1 training and 0 validation tokens" in said
    rows = [datasets.Dataset.from_dict({"ids": [ids], "len": [len(ids)]}) for ids in ([], [1])]
    said = error_of(documents.write_documents, str(tmp_path / "out"), *rows)
    assert "0 training and 1 validation tokens" in said and os.listdir(tmp_path) == []
    blank = [lambda: [" " * 100]]
    ids = {"tokenizer": "ids", "vocab_size": 4}  # of a model whose words nobody knows: 3 1 2
    said = error_of(texts.write_texts, str(tmp_path), blank, "mine", "./model", meta=ids)
    assert "0 training and 0 validation tokens" in said and os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_nothing_half_written(tmp_path, monkeypatch, error_of):
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: real(a, b) if "train" in a else (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        data.write(str(tmp_path), [1, 2], [1], {"tokenizer": "char", "vocab_size": 3})
    monkeypatch.setattr(os, "replace", real)
    assert not os.path.exists(tmp_path / "val.bin") and not os.path.exists(tmp_path / "meta.json")
    assert "missing" in error_of(data.load, str(tmp_path))
    data.write(str(tmp_path), [1, 2], [1], {"tokenizer": "char", "vocab_size": 3})
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        data.write(str(tmp_path), [4, 5], [4], {"tokenizer": "char", "vocab_size": 6})
    # an old meta.json does not vouch for new files
    assert not os.path.exists(tmp_path / "meta.json")


def test_a_bad_download_raises_by_its_hash(tmp_path):
    (tmp_path / "input.txt").write_text("not Shakespeare")
    _, said = run("data/shakespeare_char/prepare.py", f"--out_dir={tmp_path}", ok=False)
    assert "sha256" in said and "data/text/prepare.py --input=" in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == ["input.txt"]


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, error_of):
    def offline(*args, **kw):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    said = error_of(texts.tiny_shakespeare, str(tmp_path))
    assert "no network" in said and f"{tmp_path}/input.txt" in said
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"a login page"))
    said = error_of(texts.tiny_shakespeare, str(tmp_path))
    assert "sha256" in said and "Delete" not in said and f"{tmp_path}/input.txt" in said
    assert os.listdir(tmp_path) == []


def shakespeare(folder, name):
    """data/<name>/prepare.py from the copy that is here -> its meta."""
    folder.mkdir()
    shutil.copy(SHAKESPEARE, folder / "input.txt")
    run(f"data/{name}/prepare.py", f"--out_dir={folder}")
    return data.load(str(folder)).meta


@pytest.mark.skipif(not os.path.exists(SHAKESPEARE), reason="needs data/shakespeare_char/input.txt")
def test_shakespeare_has_the_numbers_that_everyone_knows(tmp_path):
    meta = shakespeare(tmp_path / "char", "shakespeare_char")
    assert (meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]) == (65, 1003854, 111540)
    assert meta["sha256"] == texts.SHAKESPEARE_SHA256


@needs_gpt2
def test_byte_pairs_of_shakespeare(tmp_path):
    if os.path.exists(SHAKESPEARE):
        meta = shakespeare(tmp_path / "bpe", "shakespeare")
        assert (meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]) == (
            50257,
            301966,
            36059,
        )


# --------------------------------------------------------------------------------------------------
# text: a file or a folder of one's own


def own_text(tmp_path, input, tokenizer="words", **kw):
    """What data/text/prepare.py does -> the corpus, decode."""
    texts.write_texts(str(tmp_path / "out"), texts.files_of(str(input)), "mine", tokenizer, **kw)
    corpus = data.load(str(tmp_path / "out"))
    return corpus, lambda ids: data.encoder(corpus.meta)[1](ids.tolist())


@pytest.mark.parametrize("tokenizer", ["char", "words", pytest.param("gpt2", marks=needs_gpt2)])
def test_your_own_file_comes_back_as_it_went_in(tmp_path, tokenizer):
    text = "Er sagte \u201cja\u201d,  und\r\n\tging.\n\n" * 40 + "the end"
    # a byte order mark is no text
    (tmp_path / "mine[1].txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus, decode = own_text(tmp_path, input=tmp_path / "mine[1].txt", tokenizer=tokenizer)
    text = text.replace("\r\n", "\n")
    assert (
        decode(corpus.train) == text[: int(0.9 * len(text))]
        and decode(corpus.val) == text[int(0.9 * len(text)) :]
    )
    assert corpus.meta["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_of_many_files_every_tenth_validates_of_few_the_end_of_each(tmp_path):
    for i in range(20):
        (tmp_path / "many" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / str(i % 3) / f"{i:02}.md").write_text(f"file {i:02}")
    (tmp_path / "many" / ".hidden").write_bytes(b"\xff")
    corpus, decode = own_text(tmp_path, input=tmp_path / "many")
    train, val = (
        decode(part).removesuffix("\n\n").split("\n\n") for part in (corpus.train, corpus.val)
    )
    order = sorted((i % 3, i) for i in range(20))
    assert val == [f"file {i:02}" for _, i in order[9::10]]
    assert train == [f"file {i:02}" for k, (_, i) in enumerate(order) if k % 10 != 9]
    corpus, decode = own_text(
        tmp_path, input=f"{tmp_path}/many/0/0*.md", tokenizer="char", val_fraction=0.2
    )
    assert (
        decode(corpus.train) == "file \n\n" * 4 and decode(corpus.val) == "00\n\n03\n\n06\n\n09\n\n"
    )


def test_files_without_text_are_left_out_and_counted(tmp_path, capsys):
    contents_of = {"a": "one two", "b": "", "c": " \n\n", "d": "three four"}
    (tmp_path / "mine").mkdir()
    for name, content in contents_of.items():
        (tmp_path / "mine" / name).write_text(content)
    corpus, decode = own_text(tmp_path, tmp_path / "mine", tokenizer="char", val_fraction=0.5)
    assert "2 of 4 files have no text and are left out" in capsys.readouterr().out
    assert decode(corpus.train) + decode(corpus.val) == "one two\n\nthree four\n\n"


@needs_gpt2
def test_texts_in_byte_pairs_are_closed_by_end_of_text(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}.")
    corpus, decode = own_text(
        tmp_path, input=f"{tmp_path}/*.txt", tokenizer="gpt2", val_fraction=0.5
    )
    assert [decode(np.array(ids)) for ids in texts_of(corpus.train)] == ["Text 0.", "Text 2."]
    assert corpus.meta["eot"] == data.GPT2_META["eot"]


@pytest.mark.parametrize("tokenizer", ["char", "words", pytest.param("gpt2", marks=needs_gpt2)])
def test_a_text_in_parts_has_the_tokens_of_the_whole(tmp_path, tokenizer, monkeypatch):
    text = "\n\n".join(topics.values())[:60_000]
    (tmp_path / "mine.txt").write_text(text)
    for size in (2**22, 700):
        monkeypatch.setattr(texts.parts_of, "__defaults__", (size,))
        (parts,) = texts.files_of(str(tmp_path / "mine.txt"))
        assert ("".join(parts()) == text and len(list(parts())) > 60_000 / 1000) or size > 700
        texts.write_texts(str(tmp_path / str(size)), [parts], "mine", tokenizer)
    assert contents(tmp_path / "700") == contents(tmp_path / str(2**22))


def test_words_that_stay_rare_are_forgotten_when_there_are_too_many():
    part = "often often often " + " ".join(f"w{i}" for i in range(100))
    found = texts.survey([lambda: [part] * 5], words=True, kept=20)
    assert (
        len(found.words) <= 20 and found.words[" often"] >= 10 and found.lengths == [5 * len(part)]
    )


# 20,000 characters each that no white space, or nothing else, cuts into words
LETTERS = np.random.default_rng(1)
UNCUT = {
    "dna": "".join(LETTERS.choice(list("ACGT"), 20_000)),
    "chinese": "".join(map(chr, 0x4E00 + LETTERS.zipf(1.5, 20_000) % 3000)),
    "base64": base64.b64encode(LETTERS.bytes(15_000)).decode(),
    "spaces": "a" + " " * 20_000 + "\n" * 20_000 + "b",
    "a word first": "word " + "x" * 20_000,
}


@pytest.mark.parametrize("name", UNCUT)
def test_a_text_without_words_is_prepared_in_a_moment(tmp_path, name):
    (tmp_path / "mine.txt").write_text(UNCUT[name], encoding="utf-8")
    corpus, decode = own_text(tmp_path, input=tmp_path / "mine.txt")
    assert decode(corpus.train) + decode(corpus.val) == UNCUT[name]
    assert max(map(len, corpus.meta["itos"])) <= texts.LONGEST_WORD
    if name in ("dna", "chinese"):
        assert sorted(corpus.meta["itos"]) == sorted(set(UNCUT[name]))


def test_a_vocabulary_with_a_piece_as_long_as_a_text_still_spells():
    dna = UNCUT["dna"]
    encode, decode = data.encoder({"tokenizer": "pieces", "itos": [*"ACGT", dna, "GA"]})
    assert encode(dna) == [4] and encode("GATTA") == [5, 3, 3, 0]
    ids = encode(dna[1:] + dna)
    assert decode(ids) == dna[1:] + dna and ids[-1] == 4


def test_the_words_of_the_language_reference_stay_what_they_are():
    """The lines of its tables are words, too: what is prepared again has the ids that it had."""
    (text,), _ = texts.python_reference()
    words = re.findall(r" ?\w+|\n\s*|[^\w\s]+| +", *text())
    assert texts.survey([text], words=True).words == collections.Counter(words)


def test_a_bar_shows_how_far_both_readings_are(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("one two three " * 100)
    bars = []

    class Bar(texts.tqdm):
        def __init__(self, **kw):
            super().__init__(**kw)
            bars.append(self)

    monkeypatch.setattr(texts, "tqdm", Bar)
    own_text(tmp_path, input=tmp_path / "mine.txt")
    assert [(bar.desc, bar.total, bar.n) for bar in bars] == [
        ("read", None, 1400),
        ("write", 1400, 1400),
    ]


def test_the_longest_piece_that_fits_is_taken():
    """
    Against a regular expression of all pieces, longest first; pieces that no word contains, too.
    """
    words = [" the", "the", "\n    ", "\n  ", "in", "ing", " in", "__", "();", "  ", " "]
    text = "\n      the thing (in the thin_g) __in__();  inside\n\n    the\t end " * 3
    for odd in ([], ["e t", "g ("]):
        itos = sorted(set(text)) + words + odd
        literal = re.compile(
            "|".join(re.escape(p) for p in sorted(itos, key=len, reverse=True))
        ).findall(text)
        encode, decode = data.encoder({"tokenizer": "pieces", "itos": itos})
        assert [itos[i] for i in encode(text)] == literal and decode(encode(text)) == text


def prepare_in(folder, tokenizer, ok=True):
    """data/text/prepare.py --tokenizer=..., run in a folder that has a my.txt -> what it says."""
    knobs = ["--input=my.txt", "--out_dir=out", f"--tokenizer={tokenizer}"]
    script = os.path.join(ROOT, "data", "text", "prepare.py")
    return run(script, *knobs, cwd=folder, ok=ok)[not ok]


@needs_gpt2
def test_a_bare_word_is_a_tokenizer_of_ours_whatever_lies_around(tmp_path, pydoc):
    (tmp_path / "my.txt").write_text("one two " * 20)
    (tmp_path / "words").mkdir()
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "char").write_text("no checkpoint")
    shutil.copytree(pydoc, tmp_path / "mine")
    for tokenizer, name in {"char": "char", "words": "pieces", "gpt2": "gpt2"}.items():
        prepare_in(tmp_path, tokenizer)
        assert data.load(str(tmp_path / "out")).meta["tokenizer"] == name
    for word in ("gpt2-xl", "mine"):  # neither downloaded nor looked for
        said = prepare_in(tmp_path, word, ok=False)
        assert f"tokenizer is '{word}'; choose one of char, words, gpt2" in said
        assert ("a path has a /: ./mine" in said) == (word == "mine") and said.count("\n") == 1


def test_the_vocabulary_of_a_dataset_is_taken_by_its_path(tmp_path, pydoc):
    (tmp_path / "my.txt").write_text("one two " * 20)
    shutil.copytree(pydoc, tmp_path / "mine")
    prepare_in(tmp_path, "./mine")
    meta = data.load(str(tmp_path / "out")).meta
    assert data.same_vocabulary(meta, data.load(pydoc).meta) and meta["source"] == "my.txt"


def test_the_knob_that_takes_a_models_vocabulary_is_one_that_prepare_takes():
    char = {"tokenizer": "char"}
    for path in ("out/ckpt.pt", "hf:NAME", "hub:OWNER/NAME"):
        assert data.tokenizer_knob(path, char) == f"--tokenizer={path}"
    assert data.tokenizer_knob("mine", char) == "--tokenizer=./mine"
    assert data.tokenizer_knob("gpt2-xl", data.GPT2_META) == "--tokenizer=gpt2"


def test_text_that_cannot_be_used_raises_in_one_line(tmp_path, error_of):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 9)
    (tmp_path / "wide.txt").write_text("wide text", encoding="utf-16-le")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    for input, words in {
        "latin.txt": ["latin.txt is not UTF-8", "byte 3"],
        "wide.txt": ["zero bytes", "UTF-16"],
        "empty.txt": ["0 characters"],
        "folder": ["no folder with files"],
        "none*": ["matches none"],
    }.items():
        said = error_of(own_text, tmp_path, tmp_path / input)
        assert all(word in said for word in words), said
    for args, words in ((), "--input=FILE"), (("--input=README.md", "--tokenizer=x"), "words"):
        _, said = run("data/text/prepare.py", *args, f"--out_dir={tmp_path}/out", ok=False)
        assert said.count("\n") == 1 and words in said
    assert not os.path.exists(tmp_path / "out")


# --------------------------------------------------------------------------------------------------
# documents: openwebtext, cnn_dailymail, lambada, from small files of one's own

# runs a script and kills it where a file of this name would take its place
KILLED_AT = """
import os, runpy, sys
name, script, replace = sys.argv[1], sys.argv[2], os.replace
os.replace = lambda old, new: os._exit(9) if os.path.basename(new) == name else replace(old, new)
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""

# runs a script with one list of arguments after the other, and prints why it refuses each
REFUSED = """
import json, runpy, sys
from configurator import UserError
script, lists = sys.argv[1], json.loads(sys.argv[2])
for args in lists:
    sys.argv = [script, *args]
    try:
        runpy.run_path(script, run_name="__main__")
        print('"accepted"')
    except UserError as error:
        print(json.dumps(str(error)))
"""


def given(knobs):
    return [f"--{key}={value}" for key, value in knobs.items()]


def offline(tmp_path):
    return {"HF_HOME": f"{tmp_path}/cache", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def prepare(tmp_path):
    """
    prepare(name, **knobs): runs data/<name>/prepare.py offline, its cache in tmp_path; may kill it
    at a file.
    """

    def call(name, killed_at="", **kw):
        before = ["-c", KILLED_AT, killed_at] if killed_at else []
        return run(
            *before, f"data/{name}/prepare.py", *given(kw), ok=not killed_at, env=offline(tmp_path)
        )

    return call


def refusals(tmp_path, name, asked):
    """[knobs, ...] -> the lines with which data/<name>/prepare.py refuses each, offline."""
    lists = json.dumps([given(knobs) for knobs in asked])
    said, _ = run("-c", REFUSED, f"data/{name}/prepare.py", lists, env=offline(tmp_path))
    # `datasets` prints, too
    said = [json.loads(line) for line in said.splitlines() if line.startswith('"')]
    assert len(said) == len(asked) and all("\n" not in line for line in said)
    return said


def store(path, rows):
    """Rows as .jsonl or .parquet, as the end of the path says."""
    if path.suffix == ".jsonl":
        path.write_bytes(with_mark(rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def lines(path):
    return [json.loads(line) for line in open(path)]


def contents(folder):
    return {name: open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder)}


def texts_of(tokens, eot=data.GPT2_META["eot"]):
    """(n,) token ids of closed documents -> [[id, ...] without the end-of-text, ...]."""
    ends = np.flatnonzero(tokens == eot)
    assert ends[-1] == len(tokens) - 1
    return [part[:-1].tolist() for part in np.split(tokens.astype(int), ends + 1)[:-1]]


DOCUMENTS = [f"Document number {i}.\n\nIt has two paragraphs." for i in range(40)]


@needs_gpt2
@pytest.mark.parametrize("files", ["web.parquet", "web.jsonl", "web_*.txt"])
def test_web_text_comes_back_document_by_document(tmp_path, prepare, files):
    if files == "web_*.txt":
        for i, d in enumerate(DOCUMENTS):
            (tmp_path / f"web_{i}.txt").write_text(d)
    else:
        # a row without a text is no document
        (tmp_path / "in" / "there").mkdir(parents=True)
        rows = [{"text": d} for d in [*DOCUMENTS, None, "", " \n"]] + [{}]
        store(tmp_path / "in" / "there" / files, rows)
        files = f"in/**/{files}"
    said, _ = prepare(
        "openwebtext",
        input=tmp_path / files,
        out_dir=tmp_path / "out",
        num_proc=2,
        val_fraction=0.1,
    )
    assert ("4 of 44 rows have no text and are left out" in said) == ("**" in files)
    corpus = data.load(str(tmp_path / "out"))
    train, val = texts_of(corpus.train), texts_of(corpus.val)
    encode, decode = data.encoder(corpus.meta)
    assert (len(train), len(val)) == (36, 4) and all(
        encode(decode(ids)) == ids for ids in train + val
    )
    assert sorted(decode(ids) for ids in train + val) == sorted(DOCUMENTS)
    assert (corpus.meta["train_tokens"], corpus.meta["val_tokens"]) == (
        len(corpus.train),
        len(corpus.val),
    )


@needs_gpt2
def test_web_text_after_an_interruption_is_as_if_there_was_none(tmp_path, prepare):
    store(tmp_path / "web.parquet", [{"text": d} for d in DOCUMENTS])
    knobs = {"input": tmp_path / "web.parquet", "num_proc": 1}
    prepare("openwebtext", **knobs, out_dir=tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert sorted(whole) == ["meta.json", "train.bin", "val.bin"]
    for name in ("train.bin", "val.bin", "meta.json"):
        prepare("openwebtext", **knobs, out_dir=tmp_path / "out", killed_at=name)
        found = contents(tmp_path / "out")
        assert name not in found and "meta.json" not in found
        assert all(found[f] == whole[f] for f in found if not f.endswith(".tmp"))
    prepare("openwebtext", **knobs, out_dir=tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def pairs(n=40):
    """Articles of 0 to n sentences, every one different, and summaries that tell their number."""
    return [
        {
            "article": f"Story {i}. " + " ".join(f"Line {j} of {i}." for j in range(i)),
            "highlights": f"It was {i}.\nYes.",
        }
        for i in range(n)
    ]


@needs_gpt2
@pytest.mark.parametrize("file", ["news.jsonl", "news.parquet"])
def test_a_pair_is_article_tldr_summary_and_prompts_have_the_tokens_asked_for(
    tmp_path, prepare, file
):
    P, bpe = 32, data.gpt2()
    empty = [{"article": "", "highlights": "x"}, {"article": "x", "highlights": None}]
    store(tmp_path / file, pairs() + empty)
    out = tmp_path / "out"
    said, _ = prepare(
        "cnn_dailymail",
        input=tmp_path / file,
        out_dir=out,
        prompt_tokens=P,
        val_fraction=0.5,
        num_proc=2,
    )
    assert "2 of 42 rows have no text and are left out" in said
    corpus = data.load(str(out))
    train, val = texts_of(corpus.train), texts_of(corpus.val)
    assert len(train) == len(val) == 20
    tail, expected = bpe.encode_ordinary("\nTL;DR:"), {}
    for i, pair in enumerate(pairs()):
        article = bpe.encode_ordinary(pair["article"].strip())
        expected[i] = (
            article[: P - len(tail)] + tail + bpe.encode_ordinary(" " + pair["highlights"])
        )
        if len(article) <= P - len(tail):  # a short one is all there, and encoded as one text
            assert expected[i] == bpe.encode_ordinary(
                f"{pair['article'].strip()}\nTL;DR: {pair['highlights']}"
            )
    assert sorted(train + val) == sorted(expected.values())
    encode, _ = data.encoder(corpus.meta)
    prompts, long = (
        lines(out / "prompts.jsonl"),
        [ids for ids in val if ids[P - len(tail) : P] == tail],
    )
    for prompt in prompts:
        ids, i = encode(prompt["prompt"]), int(prompt["reference"].split()[2].strip("."))
        assert len(ids) == P and prompt["reference"] == pairs()[i]["highlights"]
        assert expected[i] in val and ids == expected[i][:P]
    assert len(prompts) == len(long) == corpus.meta["prompts"] > 5 and len(
        {p["prompt"] for p in prompts}
    ) == len(long)
    short = 20 - len(long)
    assert corpus.meta["too_short"] == short > 0 and f"20 articles: {short} too short" in said


@needs_gpt2
def test_a_prompt_that_would_not_be_encoded_the_same_again_is_left_out():
    P = 32
    n = P - len(data.gpt2().encode_ordinary(cnn.TLDR))  # tokens of an article
    articles = {
        "just long enough": "one" + " one" * (n - 1),
        "too short": "one" + " one" * (n - 2),
        "cut inside a character": "one" + " one" * (n - 2) + "\U0001f642",
        "cut between line breaks": "one" + " one" * (n - 3) + "\n\nfour",
        "says end of text": "<|endoftext|>" * n,
    }
    kept, left_out = cnn.prompts(
        [{"article": a, "highlights": why} for why, a in articles.items()], P
    )
    assert kept == [
        {"prompt": articles["just long enough"] + "\nTL;DR:", "reference": "just long enough"}
    ]
    assert left_out == {"too_short": 1, "not_exact": 3}


def test_the_download_has_splits_of_its_own_and_prompts_come_from_the_test_split(tmp_path):
    (tmp_path / "hub").mkdir()
    for i, name in enumerate(("train", "validation", "test")):
        store(
            tmp_path / "hub" / f"{name}.parquet",
            [*pairs()[i:3], {"article": " ", "highlights": "x"}],
        )
    code = (
        "import sys; from data.cnn_dailymail import prepare as p; p.HUB = {'path': sys.argv[1]}\n"
    )
    code += "for rows in p.splits(p.cfg): print([row['highlights'] for row in rows])"
    said, _ = run("-c", code, tmp_path / "hub", env=offline(tmp_path))
    of = [pair["highlights"] for pair in pairs()]
    assert said.count("rows have no text and are left out") == 3
    found = [line for line in said.splitlines() if line.startswith("[")]
    assert found == [str(of[0:3]), str(of[1:3]), str(of[2:3])]


@needs_gpt2
def test_pairs_after_an_interruption_are_as_if_there_was_none(tmp_path, prepare, error_of):
    store(tmp_path / "news.jsonl", pairs())
    knobs = {"input": tmp_path / "news.jsonl", "num_proc": 1, "val_fraction": 0.5}
    prepare("cnn_dailymail", **knobs, prompt_tokens=24, n_prompts=3, out_dir=tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert sorted(whole) == ["meta.json", "prompts.jsonl", "train.bin", "val.bin"]
    assert len(lines(tmp_path / "whole" / "prompts.jsonl")) == 3
    out = tmp_path / "out"
    prepare("cnn_dailymail", **knobs, prompt_tokens=16, out_dir=out)  # an older one, of other knobs
    for name in ("val.bin", "prompts.jsonl", "meta.json"):
        prepare(
            "cnn_dailymail", **knobs, prompt_tokens=24, n_prompts=3, out_dir=out, killed_at=name
        )
        # what it said of the older files is gone as well
        assert "meta.json is missing" in error_of(data.load, str(out))
        assert contents(out)["train.bin"] == whole["train.bin"]
    prepare("cnn_dailymail", **knobs, prompt_tokens=24, n_prompts=3, out_dir=out)
    assert contents(out) == whole


def test_the_last_word_takes_the_white_space_before_it():
    for text, parts in {
        "He shook his head": ("He shook his", " head"),
        ' He  said\n\n"no  one!"\n': (' He  said\n\n"no ', ' one!"'),
        "by the\nsea": ("by the", "\nsea"),
        " word": None,
        "word ": None,
        "": None,
    }.items():
        assert lambada.split_last_word(text) == parts


def test_a_passage_of_which_a_word_is_no_tail_of_its_tokens_is_left_out():
    encode, _ = data.encoder({"tokenizer": "pieces", "itos": [*"abc ", "a b", " c", "c a"]})
    texts = ["b c", "b a", "c a", "b  a", "c", "b x"]
    kept, lengths, left_out = lambada.passages(texts, encode)
    assert [(p["context"], p["word"]) for p in kept] == [("b", " c"), ("b", " a"), ("b ", " a")]
    assert lengths == {1: 1, 2: 2}
    assert left_out == {"other_tokens_as_a_whole": 1, "one_word": 1, "unknown_character": 1}


# runs data.documents on files one after the other, and prints the texts of each
READ = """
import json, sys
from data.documents import documents
for path in sys.argv[1:]:
    print(json.dumps(list(documents({}, path, ["text"])["text"])))
"""


def test_tables_and_compressed_files_have_the_same_texts(tmp_path):
    texts = ['one, "two"', "007", "NA", "caf\u00e9"]
    table = io.StringIO()
    csv.writer(table).writerows([["n", "text"], *enumerate(texts)])
    mark = b"\xef\xbb\xbf"
    files = {
        "a.csv": mark + table.getvalue().encode(),
        "a.txt": mark + "\r\n".join(texts).encode(),
        "a.jsonl": with_mark([{"text": text} for text in texts]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    paths = sorted(tmp_path.iterdir())
    said, _ = run("-c", READ, *paths, env=offline(tmp_path))
    found = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    assert found == [texts] * 6


def test_a_toy_lambada_has_the_vocabulary_asked_for(tmp_path, pydoc, prepare):
    texts = [
        "the value of the name",
        "an empty line follows",
        "",
        "alone",
        "it is\tthe end.",
        "na\u00efve word",
    ]
    (tmp_path / "my.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    said, _ = prepare(
        "lambada", input=tmp_path / "my.txt", vocabulary=pydoc, out_dir=tmp_path / "out"
    )
    assert lines(tmp_path / "out" / "passages.jsonl") == [
        {"context": "the value of the", "word": " name"},
        {"context": "an empty line", "word": " follows"},
    ]
    _, meta = data.load_meta(str(tmp_path / "out"))
    assert data.same_vocabulary(meta, data.load(pydoc).meta) and "train_tokens" not in meta
    assert meta["words_of_tokens"] == {"1": 0, "2": 0, "3+": 2} and meta["passages"] == 2
    assert "1 of 6 rows have no text" in said
    assert "3 or more in 2; left out: 1 (one word), 2 (unknown character)" in said
    encode, _ = data.encoder(meta)
    assert len(encode(" name")) == 5


@needs_gpt2
@pytest.mark.parametrize("file", ["lambada.jsonl", "lambada.parquet"])
def test_lambada_is_a_context_and_a_word_whose_tokens_make_the_passage(tmp_path, prepare, file):
    texts = [
        "He shook his head",
        "It was\n\na long way to Llanfairpwll",
        "She said: \u201cYes,\u201d to the mountaineer",
    ]
    store(tmp_path / file, [{"text": text} for text in texts])
    knobs, out = {"input": tmp_path / file}, tmp_path / "out"
    prepare("lambada", **knobs, out_dir=out, killed_at="passages.jsonl")
    prepare("lambada", **knobs, out_dir=out, killed_at="meta.json")
    assert sorted(os.listdir(out)) == ["meta.json.tmp", "passages.jsonl"]
    prepare("lambada", **knobs, out_dir=out)
    assert sorted(os.listdir(out)) == ["meta.json", "passages.jsonl"]
    passages, (_, meta) = lines(out / "passages.jsonl"), data.load_meta(str(out))
    encode, _ = data.encoder(meta)
    assert [p["context"] + p["word"] for p in passages] == texts
    assert [encode(p["context"]) + encode(p["word"]) for p in passages] == [
        encode(text) for text in texts
    ]
    sizes = [len(encode(p["word"])) for p in passages]
    assert meta["words_of_tokens"] == {
        "1": sizes.count(1),
        "2": sizes.count(2),
        "3+": sum(n > 2 for n in sizes),
    }
    assert data.same_vocabulary(meta, data.GPT2_META) and sizes[0] == 1 < sizes[1]


def test_documents_that_cannot_be_had_end_in_one_line(tmp_path, pydoc):
    store(tmp_path / "a.jsonl", [{"title": "x", "body": "y"}])
    store(tmp_path / "a.parquet", [{"text": "x y"}])
    store(tmp_path / "numbers.jsonl", [{"text": 1}, {"text": 2}])
    store(tmp_path / "words.jsonl", [{"text": ["a", "b"]}])
    store(tmp_path / "null.jsonl", [{"text": None}] * 3)
    (tmp_path / "broken.jsonl").write_text('{"text": "a b"}\n{"text": \n')
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9")
    (tmp_path / "a.csv").write_text("title\na b\n")
    (tmp_path / "a.xml").write_text("<text>a b</text>")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "b.txt.gz").write_text("a b")
    wanted = {
        "a.jsonl": ["title, body", "no column text"],
        "numbers.jsonl": ["int64 in its column text", "must be text"],
        "words.jsonl": ["lists in its column text"],
        "null.jsonl": ["no passage"],
        "a.*": ["one kind"],
        "a.csv": ["a.csv", "not found: ['text']"],
        "a.xml": ["one kind", ".parquet", ".csv", ".txt", ".gz"],
        "a.parquet.gz": ["one kind", "text also gzipped"],
        "b.txt.gz": ["b.txt.gz", "Not a gzipped file"],
        "none.txt": ["matches no file"],
        "broken.jsonl": ["broken.jsonl", "JSON parse error"],
        "latin.txt": ["latin.txt", "utf-8"],
        "": ["Could not download EleutherAI/lambada_openai", "--input="],
    }
    out = {"vocabulary": pydoc, "out_dir": tmp_path / "out"}
    asked = [{"input": file and tmp_path / file, **out} for file in wanted]
    *said, last = refusals(tmp_path, "lambada", [*asked, {"vocabulary": "pydok"}])
    for line, words in zip(said, wanted.values(), strict=True):
        assert all(word in line for word in words), line
    assert not os.path.exists(tmp_path / "out") and "pydoc" in last


@needs_gpt2
def test_white_space_too_long_for_the_gpt2_tokenizer_is_an_error_of_one_line(error_of):
    text = f"a{' ' * 10**6}b"
    assert "a run of 1000000 white space characters" in error_of(data.gpt2_encode, text)


@needs_gpt2
def test_pairs_that_cannot_be_made_end_in_one_line(tmp_path):
    store(tmp_path / "news.jsonl", pairs(3))
    store(tmp_path / "one.jsonl", pairs(1))
    store(tmp_path / "web.jsonl", [{"text": "x"}])
    wanted = (
        ("web.jsonl", {}, ["columns text", "no column article"]),
        ("one.jsonl", {}, ["hold out", "1 rows"]),
        ("news.jsonl", {}, ["--prompt_tokens=512", "Lower"]),
        ("news.jsonl", {"prompt_tokens": 3}, ["prompt_tokens is 3", "at least"]),
        ("news.jsonl", {"tokenizer": "words"}, ["tokenizer is 'words'", "'gpt2'", "hf:NAME"]),
        ("", {}, ["Could not download abisee/cnn_dailymail", "--input="]),
    )
    out = {"out_dir": tmp_path / "out", "num_proc": 1}
    asked = [{"input": file and tmp_path / file, **out, **kw} for file, kw, _ in wanted]
    for line, (_, _, words) in zip(refusals(tmp_path, "cnn_dailymail", asked), wanted, strict=True):
        assert all(word in line for word in words), line
    assert not os.path.exists(tmp_path / "out")
