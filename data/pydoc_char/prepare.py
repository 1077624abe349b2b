"""
The language reference that ships inside every Python, as characters: real text, nothing to download.
$ python data/pydoc_char/prepare.py                                                   (1 second, about 0.5 M characters)
"""

import os
import platform
import pydoc_data.topics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))  # so that it runs from anywhere
import data
from configurator import configure

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics))
    data.write_chars(out_dir, text, f"pydoc_data.topics of Python {platform.python_version()}")
