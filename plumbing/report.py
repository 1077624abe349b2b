"""
Tables and plots of what eval.py measured.
"""

import itertools
import json
import os

from data import atomic_write, write_json

# --------------------------------------------------------------------------------------------------
# tables


def drafter_name(drafter):
    """out/drafters/lstm/ckpt.pt -> out/drafters/lstm"""
    return drafter.removesuffix("/ckpt.pt").removesuffix("/ngram.txt")


def cell(value):
    """A value of a table -> text; None as nothing."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(names, rows):
    """Column names, rows of values -> lines: the first column to the left, the others right."""
    rows = [[cell(value) for value in row] for row in [names, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        right = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *right]).rstrip())
    return lines


def likelihood_line(path, r):
    bound = "<=" if r["kind"] == "upper bound" else " ="
    error = "" if r["error"] is None else f" +- {r['error']:.4f}"
    return (
        f"{path}: validation {bound} {r['nats']:.4f}{error} nats per token, "
        f"perplexity {r['ppl']:.2f}, {r['bits_per_char']:.3f} bits per character"
    )


def quality_table(rows):
    columns = ("genppl", "entropy", "self_bleu", "s_per_sample")
    names = ["model", "steps", "texts", *(k for k in columns if any(k in r for r in rows))]
    return table(names, [[r.get(k) for k in names] for r in rows])


def frontier_table(rows):
    names = ["model", "steps", "tokens_per_step", "temperature", "cooling"]
    names += ["genppl", "entropy", "repeated"]
    return table(names, [[r.get(k) for k in names] for r in rows])


def gains_table(gains):
    names = ["steps", "tokens_per_step", "temperature", "cooling", "entropy"]
    rows = []
    for r in gains:
        found = ["outside", ""]  # the teacher has no such entropy
        if r["ratio"] is not None:
            found = [r["ratio"], f"{r['low']:.3f} ... {r['high']:.3f}"]
        rows.append([r["model"], *(r[k] for k in names), *found])
    title = "perplexity over the first's at equal entropy"
    return table([title, *names, "ratio", "95 % interval"], rows)


def latency_table(rows):
    cells = [(r["model"], r["steps"], r["batch"], f"{r['s_per_sample']:.4f}") for r in rows]
    return table(["seconds per sample", "steps", "batch", ""], cells)


def drafters_table(rows):
    lines = []
    for r in rows:
        positions = " ".join("-" if a is None else f"{a:.2f}" for a in r["counted_at"])
        speed = f"{r['speedup']:.2f}"
        if r["speedup_error"] is not None:
            speed += f" +- {r['speedup_error']:.2f}"
        line = {
            "drafter": drafter_name(r["drafter"]),
            "alpha": r["alpha"],
            "+-": r["alpha_error"],
            "gamma": r["gamma"],
            "drafts": r["drafts"],
            "rejected": r["rejected"],
            "counted": r["alpha_counted"],
            "by position": positions,
            "tokens/forward": r["tokens_per_forward"],
            "c": r["c"],
            "verify": r["verify"],
            "predicted": r["predicted"],
            "measured": speed,
        }
        lines.append(line)
    return table(list(lines[0]), [line.values() for line in lines])


TABLES = {
    "rows": quality_table,
    "frontier": frontier_table,
    "gains": gains_table,
    "latency": latency_table,
    "drafters": drafters_table,
}


def tables(report):
    """-> the text that is printed and saved as eval.txt."""
    lines = [likelihood_line(path, r) for path, r in report.get("likelihood", {}).items()]
    for key, make in TABLES.items():
        if report.get(key):
            lines += ["", *make(report[key])]
    lines += ["", f"{report['hardware']}, seed {report['seed']}, torch {report['torch']}"]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# plots


def pyplot():
    """-> matplotlib.pyplot that draws into files; imported only by a run that plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 8})
    return plt


PERPLEXITY = "generative perplexity"


