"""
A page of extras/page.py as a moving picture for a README: an SVG that replays itself, no script.
$ python lessons/record.py out/demo/page.html assets/page.svg                          (a second)
"""

import html
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import UserError
from plumbing.console import prepare_console

WIDTH = 1000  # of the picture
LETTER = 6.9  # width of a letter
LINE = 17  # height of a line
TOP = 84  # above the text
PAUSE = 4  # seconds at the end
CONTROL = r"[\x00-\x1f]"  # XML has no such letters
STOPS = ((126, 164, 245), (152, 214, 196), (255, 232, 120))  # as on the page: blue to yellow


def color(fraction):
    """0 ... 1 -> '#rrggbb' between the stops."""
    i = 0 if fraction < 0.5 else 1
    way = 2 * fraction - i
    mixed = [round(a + way * (b - a)) for a, b in zip(STOPS[i], STOPS[i + 1], strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def placed(pieces, columns):
    """
    [text of a token, ...] -> for each [(line, column, text), ...]: more than one where it holds a
    line break.
    """
    line = 0
    column = 0
    out = []
    for piece in pieces:
        parts = []
        for i, part in enumerate(piece.split("\n")):
            if i or (column and column + len(part) > columns):
                line += 1
                column = 0
            for start in range(0, len(part), columns):
                if start:
                    line += 1
                    column = 0
                parts.append((line, column, part[start : start + columns]))
                column += len(parts[-1][2])
        out.append(parts)
    return out


def token(parts, left, fill, ink):
    """-> a box of that color and the text on it. textLength: whatever the font, letters fit."""
    out = []
    for line, column, text in parts:
        x = left + column * LETTER
        y = TOP + line * LINE
        w = len(text) * LETTER
        out.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{LINE - 2}" fill="{fill}"/>')
        if text.strip():
            where = f'x="{x:.1f}" y="{y + 12}" textLength="{w:.1f}"'
            out.append(f"<text {where}{ink}>{html.escape(re.sub(CONTROL, ' ', text))}</text>")
    return "".join(out)


def head_of(run, left, wide, slow, seconds):
    """-> the SVG of what stands above a text: its name, what it took, and a bar."""
    name, _, drafts = run["name"].partition(" + ")
    took = f"{len(run['ms'])} forward passes, {run['ms'][-1]:.0f} ms"
    drafted = f"+ {drafts}" if drafts else ""
    out = []
    for y, kind, text in ((20, "name", name), (36, "soft", drafted), (52, "soft", took)):
        out.append(f'<text x="{left:g}" y="{y}" class="{kind}">{html.escape(text)}</text>')
    fraction = run["ms"][-1] * slow / 1000 / seconds
    out.append(
        f'<rect x="{left:g}" y="62" width="{wide:g}" height="4" fill="#1a5fb4">'
        f'<animate attributeName="width" values="0;{wide:g};{wide:g}" '
        f'keyTimes="0;{fraction:.4f};1" dur="{seconds:.2f}s" repeatCount="indefinite"/></rect>'
    )
    return "".join(out)


def text_of(run, left, wide, slow, seconds):
    """-> the SVG of a text, whose tokens appear step by step, and how many lines it has."""
    n_steps = len(run["ms"])
    positions = placed(run["pieces"], int(wide / LETTER))
    accepted = {int(step): n for step, (n, _) in run["drafts"].items()}
    seen = {}  # of each step, how many tokens so far
    groups = {}
    out = []
    for step, parts in zip(run["step_of"], positions, strict=True):
        seen[step] = seen.get(step, 0) + 1
        ink = "" if step else ' class="name"'
        if step and seen[step] <= accepted.get(step, 0):
            ink = ' class="accepted"'
        if run["masks"] and step:
            blanks = [(line, column, " " * len(text)) for line, column, text in parts]
            out.append(token(blanks, left, "#d3d7dd", ""))
        fill = color((step - 1) / max(n_steps - 1, 1)) if step else "none"
        groups.setdefault(step, []).append(token(parts, left, fill, ink))
    for step, tokens in groups.items():
        shows = ""
        if step:
            at = run["ms"][step - 1] * slow / 1000 / seconds
            shows = (
                f'<animate attributeName="opacity" values="0;1" keyTimes="0;{at:.4f}" '
                f'calcMode="discrete" dur="{seconds:.2f}s" repeatCount="indefinite"/>'
            )
        out.append(f"<g>{shows}{''.join(tokens)}</g>")
    n_lines = 1 + max(line for parts in positions for line, *_ in parts)
    return "".join(out), n_lines


def picture(runs):
    """The runs of a page -> SVG; the slowest one takes about ten seconds."""
    longest = max(run["ms"][-1] for run in runs)
    factors = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    slow = max((f for f in factors if longest * f <= 12000), default=1)
    seconds = longest * slow / 1000 + PAUSE
    wide = WIDTH / len(runs) - 20
    columns = []
    n_lines = 0
    for i, run in enumerate(runs):
        left = 10 + i * WIDTH / len(runs)
        text, n = text_of(run, left, wide, slow, seconds)
        columns.append(head_of(run, left, wide, slow, seconds) + text)
        n_lines = max(n_lines, n)
    bottom = TOP + LINE * n_lines
    note = f"As measured, {slow} times slower. "
    note += "Color: which forward pass wrote a token, the first blue, the last yellow."
    if any(run["drafts"] for run in runs):
        note += " Underlined: drafted, and accepted."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}"><style>'
        "text{font:11.5px monospace;fill:#14161a;white-space:pre}.name{font-weight:700}"
        ".soft{fill:#5f6368}.accepted{text-decoration:underline}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#f7f8fa"/>{"".join(columns)}'
        f'<text x="10" y="{bottom + 22}" class="soft">{note}</text></svg>\n'
    )


def main(page, path):
    try:
        with open(page, encoding="utf-8") as f:
            told = re.search(r'id="told"[^>]*>(.*?)</script>', f.read(), re.S)[1]
        runs = json.loads(told)["runs"]
    except (OSError, TypeError) as error:
        raise UserError(
            f"{page} is not a page ({error}). Make one with: python -m extras.page --out={page}"
        ) from None
    data.atomic_write(path, picture(runs).encode())


if __name__ == "__main__":
    prepare_console()
    if len(sys.argv) != 3:
        raise UserError("Which page? python lessons/record.py PAGE.html PICTURE.svg")
    main(*sys.argv[1:])
