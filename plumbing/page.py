"""
A page that replays samples at their measured speed: what it is told, and the file.
"""

import json
import os
import time

from configurator import UserError
from data import read_json, replacing


def recorder(events):
    """-> watch(x, drafts=None): appends (seconds, the first row's tokens, its drafts) to events."""

    def watch(x, drafts=None):
        row, judged = (
            x[0].tolist(),
            None if drafts is None else drafts[0].tolist(),
        )  # waits for the device
        events.append((time.perf_counter(), row, judged))

    return watch


def pieces_of(row, decode):
    """[token id, ...] -> [text, ...] that joined are decode(row).

    Of tokens that share a character (bytes of UTF-8) the last one has it, and the others have "".
    """
    pieces, waiting = [], []
    for i, token in enumerate(row):
        waiting.append(token)
        text = decode(waiting)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 < len(row):
            pieces.append("")
        else:
            pieces.append(text)
            waiting = []
    return pieces


def run_of(row, events, decode, mask_id):
    """The sampled tokens, what a recorder saw, the first event being the blank page -> what the page shows of them.

    pieces, calls: a token's text, and which call of the network revealed it (0: it was given). ms: when each call was
    done. drafts: {call: [how many drafts were accepted, [text of each of the others]]}. The page calls a call a step.
    """
    calls, drafts, before = [-1] * len(row), {}, 0
    for k, (_, seen, judged) in enumerate(events):
        for i, token in enumerate(seen[: len(row)]):
            if calls[i] < 0 and token not in (-1, mask_id):
                calls[i] = k
        if judged is not None:
            n_accepted = len(seen) - before - 1
            drafts[k] = [n_accepted, [decode([i]) for i in judged[n_accepted:]]]
        before = len(seen) if k else sum(c == 0 for c in calls)
    ms = [round(1000 * (at - events[0][0]), 2) for at, _, _ in events[1:]]
    return {
        "pieces": pieces_of(row, decode),
        "calls": calls,
        "ms": ms,
        "drafts": drafts,
        "masks": mask_id is not None,
    }


def frontier_of(path):
    """An eval.json of eval.py --what=frontier -> its points, the last one real text; '' -> []."""
    if not path:
        return []
    try:
        points = read_json(path)["frontier"]
        return [
            {k: p.get(k) for k in ("model", "steps", "temperature", "genppl", "entropy")}
            for p in points
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} holds no frontier ({error}). Make it with: eval.py --what=frontier"
        ) from None


def write_page(path, names, drawn, points):
    """[(texts, how long they took, run_of them), ...], one for each name; frontier_of -> one file without a network."""
    with open(os.path.join(os.path.dirname(__file__), "page.html"), encoding="utf-8") as f:
        template = f.read()
    runs = [
        {"name": name, "took": took, **run}
        for name, (_, took, run) in zip(names, drawn, strict=True)
    ]
    # sampled text may be anything, </script> too: no < reaches the browser's parser
    told = json.dumps({"runs": runs, "frontier": points}, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    with replacing(path, "w") as f:
        f.write(template.replace("DATA", told, 1))
    print(f"The page is {path}: open it in a browser.")
