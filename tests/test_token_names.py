"""
python -m pytest tests/test_token_names.py                  a name is that of one token, or of none
"""

import pytest
import transformers
from conftest import needs_gpt2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import data
from data.token_names import TokenNames

WORDS = ["▁", "a", "ing", "the", "▁a", "▁caf", "▁the", "▁theirs", "é"]


def sentencepiece(kind):
    """A tokenizer whose tokens lose the space before them where they are decoded alone."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x61>", "<0x98>", *WORDS]
    if kind == "llama":
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def bytes_within(piece):
    """What a server of the whole text's bytes calls a piece of SentencePiece."""
    if piece.startswith("<0x"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()


@pytest.mark.parametrize("kind", ["llama", "t5", "hf"])
def test_a_piece_of_sentencepiece_is_known_or_unknown_never_another(kind, tmp_path):
    made = sentencepiece("t5" if kind == "t5" else "llama")
    meta = {"tokenizer": "json", "vocab_size": made.get_vocab_size(), "json": made.to_str()}
    if kind == "hf":
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
        fast.save_pretrained(tmp_path)
        meta = {"tokenizer": f"hf:{tmp_path}", "vocab_size": made.get_vocab_size()}
    names = TokenNames(meta)
    pieces = [made.id_to_token(i) for i in range(meta["vocab_size"])]
    same = {"<0x61>"}  # writes what the token "a" writes

    asked = [piece.encode() for piece in pieces]  # of a server that shows pieces
    tables = names.tables_for(asked)
    assert [names.id_of(name, tables) for name in asked] == list(range(len(pieces)))

    asked = [bytes_within(piece) for piece in pieces]  # of one that shows bytes
    tables = names.tables_for(asked)
    for i, name in enumerate(asked):
        assert (names.id_of(name, tables) == i) is (pieces[i] not in same)

    asked = [made.decode([i]).encode() for i in range(len(pieces))]  # each decoded alone
    tables = names.tables_for(asked)
    known = {pieces[i] for i, name in enumerate(asked) if names.id_of(name, tables) == i}
    assert known == {"<0x0A>", "ing", "▁caf", "▁theirs", "é"}
    found = {names.id_of(name, tables) for name in asked} - {None}
    assert len(found) == len(known)

    for i in range(len(pieces)):
        assert names.id_of(f"token_id:{i}".encode(), tables) == i
    assert names.id_of(b"token_id:999", tables) is None
    assert names.id_of("\ufffd".encode(), tables) is None
    assert names.id_of(b"", tables) is None  # of three tokens


@needs_gpt2
def test_every_token_of_gpt2_is_known_by_its_bytes_and_by_its_piece():
    names = TokenNames(data.GPT2_META)
    bpe = data.gpt2()
    asked = [bpe.decode_single_token_bytes(i) for i in range(50257)]
    tables = names.tables_for(asked)
    found = [names.id_of(name, tables) for name in asked]
    # the replacement character is half of any character, to most servers
    odd = [i for i, name in enumerate(asked) if "\ufffd".encode() in name]
    assert [i for i in range(50257) if found[i] != i] == odd
    assert {found[i] for i in odd} == {None} and len(odd) < 20
    assert names.id_of(b"", tables) == data.GPT2_META["eot"]  # as decoded without special tokens

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert set(b"".join(names.pieces).decode()) == {*alphabet} and len(alphabet) == 256
    tables = names.tables_for(["Ġthe".encode()])
    assert names.id_of("Ġthe".encode(), tables) == bpe.encode_single_token(" the")
    assert names.id_of("é".encode(), tables) == bpe.encode_single_token(b"\xe9")
    assert names.id_of("Ã©".encode(), tables) == bpe.encode_single_token("é")
    # without a space that tells which server this is, é could be either
    assert names.id_of("é".encode(), names.tables_for(["é".encode()])) is None


def test_our_own_tokens_are_known_by_their_text():
    names = TokenNames({"tokenizer": "pieces", "vocab_size": 4, "itos": [" ", "a", " a", "é"]})
    texts = [b" ", b"a", b" a", "é".encode(), b"b"]
    for asked in (texts, texts[:2]):
        tables = names.tables_for(asked)
        assert [names.id_of(name, tables) for name in texts] == [0, 1, 2, 3, None]


def test_a_vocabulary_of_bare_ids_is_known_by_them():
    names = TokenNames({"tokenizer": "ids", "vocab_size": 12})
    tables = names.tables_for([b"7"])
    assert [names.id_of(name, tables) for name in (b"7", b"11 ", b"12")] == [7, 11, None]
