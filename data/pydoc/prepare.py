"""
The language reference that ships inside every Python, in word pieces: real text, nothing to
download.
$ python data/pydoc/prepare.py                           (1 second, 0.5 M characters, 0.14 M tokens)

The vocabulary is every character and the 2000 words (and line breaks with their indentation) that
save most tokens; what is no word of it is spelled. In the minutes of a demo a model learns to put
words together, not letters.
"""

import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure
from data.texts import python_reference, write_texts

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
n_words = 2000  # words and line breaks in the vocabulary, beside the characters
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    write_texts(out_dir, *python_reference(), "words", n_words=n_words)
