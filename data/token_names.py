"""
What others call a token, who send no ids: its piece in the tokenizer's file, its bytes within a
text, or its text alone.

GPT-2's piece of " the" is "\u0120the", and half a character has bytes, but no text. SentencePiece's
is "\u2581the"; alone it reads "the", as another piece does. An end of text is "</s>", or "".
"""

import functools
import re

from data.tokenizers import gpt2, hf_tokenizer, json_tokenizer

NO_TEXT = "\ufffd"  # what decoders write for half a character
MARKS = ("\u0120".encode(), "\u2581".encode())  # a space, in the pieces of GPT-2, SentencePiece


@functools.cache
def byte_of():
    """-> {printable character: the byte that it stands for in GPT-2's pieces}, of all 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def vocabulary_of(meta):
    """
    meta -> {id: piece}, decode([int]) -> str that shows all of them, the ids of those that are no
    text, such as its end.
    """
    if "itos" in meta:
        itos = meta["itos"]
        return dict(enumerate(itos)), lambda ids: "".join(itos[i] for i in ids), ()
    if meta["tokenizer"] == "ids":
        pieces = {i: str(i) for i in range(meta["vocab_size"])}
        return pieces, lambda ids: "".join(f"{i} " for i in ids), ()
    if meta["tokenizer"] == "gpt2":
        bpe = gpt2()
        character = {byte: character for character, byte in byte_of().items()}
        pieces = {}
        for i in range(meta["vocab_size"]):
            pieces[i] = "".join(character[byte] for byte in bpe.decode_single_token_bytes(i))
        return pieces, bpe.decode, (meta["eot"],)

    if meta["tokenizer"] == "json":
        tokenizer = json_tokenizer(meta["json"])
        added = tokenizer.get_added_tokens_decoder()
        special = [i for i, token in added.items() if token.special]
    else:
        tokenizer = hf_tokenizer(meta["tokenizer"].removeprefix("hf:"))
        special = tokenizer.all_special_ids
    pieces = {i: piece for piece, i in tokenizer.get_vocab().items() if i < meta["vocab_size"]}
    return pieces, functools.partial(tokenizer.decode, skip_special_tokens=False), special


def bytes_of_piece(piece):
    """A piece in GPT-2's characters -> bytes, or None if it has another."""
    if set(piece) <= byte_of().keys():
        return bytes(byte_of()[character] for character in piece)
    return None


class TokenNames:
    """
    The tokens of a vocabulary by name, in three tables {name in UTF-8: id}, None where several
    have that name.
    """

    def __init__(self, meta):
        self.pieces = {}
        self.within = {}  # a text
        self.alone = {}
        pieces, decode, special = vocabulary_of(meta)
        self.ids = pieces.keys()
        special = set(special)
        # a token in whose company others show the space that they begin with
        inner = (i for i, piece in pieces.items() if piece.isascii() and piece.isalpha())
        company = [i for i in inner if i not in special][:1]
        before = decode(company)
        fallback = {}
        for i, piece in pieces.items():
            self.add(self.pieces, piece.encode(), i)
            byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
            if i in special:
                self.add(self.within, piece.encode(), i)
                self.add(self.within, b"", i)
                self.add(self.alone, b"", i)
            elif byte:  # of SentencePiece, for what no other token writes
                fallback[bytes.fromhex(byte[1])] = i
            else:
                both = decode([*company, i])
                if both.startswith(before):
                    self.add_text(self.within, both.removeprefix(before), piece, i)
                self.add_text(self.alone, decode([i]), piece, i)
        self.within = fallback | self.within
        self.alone = fallback | self.alone

    def add(self, table, name, i):
        table[name] = i if table.get(name, i) == i else None

    def add_text(self, table, text, piece, i):
        name = bytes_of_piece(piece) if NO_TEXT in text else text.encode()
        if name is not None:
            self.add(table, name, i)

    def tables_for(self, names):
        """
        All names of a text -> the tables that they can be from. One server is always of one kind,
        and a space at the beginning of a word, or its mark, tells which.
        """
        if any(re.match(rb" \S", name) for name in names):
            return [self.within]
        if any(name.startswith(MARKS) for name in names):
            return [self.pieces]
        return [self.pieces, self.within, self.alone]

    def id_of(self, name, tables):
        """-> the id of the one token that has this name, or the name token_id:N, or None."""
        number = re.fullmatch(rb"token_id:(\d+)", name)
        if number:
            return int(number[1]) if int(number[1]) in self.ids else None
        if NO_TEXT.encode() in name:
            return None
        found = {table[name] for table in tables if name in table}
        return found.pop() if len(found) == 1 else None
