"""
The counts of an n-gram as a text file: a line of JSON, then a line for each m-gram, m = 1 ... n:
its count, its tokens.
"""

import json

import numpy as np

from data import replacing


def write_counts(path, about, tables):
    """A dict that says what it is, [(M, 1 + m) int64 for m = 1, 2, ...] -> path."""
    with replacing(path, "w") as f:
        f.write(json.dumps(about | {"sizes": [len(table) for table in tables]}) + "\n")
        for table in tables:
            np.savetxt(f, table, "%d")


def read_counts(path):
    """
    -> what write_counts was given. Damaged: ValueError, LookupError, TypeError or AttributeError.
    """
    with open(path, encoding="utf-8") as f:
        about = json.loads(f.readline())
        numbers = np.array(f.read().split(), dtype=np.int64)
    sizes = about.pop("sizes")
    widths = [1 + m for m in range(1, len(sizes) + 1)]  # a count and m tokens
    if len(numbers) != np.dot(sizes, widths):
        raise ValueError("its end is missing")
    tables = []
    start = 0
    for size, width in zip(sizes, widths, strict=True):
        end = start + size * width
        tables.append(numbers[start:end].reshape(size, width))
        start = end
    return about, tables
