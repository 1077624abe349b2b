"""
Tiny Shakespeare as GPT-2 byte pairs: 0.3 M tokens for the real vocabulary of 50257.
$ python data/shakespeare/prepare.py                 (a second; downloads 1 MB, or reads out_dir/input.txt)
"""

import hashlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))  # so that it runs from anywhere
import data
from configurator import configure

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
input = ""  # a text file of your own instead of the download
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    text = data.tiny_shakespeare(out_dir, input)
    encode = data.gpt2().encode_ordinary
    cut = int(0.9 * len(text))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    meta = {**data.GPT2_META, "source": input or data.SHAKESPEARE_URL, "sha256": sha256}
    data.write(out_dir, encode(text[:cut]), encode(text[cut:]), meta)
