"""
Tables and plots of what eval.py measured.
"""

import itertools
import os

from data import atomic_write, write_json


def short(drafter):
    """out/drafters/lstm/ckpt.pt -> out/drafters/lstm"""
    return drafter.removesuffix("/ckpt.pt").removesuffix("/ngram.txt")


def table(names, rows):
    """Column names, rows of values -> lines: the first column to the left, numbers to the right, None as nothing."""

    def cell(v):
        return "" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)

    rows = [[cell(v) for v in row] for row in [names, *rows]]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([f"{r[0]:{wide[0]}}", *map(str.rjust, r[1:], wide[1:])]).rstrip() for r in rows
    ]


TITLES = [
    "drafter",
    "alpha",
    "+-",
    "counted",
    "by place",
    "tokens/call",
    "gamma",
    "c",
    "call",
    "predicted",
    "measured",
]


def drafter_row(r):
    """What metrics.drafters_table measured of one -> its row, under TITLES."""
    places = " ".join("-" if a is None else f"{a:.2f}" for a in r["counted_at"])
    counted = (
        short(r["drafter"]),
        r["alpha"],
        r["alpha_error"],
        r["counted"],
        places,
        r["tokens_per_call"],
    )
    speed = f"{r['speedup']:.2f} +- {r['speedup_error']:.2f}"
    return *counted, r["gamma"], r["c"], r["call"], r["predicted"], speed


def gain_row(r):
    """What metrics.gain measured -> its row; "outside" where the first model has no such entropy."""
    known = r["ratio"] is not None
    numbers = (r["ratio"], f"{r['low']:.3f} ... {r['high']:.3f}") if known else ("outside", "")
    return r["model"], r["steps"], r["tokens_per_step"], r["temperature"], r["entropy"], *numbers


def tables(report):
    """-> the text that is printed and saved as eval.txt."""
    lines = []
    for path, r in report["likelihood"].items():
        bound = "<=" if r["kind"] == "upper bound" else " ="
        error = "" if r["error"] is None else f" +- {r['error']:.4f}"
        truth = f"; the true entropy is {r['truth']:.4f}" if "truth" in r else ""
        lines.append(
            f"{path}: validation {bound} {r['nats']:.4f}{error} nats per token, perplexity {r['ppl']:.2f}"
        )
        lines[-1] += f", {r['bits_per_char']:.3f} bits per character{truth}"
    for path, r in report["lambada"].items():
        mc = f" (Monte Carlo {r['ppl_monte_carlo']:.2f})" if "ppl_monte_carlo" in r else ""
        found = f"accuracy {r['accuracy']:.1%} of {r['passages']} words"
        lines.append(
            f"{path}: LAMBADA {found}, perplexity {r['ppl']:.2f}{mc} per word, of {r['words_in_ppl']} words"
        )
    if rows := report["rows"]:
        columns = (
            "genppl",
            "bits_per_char",
            "true_ppl",
            "entropy",
            "self_bleu",
            "mauve",
            "s_per_sample",
        )
        keys = ["model", "steps", "texts", *(k for k in columns if any(k in r for r in rows))]
        lines += ["", *table(keys, [[r.get(k) for k in keys] for r in rows])]
    if rows := report["frontier"]:
        keys = ("model", "steps", "tokens_per_step", "temperature", "genppl", "entropy", "repeated")
        lines += ["", *table(keys, [[r.get(k) for k in keys] for r in rows])]
    if rows := report["gains"]:
        names = (
            "perplexity over the first's at equal entropy",
            "steps",
            "tokens_per_step",
            "temperature",
            "entropy",
        )
        lines += ["", *table((*names, "ratio", "95 % interval"), map(gain_row, rows))]
    if rows := report["latency"]:
        names = ("seconds per sample", "steps", "batch", "")
        lines += [
            "",
            *table(
                names,
                [(r["model"], r["steps"], r["batch"], f"{r['s_per_sample']:.4f}") for r in rows],
            ),
        ]
    if report["drafters"]:
        lines += ["", *table(TITLES, map(drafter_row, report["drafters"]))]
    for path, (mean, error) in report.get("rouge2", {}).items():
        lines.append(f"{short(path)}: ROUGE-2 {mean:.3f} +- {error:.3f}")
    lines.append(f"\n{report['hardware']}, seed {report['seed']}, torch {report['torch']}")
    return "\n".join(lines)


QUALITY = {"genppl": "generative perplexity", "true_ppl": "perplexity under the true language"}


