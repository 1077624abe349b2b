"""
OpenWebText (Gokaslan & Cohen 2019) as GPT-2 byte pairs: 8 M documents, about 9 B tokens, 17 GB on
disk.
$ python data/openwebtext/prepare.py     (an hour on a big machine; needs about 80 GB while it runs)
$ python data/openwebtext/prepare.py --input='my/*.parquet'  (or .jsonl, .csv, .txt: `text`; or .gz)

Stopped half-way, it continues: downloads and tokenized shards stay in the cache of `datasets`.
"""

import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import check_at_least, configure
from data.documents import documents, hold_out, with_text, write_documents

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
input = ""  # files of your own (a glob) instead of the download
val_fraction = 0.0005  # of the documents
num_proc = os.cpu_count() or 1  # processes
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

# the hub's own parquet copy: no script
HUB = {
    "path": "Skylion007/openwebtext",
    "revision": "refs/convert/parquet",
}


def tokenize(row):
    # the end-of-text token closes every document
    ids = [*data.gpt2_encode(row["text"], special=()), data.GPT2_META["eot"]]
    return {"ids": ids, "len": len(ids)}


def main(cfg):
    check_at_least(cfg, num_proc=1)
    data.gpt2()  # a missing vocabulary shows here, in one line, not in every process
    hub = {**HUB, "split": "train", "num_proc": cfg.num_proc}
    found = documents(hub, cfg.input, ["text"], sample_by="document")
    if cfg.input:  # the download has a text in every row
        found = with_text(found, ["text"])
    options = {"remove_columns": found.column_names, "desc": "tokenizing"}
    options["num_proc"] = cfg.num_proc
    parts = [part.map(tokenize, **options) for part in hold_out(found, cfg.val_fraction)]
    counts = write_documents(cfg.out_dir, *parts)
    source = cfg.input or HUB["path"]
    data.write_meta(cfg.out_dir, {**data.GPT2_META, "source": source, **counts})


if __name__ == "__main__":
    main(cfg)
