"""
The source of Python's own standard library, as characters: 10 M of real code, nothing to download.
$ python data/stdlib_char/prepare.py                                                                       (2 seconds)
"""

import os
import platform
import sys
import sysconfig

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import configure

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    root = sysconfig.get_paths()["stdlib"]
    texts = []
    skip = ("test", "tests", "site-packages", "idlelib", "__pycache__", "lib2to3", "encodings", "pydoc_data")
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(d for d in folders if d not in skip)
        for f in sorted(files):
            if f.endswith(".py"):
                t = open(os.path.join(folder, f), "rb").read()
                if t.isascii():
                    texts.append(t.decode().replace("\r", ""))
    import random

    random.Random(0).shuffle(texts)
    text = "\n".join(texts)
    keep = set(chr(i) for i in range(32, 127)) | {"\n", "\t"}
    text = "".join(c for c in text if c in keep)
    print(len(texts), len(text))
    data.write_chars(out_dir, text, f"standard library of Python {platform.python_version()}")