def pyplot():
    """-> matplotlib.pyplot that draws into files; imported only by a run that plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 8})
    return plt


def plot(report, plt):
    """Quality and entropy against sampling steps, a line a model, with real text as the line to reach."""
    quality = "genppl" if "genppl" in report["rows"][0] else "true_ppl"
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for ax, key in zip(axes, (quality, "entropy"), strict=True):
        diffusion = [r for r in report["rows"] if r["steps"] and not r["causal"]]
        for model in dict.fromkeys(r["model"] for r in diffusion):
            line = [(r["steps"], r[key]) for r in diffusion if r["model"] == model]
            ax.plot(*zip(*line, strict=True), "o-", label=model)
        flat = [r for r in report["rows"] if not r["steps"] or r["causal"]]
        for r, style in zip(flat, itertools.cycle(("--", ":", "-.")), strict=False):
            ax.axhline(
                r[key], linestyle=style, color="gray" if r["steps"] else "black", label=r["model"]
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("sampling steps")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel(QUALITY[quality])
    axes[1].set_ylabel("entropy of a sample (nats)")
    axes[0].legend()
    return fig


def plot_latency(report, plt):
    """Quality against seconds per sample, a panel a batch size: a line a diffusion model, a star a GPT."""
    quality = "genppl" if "genppl" in report["rows"][0] else "true_ppl"
    batches = list(dict.fromkeys(r["batch"] for r in report["latency"]))
    fig, axes = plt.subplots(
        1, len(batches), figsize=(5.5 * len(batches), 4.2), squeeze=False, sharey=True
    )
    for ax, batch in zip(axes[0], batches, strict=True):
        seconds = {
            (r["model"], r["steps"]): r["s_per_sample"]
            for r in report["latency"]
            if r["batch"] == batch
        }
        for model in dict.fromkeys(r["model"] for r in report["rows"] if r["steps"]):
            rows = [r for r in report["rows"] if r["model"] == model]
            line = [(seconds[report["timed"][r["path"]], r["steps"]], r[quality]) for r in rows]
            ax.plot(*zip(*line, strict=True), "*" if rows[0]["causal"] else "o-", label=model)
        ax.axhline(report["rows"][-1][quality], linestyle="--", color="black", label="real text")
        ax.set(xscale="log", yscale="log", xlabel=f"seconds per sample, batch of {batch}")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("{x:g}")
    axes[0, 0].set_ylabel(QUALITY[quality])
    axes[0, 0].legend()
    return fig


def plot_drafters(report, plt):
    """A bar a drafter: its acceptance rate, and the measured speed."""
    rows = report["drafters"]
    names = [short(r["drafter"]) for r in rows]
    fig, axes = plt.subplots(1, 2, figsize=(11, 0.5 * len(rows) + 1.4), sharey=True)
    for ax, key, label in zip(
        axes, ("alpha", "speedup"), ("acceptance rate alpha", "measured speed-up"), strict=True
    ):
        ax.barh(
            names,
            [r[key] for r in rows],
            xerr=[r[f"{key}_error"] for r in rows],
            color="tab:blue",
            height=0.6,
        )
        ax.set_xlabel(f"{label}, 95 % intervals")
        ax.grid(False, axis="y")
    axes[0].set_xlim(0, 1)
    axes[0].invert_yaxis()
    axes[1].axvline(1, color="black", linestyle="--")
    return fig


def plot_frontier(report, plt):
    """Generative perplexity against entropy, a line over temperatures: a colour a number of steps, a marker a model."""
    fig, ax = plt.subplots(figsize=(10, 5))
    *rows, real = report["frontier"]
    markers = dict(
        zip(dict.fromkeys(r["model"] for r in rows), itertools.cycle("os^Dv"), strict=False)
    )
    colours = {steps: f"C{i}" for i, steps in enumerate(dict.fromkeys(r["steps"] for r in rows))}
    for steps, model in sorted(dict.fromkeys((r["steps"], r["model"]) for r in rows)):
        line = [
            (r["entropy"], r["genppl"]) for r in rows if (r["steps"], r["model"]) == (steps, model)
        ]
        style = ("-" if model == rows[0]["model"] else "--") + markers[model]
        ax.plot(
            *zip(*line, strict=True),
            style,
            color=colours[steps],
            label=f"{model}, steps: {steps}",
            ms=4,
        )
    ax.plot(real["entropy"], real["genppl"], "*", color="black", ms=12, label="real text")
    ax.set(xlabel="entropy of a sample (nats)", ylabel=QUALITY["genppl"], yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(plt.LogLocator(subs=(2, 5)))
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(alpha=0.3, which="both")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def plot_losses(report, plt):
    """Loss in training and in validation against steps, a pair of lines a run."""
    fig, ax = plt.subplots(figsize=(7, 4.2))
    for i, (run, records) in enumerate(report["losses"].items()):
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            line = [(r["step"], r[key]) for r in records if key in r]
            ax.plot(*zip(*line, strict=True), style, color=f"C{i}", label=f"{run}, {key}")
    ax.set(xlabel="steps", ylabel="nats per token")
    ax.legend()
    return fig


def write_report(report, folder):
    """-> the names of what it wrote: eval.json, the plots, and at last (make demo looks for it) eval.txt."""
    write_json(os.path.join(folder, "eval.json"), report)
    judged = bool(report["rows"]) and any(key in report["rows"][0] for key in QUALITY)
    plots = {
        "eval.png": (plot, judged),
        "latency.png": (plot_latency, judged and report["latency"]),
    }
    plots |= {
        "frontier.png": (plot_frontier, report["frontier"]),
        "loss.png": (plot_losses, report["losses"]),
    }
    plots |= {"drafters.png": (plot_drafters, report["drafters"])}
    for name, (draw, wanted) in plots.items():
        if wanted:
            fig = draw(report, pyplot())
            fig.tight_layout()
            fig.savefig(os.path.join(folder, name), dpi=130)
        elif os.path.exists(os.path.join(folder, name)):  # of an earlier run
            os.remove(os.path.join(folder, name))
    atomic_write(os.path.join(folder, "eval.txt"), (tables(report) + "\n").encode())
    return ["eval.json", *(name for name, (_, wanted) in plots.items() if wanted), "eval.txt"]
