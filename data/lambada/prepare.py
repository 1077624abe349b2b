"""
LAMBADA (Paperno et al. 2016): 5153 passages whose last word can be predicted from the whole, not
from its sentence.
$ python data/lambada/prepare.py            (seconds; downloads 1 MB: OpenAI's version of the texts)
$ python data/lambada/prepare.py --input=my.txt --vocabulary=pydoc --out_dir=data/toy_lambada

Writes passages.jsonl, {"context", "word"} a line; the white space before the last word is the
word's.
"""

import collections
import os
import re
import sys

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import UserError, configure
from data.documents import documents, with_text

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where passages.jsonl and meta.json go
# files of your own (a glob) instead of the download: .txt, or .jsonl, .csv or .parquet with a
# column `text`; also .txt.gz
input = ""
vocabulary = ""  # a dataset, as in train.py's --dataset, whose tokens count; '': GPT-2 byte pairs
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

HUB = {"path": "EleutherAI/lambada_openai", "name": "default", "split": "test"}


def split_last_word(text):
    """'He shook his head.' -> 'He shook his', ' head.'; None unless there are two words."""
    found = re.fullmatch(r"(.*\S.*)(\s\S+)", text.rstrip(), flags=re.DOTALL)
    return found and found.groups()


def passages(texts, encode):
    """
    -> [{"context", "word"}], Counter of tokens per word, Counter of reasons to leave a passage out.

    A word is scored as its own tokens after the context's, so these must be the tokens of the whole
    passage.
    """
    kept = []
    lengths = collections.Counter()
    left_out = collections.Counter()
    for text in texts:
        parts = split_last_word(text)
        if not parts:
            left_out["one_word"] += 1
            continue
        context, word = parts
        try:
            head = encode(context)
            tail = encode(word)
            whole = encode(context + word)
        except UserError:  # a character that the vocabulary has not
            left_out["unknown_character"] += 1
            continue
        if head + tail != whole:
            left_out["other_tokens_as_a_whole"] += 1
            continue
        kept.append({"context": context, "word": word})
        lengths[min(len(tail), 3)] += 1
    return kept, lengths, +left_out


if __name__ == "__main__":
    meta = data.load_meta(vocabulary)[1] if vocabulary else data.GPT2_META
    encode, _ = data.encoder(meta)
    found = with_text(documents(HUB, input, ["text"]), ["text"])
    kept, lengths, left_out = passages((row["text"] for row in found), encode)
    said = ", ".join(f"{n} ({why.replace('_', ' ')})" for why, n in left_out.items()) or "none"
    if not kept:
        raise UserError(
            f"{input or HUB['path']} has no passage that can be used; left out: {said}."
        )
    data.remove_meta(out_dir)
    data.write_jsonl(os.path.join(out_dir, "passages.jsonl"), kept)
    meta = {k: meta[k] for k in (*data.VOCABULARY, "eot") if k in meta}
    meta |= {"source": input or HUB["path"], "passages": len(kept), "left_out": left_out}
    meta["words_of_tokens"] = {"1": lengths[1], "2": lengths[2], "3+": lengths[3]}
    data.write_json(os.path.join(out_dir, "meta.json"), meta)
    of_tokens = f"1 token in {lengths[1]}, 2 in {lengths[2]}, 3 or more in {lengths[3]}"
    print(f"{out_dir}: {len(kept)} passages; the word is of {of_tokens}; left out: {said}")
