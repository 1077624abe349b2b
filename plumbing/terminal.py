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
    out, run = [], []
    for i in [*ids, mask_id]:
        if i != mask_id:
            run.append(i)
        else:
            out += [decode(run), "░"]
            run = []
    return "".join(out[:-1])


def tracer(decode, mask_id, frames_per_second=20):
    """-> watch(xt): redraws the first sample in a terminal; in a pipe, prints every frame after the last."""

    def watch(xt):
        n_masked = int((xt[0] == mask_id).sum())
        frame = f"{show_blanks(xt[0].tolist(), decode, mask_id)}\n--- {n_masked} of {xt.size(1)} tokens masked"
        if sys.stdout.isatty():
            print(f"\033[H\033[J{frame}", flush=True)
            time.sleep(1 / frames_per_second)
        else:
            print(frame, flush=True)

    return watch


def coloured(row, drafted, decode):
    """(L) int64, (L) bool -> text; what the drafter wrote and the target accepted is green in a terminal."""
    runs = itertools.groupby(
        zip(row.tolist(), drafted.tolist(), strict=True), key=lambda pair: pair[1]
    )
    texts = [(green, decode([i for i, _ in run])) for green, run in runs]
    return "".join(f"\033[32m{text}\033[0m" if green else text for green, text in texts)


def side_by_side(texts, width):
    """[text, ...] -> one text in columns of that width."""
    wrap = textwrap.TextWrapper(width, replace_whitespace=False, drop_whitespace=False)
    columns = [
        [part for line in text.expandtabs().splitlines() for part in wrap.wrap(line) or [""]]
        for text in texts
    ]
    lines = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(" | ".join(f"{part:{width}}" for part in line).rstrip() for line in lines)


def print_samples(paths, drawn):
    """[(texts, how long they took, ...), ...], one for each path: the texts of several models side by side."""
    width = max((shutil.get_terminal_size((120, 24)).columns + 3) // len(paths) - 3, 20)
    for i, texts in enumerate(zip(*(texts for texts, *_ in drawn), strict=True)):
        print(f"{'-' * 40} sample {i + 1}")
        titled = [f"{path}\n\n{text}" for path, text in zip(paths, texts, strict=True)]
        print(texts[0] if len(paths) == 1 else side_by_side(titled, width))
    print("-" * 40)
    for path, (_, took, *_) in zip(paths, drawn, strict=True):
        print(took if len(paths) == 1 else f"{path}: {took}")
