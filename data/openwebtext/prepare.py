"""
OpenWebText (Gokaslan & Cohen 2019) as GPT-2 byte pairs: 8 M documents, about 9 B tokens, 17 GB on disk.
$ python data/openwebtext/prepare.py                     (an hour on a big machine; needs about 80 GB while it runs)
$ python data/openwebtext/prepare.py --input='my/*.parquet'              (or .jsonl or .txt files with a `text` column)

Stopped half-way, it continues: downloads and tokenized shards stay in the cache of `datasets`.
"""

import glob
import os
import sys

import numpy as np
from datasets import load_dataset
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))  # so that it runs from anywhere
import data
from configurator import UserError, configure

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
input = ""  # files of your own (a glob) instead of the download
val_fraction = 0.0005  # of the documents
num_proc = os.cpu_count() or 1  # processes
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

HUB = {
    "path": "Skylion007/openwebtext",
    "revision": "refs/convert/parquet",
}  # the hub's own parquet copy: no script
READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}


def documents(input):
    """-> datasets.Dataset with a `text` column: the public corpus, or the files of a glob."""
    if not input:
        try:
            return load_dataset(**HUB, split="train", num_proc=num_proc)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Could not download {HUB['path']} ({str(error).splitlines()[0][:120]}). Try again, it continues; "
                "or pass --input='folder/*.parquet'."
            ) from None
    files = sorted(glob.glob(input))
    if not files:
        raise UserError(f"--input={input} matches no file.")
    kind = READERS.get(os.path.splitext(files[0])[1])
    if not kind:
        raise UserError(f"{files[0]} is neither {', '.join(READERS)}.")
    more = {"sample_by": "document"} if kind == "text" else {}
    found = load_dataset(kind, data_files=files, split="train", **more)
    if "text" not in found.column_names:
        raise UserError(f"{files[0]} has the columns {found.column_names}, but no column `text`.")
    return found


def tokenize(row):
    bpe = data.gpt2()
    ids = [*bpe.encode_ordinary(row["text"]), bpe.eot_token]  # the end-of-text token closes every document
    return {"ids": ids, "len": len(ids)}


def write_bin(path, split):
    """Dataset with ids and len -> path, in 1024 batches through a memory map; renamed into place when whole."""
    n = int(np.sum(split["len"], dtype=np.int64))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    out = np.memmap(f"{path}.tmp", dtype=np.uint16, mode="w+", shape=(n,))
    at, n_batches = 0, min(1024, len(split))
    for i in tqdm(range(n_batches), desc=os.path.basename(path)):
        shard = split.shard(num_shards=n_batches, index=i, contiguous=True).with_format("numpy")
        ids = np.concatenate(list(shard[:]["ids"]))
        out[at : at + len(ids)] = ids
        at += len(ids)
    out.flush()
    os.replace(f"{path}.tmp", path)
    return n


if __name__ == "__main__":
    data.gpt2()  # a missing vocabulary shows here, in one line, not in every process
    found = documents(input)
    splits = found.train_test_split(test_size=max(1, int(val_fraction * len(found))), seed=2357, shuffle=True)
    splits = splits.map(tokenize, remove_columns=found.column_names, desc="tokenizing", num_proc=num_proc)
    n_train = write_bin(os.path.join(out_dir, "train.bin"), splits["train"])
    n_val = write_bin(os.path.join(out_dir, "val.bin"), splits["test"])
    meta = {**data.GPT2_META, "source": input or HUB["path"], "train_tokens": n_train, "val_tokens": n_val}
    data.write_meta(out_dir, meta)
