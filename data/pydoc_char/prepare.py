"""
The language reference that ships inside every Python, as characters: real text, nothing to
download.
$ python data/pydoc_char/prepare.py                               (1 second, about 0.5 M characters)
"""

import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure
from data.texts import python_reference, write_texts

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    write_texts(out_dir, *python_reference(), "char")
