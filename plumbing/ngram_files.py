"""
The counts of an n-gram as a text file: a line of JSON, then a line for each m-gram, m = 1 ... n:
its count, its tokens.
"""

import itertools
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
    ends = np.cumsum([0] + [size * (m + 1) for m, size in enumerate(sizes, 1)])
    if len(numbers) != ends[-1]:
        raise ValueError("its end is missing")
    return about, [
        numbers[a:b].reshape(-1, m + 2) for m, (a, b) in enumerate(itertools.pairwise(ends))
    ]
