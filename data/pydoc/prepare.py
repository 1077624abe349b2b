"""
The language reference that ships inside every Python, in word pieces: real text, nothing to download.
$ python data/pydoc/prepare.py                                               (1 second, 0.5 M characters, 0.14 M tokens)

The vocabulary is every character and the 2000 words (and line breaks with their indentation) that save most tokens;
what is no word of it is spelled. In the minutes of a demo a model learns to put words together, not letters.
"""

import collections
import hashlib
import os
import platform
import pydoc_data.topics
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))  # so that it runs from anywhere
import data
from configurator import configure

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
n_pieces = 2000  # words and line breaks in the vocabulary, beside the characters; 0: characters only
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def best_pieces(text, n):
    """-> the n words, line breaks and runs of punctuation that, as one token each, save most characters' tokens."""
    counts = collections.Counter(re.findall(r" ?\w+|\n\s*|[^\w\s]+| +", text))
    saved = {piece: count * (len(piece) - 1) for piece, count in counts.items() if len(piece) > 1}
    return sorted(saved, key=lambda piece: (-saved[piece], piece))[:n]


if __name__ == "__main__":
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics))
    source = f"pydoc_data.topics of Python {platform.python_version()}"
    itos = sorted(set(text)) + sorted(best_pieces(text, n_pieces))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    meta = {"tokenizer": "pieces", "vocab_size": len(itos), "itos": itos, "source": source, "sha256": sha256}
    encode, _ = data.encoder(meta)
    cut = int(0.9 * len(text))
    data.write(out_dir, encode(text[:cut]), encode(text[cut:]), meta)