def plot_quality(report, plt):
    """Perplexity and entropy against sampling steps, a line a model, real text to reach."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    diffusion = [r for r in report["rows"] if r["steps"] and not r["causal"]]
    flat = [r for r in report["rows"] if not r["steps"] or r["causal"]]
    for ax, key in zip(axes, ("genppl", "entropy"), strict=True):
        for model in dict.fromkeys(r["model"] for r in diffusion):
            rows = [r for r in diffusion if r["model"] == model]
            ax.plot([r["steps"] for r in rows], [r[key] for r in rows], "o-", label=model)
        for r, style in zip(flat, itertools.cycle(("--", ":", "-.")), strict=False):
            color = "gray" if r["steps"] else "black"
            ax.axhline(r[key], linestyle=style, color=color, label=r["model"])
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("sampling steps")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel(PERPLEXITY)
    axes[1].set_ylabel("entropy of a sample (nats)")
    axes[0].legend()
    return fig


def plot_latency(report, plt):
    """Perplexity against seconds per sample, a panel a batch size: lines; a star for a GPT."""
    batches = list(dict.fromkeys(r["batch"] for r in report["latency"]))
    fig, axes = plt.subplots(
        1, len(batches), figsize=(5.5 * len(batches), 4.2), squeeze=False, sharey=True
    )
    *drawn, real = report["rows"]
    timed = report["timed"]
    for ax, batch in zip(axes[0], batches, strict=True):
        of_batch = [r for r in report["latency"] if r["batch"] == batch]
        seconds = {(r["model"], r["steps"]): r["s_per_sample"] for r in of_batch}
        # samples of files are here only if --ckpt and --steps have had the same timed
        shown = [r for r in drawn if (timed.get(r["path"]), r["steps"]) in seconds]
        for model in dict.fromkeys(r["model"] for r in shown):
            rows = [r for r in shown if r["model"] == model]
            x = [seconds[timed[r["path"]], r["steps"]] for r in rows]
            style = "*" if rows[0]["causal"] else "o-"
            ax.plot(x, [r["genppl"] for r in rows], style, label=model)
        ax.axhline(real["genppl"], linestyle="--", color="black", label="real text")
        ax.set(xscale="log", yscale="log", xlabel=f"seconds per sample, batch of {batch}")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("{x:g}")
    axes[0, 0].set_ylabel(PERPLEXITY)
    axes[0, 0].legend()
    return fig


def plot_frontier(report, plt):
    """
    Perplexity against entropy, a line over temperatures: a color a number of steps, a marker a
    model, a solid line for the first model, a dotted one where the temperature falls.
    """
    fig, ax = plt.subplots(figsize=(10, 5))
    *rows, real = report["frontier"]
    models = list(dict.fromkeys(r["model"] for r in rows))
    markers = dict(zip(models, itertools.cycle("os^Dv"), strict=False))
    # samples of a file may have no steps, and None does not sort
    step_numbers = dict.fromkeys(r["steps"] or 0 for r in rows)
    colors = {n_steps: f"C{i}" for i, n_steps in enumerate(step_numbers)}
    lines = {}
    for r in rows:
        key = (r["steps"] or 0, r["model"], r["cooling"])
        lines.setdefault(key, []).append(r)
    for (n_steps, model, cooling), line in sorted(lines.items(), key=lambda pair: pair[0]):
        style = "-" if model == models[0] else "--"
        label = f"{model}, steps: {n_steps}" if n_steps else model
        if cooling != 1:
            style = ":"
            label = f"{label}, cooling {cooling:g}"
        ax.plot(
            [r["entropy"] for r in line],
            [r["genppl"] for r in line],
            style + markers[model],
            color=colors[n_steps],
            label=label,
            ms=4,
        )
    ax.plot(real["entropy"], real["genppl"], "*", color="black", ms=12, label="real text")
    ax.set(xlabel="entropy of a sample (nats)", ylabel=PERPLEXITY, yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(plt.LogLocator(subs=(2, 5)))
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(alpha=0.3, which="both")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def plot_drafters(report, plt):
    """A bar a drafter: its acceptance rate, and the measured speed."""
    rows = report["drafters"]
    names = [drafter_name(r["drafter"]) for r in rows]
    fig, axes = plt.subplots(1, 2, figsize=(11, 0.5 * len(rows) + 1.4), sharey=True)
    labels = {"alpha": "acceptance rate alpha", "speedup": "measured speed-up"}
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        # None: nothing was proposed, or there are too few texts for an interval
        means = [r[key] or 0 for r in rows]
        errors = [r[f"{key}_error"] or 0 for r in rows]
        ax.barh(names, means, xerr=errors, color="tab:blue", height=0.6)
        ax.set_xlabel(f"{label}, 95 % intervals")
        ax.grid(False, axis="y")
    axes[0].set_xlim(0, 1)
    axes[0].invert_yaxis()
    axes[1].axvline(1, color="black", linestyle="--")
    return fig


def plots_of(report):
    """-> {file name: the function that draws it, None where nothing was measured for it}"""
    scored = any("genppl" in r for r in report.get("rows", []))
    timed = scored and report.get("latency")
    return {
        "eval.png": plot_quality if scored else None,
        "latency.png": plot_latency if timed else None,
        "frontier.png": plot_frontier if report.get("frontier") else None,
        "drafters.png": plot_drafters if report.get("drafters") else None,
    }


def save_plot(fig, path):
    fig.tight_layout()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    fig.savefig(path, dpi=130)


def write_report(report, folder):
    """-> what it wrote: eval.json, plots, and at last (make demo looks for it) eval.txt."""
    write_json(os.path.join(folder, "eval.json"), report)
    # a file's name need not be text: with replacements it can be drawn and written
    report = json.loads(json.dumps(report, ensure_ascii=False).encode(errors="replace"))
    drawn = []
    for name, draw in plots_of(report).items():
        path = os.path.join(folder, name)
        if draw:
            save_plot(draw(report, pyplot()), path)
            drawn.append(name)
        elif os.path.exists(path):  # of an earlier run
            os.remove(path)
    atomic_write(os.path.join(folder, "eval.txt"), (tables(report) + "\n").encode())
    return ["eval.json", *drawn, "eval.txt"]
