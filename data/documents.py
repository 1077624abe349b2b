"""
Documents: public collections or files of your own, through the library `datasets`, to train.bin and
val.bin.
"""

import glob
import os

import numpy as np
from tqdm import tqdm

from configurator import UserError
from data import GPT2_META, check_counts, remove_meta, token_dtype

# text also gzipped, as .txt.gz; a .parquet is compressed within
READERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
}


def documents(hub, input, columns, sample_by="line"):
    """
    -> datasets.Dataset with the columns: of the hub (load_dataset's arguments), or of the files of
    the glob `input`.

    sample_by: a row of a .txt file is its "line" or the whole "document". Raises UserError for what
    cannot be read.
    """
    files = sorted(path for path in glob.glob(input, recursive=True) if os.path.isfile(path))
    kinds = {kind_of(file) for file in files}
    if input and not files:
        raise UserError(f"--input={input} matches no file.")
    if input and (len(kinds) > 1 or None in kinds):
        raise UserError(
            f"--input={input} should match files of one kind of {', '.join(READERS)} (text also "
            f"gzipped, as .txt.gz), such as {files[0]}."
        )
    import datasets  # not before: it takes seconds

    try:
        if input:
            more = {
                "text": {"sample_by": sample_by, "encoding": "utf-8-sig"},  # as data.open_text
                "csv": {
                    "usecols": columns,
                    "converters": dict.fromkeys(columns, str),  # 007 is a text
                    "keep_default_na": False,  # and so is NA
                },
            }
            kind = kinds.pop()
            options = {"data_files": files, "split": "train", **more.get(kind, {})}
            found = datasets.load_dataset(kind, **options)
            if kind == "text" and any(file.endswith(".gz") for file in files):
                found = found.map(without_mark)  # there the encoding is ignored
        else:
            import huggingface_hub

            # a dozen lines of retries say no more than our one
            huggingface_hub.logging.set_verbosity_error()
            found = datasets.load_dataset(**hub)
    # of many classes: httpx, pyarrow, datasets; the cause says more than the last of them
    except Exception as error:
        why = " ".join(str(error.__cause__ or error).split())[:120] or type(error).__name__
        if input:
            raise UserError(f"Could not read {files[0]} ({why}).") from None
        raise UserError(
            f"Could not download {hub['path']} ({why}). Try again, or pass --input=FILES."
        ) from None
    missing = [c for c in columns if c not in found.column_names]
    if missing:
        has = ", ".join(found.column_names)
        raise UserError(
            f"{input or hub['path']} has the columns {has}, but no column {missing[0]}."
        )
    for column in columns:
        kind = str(getattr(found.features[column], "dtype", "lists"))
        if kind not in ("string", "large_string", "null"):  # null: no row has any
            raise UserError(
                f"{input or hub['path']} has {kind} in its column {column}; it must be text."
            )
    return found


def kind_of(path):
    """-> what `datasets` calls the kind of a file; None: one that it does not read."""
    plain = path.removesuffix(".gz")
    kind = READERS.get(os.path.splitext(plain)[1])
    return None if kind == "parquet" and path != plain else kind


def without_mark(row):
    return {"text": row["text"].removeprefix("\ufeff")}


def with_text(rows, columns):
    """
    Dataset -> the rows that have a text in all the columns. Says how many have none: null, empty or
    blank.
    """
    kept = rows.filter(has_text, fn_kwargs={"columns": columns})
    n = len(rows) - len(kept)
    if n:
        print(f"{n} of {len(rows)} rows have no text and are left out.")
    return kept


def has_text(row, columns):
    return all((row[column] or "").strip() for column in columns)


def hold_out(rows, val_fraction):
    """
    Dataset -> two Datasets, to train and to validate: always the same random rows, at least one on
    each side.
    """
    if not (0 < val_fraction < 1 and len(rows) > 1):
        raise UserError(f"Cannot hold out val_fraction={val_fraction} of {len(rows)} rows.")
    parts = rows.train_test_split(
        test_size=max(1, int(val_fraction * len(rows))), seed=2357, shuffle=True
    )
    return parts["train"], parts["test"]


def write_documents(folder, train, val, vocab_size=GPT2_META["vocab_size"]):
    """
    Two Datasets with the columns ids and len -> folder/train.bin, val.bin; returns how many tokens
    they have.

    Both go through a memory map, in 1024 batches, and are renamed when whole. Only write_meta makes
    them loadable.
    """
    n_train = int(np.sum(train["len"], dtype=np.int64))
    n_val = int(np.sum(val["len"], dtype=np.int64))
    check_counts(n_train, n_val)
    os.makedirs(folder, exist_ok=True)
    for name, rows, n in (("train", train, n_train), ("val", val, n_val)):
        n_batches = min(1024, len(rows))
        path = os.path.join(folder, f"{name}.bin.tmp")
        out = np.memmap(path, dtype=token_dtype(vocab_size), mode="w+", shape=(n,))
        at = 0
        for i in tqdm(range(n_batches), desc=f"{name}.bin"):
            shard = rows.shard(num_shards=n_batches, index=i, contiguous=True).with_format("numpy")
            ids = np.concatenate(list(shard[:]["ids"]))
            out[at : at + len(ids)] = ids
            at += len(ids)
        out.flush()
    remove_meta(folder)
    for name in ("train", "val"):
        os.replace(os.path.join(folder, f"{name}.bin.tmp"), os.path.join(folder, f"{name}.bin"))
    return {"train_tokens": n_train, "val_tokens": n_val}
