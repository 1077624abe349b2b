"""
How text looks in a terminal: masks that disappear, accepted drafts in green, models side by side.
"""

import itertools
import shutil
import sys
import textwrap
import time


def show_blanks(ids, decode, mask_id):
    """Token ids -> text, with a light block for every [MASK]."""
    parts = []
    for masked, run in itertools.groupby(ids, key=lambda i: i == mask_id):
        run = list(run)
        parts.append("░" * len(run) if masked else decode(run))
    return "".join(parts)


class Tracer:
    """watch(xt): redraws the first sample in a terminal; in a pipe, prints one after the other."""

    def __init__(self, decode, mask_id, frames_per_second=20):
        self.decode = decode
        self.mask_id = mask_id
        self.pause = 1 / frames_per_second

    def __call__(self, xt):
        ids = xt[0].tolist()
        text = show_blanks(ids, self.decode, self.mask_id)
        frame = f"{text}\n--- {ids.count(self.mask_id)} of {len(ids)} tokens masked"
        if sys.stdout.isatty():
            print(f"\033[H\033[J{frame}", flush=True)
            time.sleep(self.pause)
        else:
            print(frame, flush=True)


def colored(ids, drafted, decode):
    """[token id, ...], [bool, ...] -> text; what was drafted and accepted is green."""
    parts = []
    for green, run in itertools.groupby(zip(ids, drafted, strict=True), key=lambda pair: pair[1]):
        text = decode([i for i, _ in run])
        parts.append(f"\033[32m{text}\033[0m" if green else text)
    return "".join(parts)


def side_by_side(texts, width):
    """[text, ...] -> one text in columns of that width."""
    wrap = textwrap.TextWrapper(width, replace_whitespace=False, drop_whitespace=False)
    columns = []
    for text in texts:
        lines = text.expandtabs().splitlines()
        columns.append([part for line in lines for part in wrap.wrap(line) or [""]])
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(" | ".join(f"{part:{width}}" for part in row).rstrip() for row in rows)


def print_samples(paths, drawn):
    """For each path its texts and what they took: the texts of several models side by side."""
    columns = shutil.get_terminal_size((120, 24)).columns
    width = max((columns + 3) // len(paths) - 3, 20)
    for i, texts in enumerate(zip(*(texts for texts, _ in drawn), strict=True)):
        print(f"{'-' * 40} sample {i + 1}")
        titled = [f"{path}\n\n{text}" for path, text in zip(paths, texts, strict=True)]
        print(texts[0] if len(paths) == 1 else side_by_side(titled, width))
    print("-" * 40)
    for path, (_, took) in zip(paths, drawn, strict=True):
        print(took if len(paths) == 1 else f"{path}: {took}")
