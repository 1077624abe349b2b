"""
A folder that nanoGPT has prepared, train.bin and val.bin of GPT-2 byte pairs: gets its meta.json.
$ python data/nanogpt/prepare.py --input=../nanoGPT/data/openwebtext
$ python train.py config/train_openwebtext.py --dataset=../nanoGPT/data/openwebtext

Its files are the same as ours: they are read once, to see that they hold ids of GPT-2, and stay.
"""

import os
import sys

import numpy as np

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import UserError, configure

# --------------------------------------------------------------------------------------------------
input = ""  # the folder, which gets the meta.json
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def count_tokens(path):
    """-> how many ids a .bin holds. Raises UserError unless they can be GPT-2's."""
    try:
        ids = np.memmap(path, dtype=np.uint16, mode="r")
    except (OSError, ValueError) as error:  # missing, empty, or half an id
        raise UserError(f"{path} cannot be read ({error}).") from None
    V = data.GPT2_META["vocab_size"]
    largest = max(int(ids[i : i + 2**24].max()) for i in range(0, len(ids), 2**24))
    if not 256 <= largest < V:  # below are single bytes, or somebody's characters
        raise UserError(
            f"{path} has ids up to {largest}; those of GPT-2's byte pairs go beyond 255 and end at "
            f"{V - 1}. It is of another vocabulary."
        )
    return len(ids)


def main(cfg):
    if not os.path.isdir(cfg.input):
        raise UserError(f"input is {cfg.input!r}; it must be a folder of nanoGPT: --input=FOLDER")
    if os.path.exists(os.path.join(cfg.input, "meta.json")):
        raise UserError(f"{cfg.input} has a meta.json already: --dataset={cfg.input}")
    if os.path.exists(os.path.join(cfg.input, "meta.pkl")):
        raise UserError(data.nanogpt_hint(cfg.input))
    counts = {}
    for name in ("train", "val"):
        counts[f"{name}_tokens"] = count_tokens(os.path.join(cfg.input, f"{name}.bin"))
    data.write_meta(cfg.input, {**data.GPT2_META, "source": "nanoGPT", **counts})


if __name__ == "__main__":
    main(cfg)
