"""
Your own text: a file, a folder of files, or a glob.
$ python data/text/prepare.py --input=my.txt                    (200 MB: 80 seconds on one core, 0.5 GB of memory)
$ python data/text/prepare.py --input='notes/**/*.md' --tokenizer=char --out_dir=data/notes
$ make demo DATASET=text                                        (all of the demo on it, in out/text)

Of less than ten files the last tenth of each validates, of more every tenth file.
"""

import os
import sys

sys.path.insert(
    0, os.path.join(os.path.dirname(__file__), "..", "..")
)  # so that it runs from anywhere
from configurator import UserError, check, choose, configure
from data.texts import TOKENIZERS, files_of, write_texts
from plumbing.checkpoints import load_checkpoint, names_a_model

# ----------------------------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
input = ""  # UTF-8: a file, a folder (all that is in it) or a glob
tokenizer = "words"  # 'char' | 'words' (frequent ones, and characters) | 'gpt2' (byte pairs) | a model: a checkpoint,
# the folder or name of a published one, whose vocabulary is taken
n_words = 0  # of tokenizer 'words'; 0: one for 250 characters, but not below 256 or above 8000, at least 0
val_fraction = 0.1  # of the text, from 0.0001 to 0.5
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    check(cfg, __file__)
    if not input:
        raise UserError(
            "Which text? Give a file, a folder or a glob: python data/text/prepare.py --input=FILE"
        )
    meta = None
    if names_a_model(tokenizer):
        meta = load_checkpoint(tokenizer)["meta"]
    else:
        choose("tokenizer", tokenizer, TOKENIZERS)
    write_texts(out_dir, files_of(input), input, tokenizer, n_words, val_fraction, meta)
