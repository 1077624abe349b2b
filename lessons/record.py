"""
A page of sample.py --html as a moving picture for a README: an SVG that replays itself, without a script.
$ python lessons/record.py out/demo/page.html assets/page.svg                                              (a second)
"""

import html
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import UserError, one_line_for_user_errors

WIDTH, LETTER, LINE, TOP, PAUSE = (
    1000,
    6.9,
    17,
    84,
    4,
)  # of the picture, a letter, a line, above the text; seconds
CONTROL = r"[\x00-\x1f]"  # XML has no such letters
STOPS = (
    (126, 164, 245),
    (152, 214, 196),
    (255, 232, 120),
)  # as on the page: blue to yellow, ever lighter


def colour(share):
    i = 0 if share < 0.5 else 1
    return "#" + "".join(
        f"{round(a + (2 * share - i) * (b - a)):02x}"
        for a, b in zip(*STOPS[i : i + 2], strict=True)
    )


def placed(pieces, columns):
    """[text of a token, ...] -> for each [(line, column, text), ...]: more than one where it holds a line break."""
    line, column, out = 0, 0, []
    for piece in pieces:
        parts = []
        for i, part in enumerate(piece.split("\n")):
            if i or (column and column + len(part) > columns):
                line, column = line + 1, 0
            for start in range(0, len(part), columns):
                if start:
                    line, column = line + 1, 0
                parts.append((line, column, part[start : start + columns]))
                column += len(parts[-1][2])
        out.append(parts)
    return out


def token(parts, left, fill, ink):
    """-> a box of that colour and the text on it. textLength: whatever the font, a letter is as wide as its place."""
    out = []
    for line, column, text in parts:
        x, y, w = left + column * LETTER, TOP + line * LINE, len(text) * LETTER
        out.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{LINE - 2}" fill="{fill}"/>')
        if text.strip():
            where = f'x="{x:.1f}" y="{y + 12}" textLength="{w:.1f}"'
            out.append(f"<text {where}{ink}>{html.escape(re.sub(CONTROL, ' ', text))}</text>")
    return "".join(out)


def column_of(run, left, wide, slow, seconds):
    """-> the SVG of one run, and how many lines it has."""
    n, parts = len(run["ms"]), placed(run["pieces"], int(wide / LETTER))
    name, _, draft = run["name"].replace("/ckpt.pt", "").partition(" --")
    took = f"{n} calls of the network, {run['ms'][-1]:.0f} ms"
    heads = (20, "name", name), (36, "soft", draft and f"--{draft}"), (52, "soft", took)
    out = [
        f'<text x="{left:g}" y="{y}" class="{kind}">{html.escape(text)}</text>'
        for y, kind, text in heads
    ]
    share = run["ms"][-1] * slow / 1000 / seconds
    bar = f'<rect x="{left:g}" y="62" width="{wide:g}" height="4" fill="#1a5fb4"><animate attributeName="width" '
    bar += f'values="0;{wide:g};{wide:g}" keyTimes="0;{share:.4f};1" dur="{seconds:.2f}s" repeatCount="indefinite"/>'
    out.append(f"{bar}</rect>")
    drafted, seen = {int(k): accepted for k, (accepted, _) in run["drafts"].items()}, {}
    groups = {}
    for k, its in zip(run["calls"], parts, strict=True):
        seen[k] = seen.get(k, 0) + 1
        ink = (
            ' class="accepted"'
            if k and seen[k] <= drafted.get(k, 0)
            else ""
            if k
            else ' class="name"'
        )
        if run["masks"] and k:
            out.append(
                token([(line, c, " " * len(text)) for line, c, text in its], left, "#d3d7dd", "")
            )
        groups.setdefault(k, []).append(
            token(its, left, colour((k - 1) / max(n - 1, 1)) if k else "none", ink)
        )
    for k, tokens in groups.items():
        at = run["ms"][k - 1] * slow / 1000 / seconds if k else 0
        shows = f'<animate attributeName="opacity" values="0;1" keyTimes="0;{at:.4f}" calcMode="discrete" '
        shows = f'{shows}dur="{seconds:.2f}s" repeatCount="indefinite"/>' if k else ""
        out.append(f"<g>{shows}{''.join(tokens)}</g>")
    return "".join(out), 1 + max(line for its in parts for line, *_ in its)


def picture(runs):
    """The runs of a page -> SVG; the slowest one takes about ten seconds."""
    longest = max(run["ms"][-1] for run in runs)
    slow = max(
        (f for f in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if longest * f <= 12000), default=1
    )
    seconds, wide = longest * slow / 1000 + PAUSE, WIDTH / len(runs) - 20
    columns = [
        column_of(run, 10 + i * WIDTH / len(runs), wide, slow, seconds)
        for i, run in enumerate(runs)
    ]
    bottom = TOP + LINE * max(lines for _, lines in columns)
    note = f"As measured, {slow} times slower. Colour: which call wrote a token, the first blue, the last yellow."
    note += " Underlined: drafted, and accepted." if any(run["drafts"] for run in runs) else ""
    style = "text{font:11.5px monospace;fill:#14161a;white-space:pre}.name{font-weight:700}.soft{fill:#5f6368}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}"><style>{style}'
        f'.accepted{{text-decoration:underline}}</style><rect width="100%" height="100%" rx="8" fill="#f7f8fa"/>'
        f'{"".join(svg for svg, _ in columns)}<text x="10" y="{bottom + 22}" class="soft">{note}</text></svg>\n'
    )


def main(page, path):
    try:
        with open(page, encoding="utf-8") as f:
            runs = json.loads(re.search(r'id="told"[^>]*>(.*?)</script>', f.read(), re.S)[1])[
                "runs"
            ]
    except (OSError, TypeError) as error:
        raise UserError(
            f"{page} is not a page ({error}). Make one with: sample.py --html={page}"
        ) from None
    data.atomic_write(path, picture(runs).encode())


if __name__ == "__main__":
    sys.excepthook = one_line_for_user_errors
    if len(sys.argv) != 3:
        raise UserError("Which page? python lessons/record.py PAGE.html PICTURE.svg")
    main(*sys.argv[1:])
