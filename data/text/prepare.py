"""
Your own text: a file, a folder of files, or a glob.
$ python data/text/prepare.py --input=my.txt      (200 MB: 80 seconds on one core, 0.5 GB of memory)
$ python data/text/prepare.py --input='notes/**/*.md' --tokenizer=char --out_dir=data/notes
$ make demo DATASET=text                                        (all of the demo on it, in out/text)

Of less than ten files the last tenth of each validates, of more every tenth file.
"""

import os
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import UserError, configure
from data.texts import TOKENIZERS, files_of, write_texts
from drafters import load_model

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
input = ""  # UTF-8: a file, a folder (all that is in it) or a glob
tokenizer = "words"  # 'char' | 'words' (frequent ones, and characters) | 'gpt2' (byte pairs) | that
# of a model: hf:NAME, or the path of a checkpoint, of a model's folder or of a dataset
n_words = 0  # of tokenizer 'words'; 0: one for 250 characters, but from 256 to 8000
val_fraction = 0.1  # of the text
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def meta_of_model(name):
    """
    hf:NAME, or the path of a checkpoint, a model's folder or a dataset -> its meta, whose
    vocabulary the text is to be written in. Raises UserError for anything else.
    """
    if data.is_bare(name):
        there = f"; a path has a /: ./{name}" if os.path.exists(name) else ""
        raise UserError(
            f"tokenizer is {name!r}; choose one of {', '.join(TOKENIZERS)}, or that of a model: "
            f"hf:NAME, or the path of a checkpoint, a model's folder or a dataset{there}."
        )
    if name.startswith("hf:"):
        return data.hf_meta(name[3:].partition("@")[0])
    if os.path.exists(os.path.join(name, "meta.json")):
        return data.load_meta(name)[1]
    return load_model(name)[1]["meta"]


def main(cfg):
    if not cfg.input:
        raise UserError("Which text? Give a file, a folder or a glob: --input=FILE")
    if cfg.n_words < 0:
        raise UserError(f"n_words is {cfg.n_words}; it must be at least 0.")
    if not 0 < cfg.val_fraction <= 0.5:
        raise UserError(f"val_fraction is {cfg.val_fraction}; it must be above 0, at most 0.5.")
    meta = None
    if cfg.tokenizer not in TOKENIZERS:
        meta = meta_of_model(cfg.tokenizer)
    options = {"n_words": cfg.n_words, "val_fraction": cfg.val_fraction, "meta": meta}
    write_texts(cfg.out_dir, files_of(cfg.input), cfg.input, cfg.tokenizer, **options)


if __name__ == "__main__":
    main(cfg)
