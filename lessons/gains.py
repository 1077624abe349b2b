"""
What SDTT adds over a temperature, against how many tokens a step unmasks: a plot from several runs
of eval.py.
$ python lessons/gains.py assets/gains.png out/seed1/eval out/seed2/eval out/seed3/eval   (a second)

Each folder holds the eval.json of --what=frontier for one seed: a teacher, and students that
eval.py compared with it at equal entropy. A student counts at the number of steps that it was made
for.
"""

import collections
import os
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
from configurator import UserError
from data import read_json
from plumbing.console import prepare_console
from plumbing.report import pyplot


def gains_of(folder):
    """A folder -> {tokens per step: (ratio, low, high)}, of the student that was made for each."""
    try:
        report = read_json(os.path.join(folder, "eval.json"))
        rows = [row for row in report["gains"] if row["ratio"] is not None]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{folder} holds no gains ({error}). Make them with: eval.py --what=frontier"
        ) from None
    own = [row for row in rows if row["steps"] == row["made_for"]]
    own.sort(key=lambda row: -row["ratio"])  # of uniform and falling temperatures the best stays
    return {row["tokens_per_step"]: (row["ratio"], row["low"], row["high"]) for row in own}


def plot(folders, path):
    """A thin line with 95 % intervals for each seed, a thick one through their geometric means."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(7, 4.2))
    by_tokens = collections.defaultdict(list)  # tokens per step -> the ratio of each seed
    for folder in folders:
        gains = sorted(gains_of(folder).items())
        x = [n for n, _ in gains]
        y = [ratio for _, (ratio, _, _) in gains]
        below = [ratio - low for _, (ratio, low, _) in gains]
        above = [high - ratio for _, (ratio, _, high) in gains]
        style = {"fmt": "o-", "lw": 0.8, "ms": 3, "capsize": 2, "alpha": 0.6}
        ax.errorbar(x, y, [below, above], label=folder, **style)
        for n, ratio in zip(x, y, strict=True):
            by_tokens[n].append(ratio)
    means = [(n, statistics.geometric_mean(ratios)) for n, ratios in sorted(by_tokens.items())]
    ax.plot(*zip(*means, strict=True), "-", color="black", lw=2, label="mean")
    ax.axhline(1, linestyle="--", color="gray")
    ylabel = "perplexity, student over teacher at equal entropy"
    ax.set(xscale="log", xlabel="tokens unmasked per step", ylabel=ylabel)
    ax.set_xticks([n for n, _ in means])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    return means


if __name__ == "__main__":
    prepare_console()
    if len(sys.argv) < 3:
        raise UserError(
            "Which runs? python lessons/gains.py PICTURE FOLDER ..., of eval.py --what=frontier."
        )
    for n, mean in plot(sys.argv[2:], sys.argv[1]):
        print(f"{n:5g} tokens a step: {mean:.3f}")
