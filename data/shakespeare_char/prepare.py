"""
Tiny Shakespeare (Karpathy 2015), as characters: 1.1 M of them, 65 different ones.
$ python data/shakespeare_char/prepare.py     (a second; downloads 1 MB, or reads out_dir/input.txt)
"""

import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure
from data.texts import tiny_shakespeare, write_texts

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    write_texts(out_dir, *tiny_shakespeare(out_dir), "char")
