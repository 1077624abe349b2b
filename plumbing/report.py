"""
Tables and plots of what eval.py measured.
"""

import itertools


def short(drafter):
    """out/drafters/lstm/ckpt.pt -> out/drafters/lstm"""
    return drafter.removesuffix("/ckpt.pt").removesuffix("/ngram.txt")


def drafter_lines(rows):
    """What metrics.drafters_table measured -> the lines of its table."""
    names = ("drafter", "alpha", "+-", "counted", "by place", "tokens/call", "gamma", "c", "call")
    names += ("predicted", "measured")
    wide = max(len("drafter"), *(len(short(r["drafter"])) for r in rows))
    widths = f"\n{{:{wide}s}}" + " {:>6s} {:>5s} {:>7s} {:>24s} {:>11s} {:>5s} {:>6s} {:>5s} {:>9s} {:>14s}"
    lines = [widths.format(*names)]
    for r in rows:
        places = " ".join("-" if a is None else f"{a:.2f}" for a in r["counted_at"])
        lines.append(
            f"{short(r['drafter']):{wide}s} {r['alpha']:6.3f} {r['alpha_error']:5.3f} {r['counted']:7.3f} "
            f"{places:>24s} {r['tokens_per_call']:11.2f} {r['gamma']:5d} {r['c']:6.3f} "
            f"{r['call']:5.2f} {r['predicted']:9.2f} {r['speedup']:7.2f} +- {r['speedup_error']:.2f}"
        )
    return lines


def tables(report):
    """-> the text that is printed and saved as eval.txt."""
    lines = []
    for path, r in report["likelihood"].items():
        bound = "<=" if r["kind"] == "upper bound" else " ="
        lines.append(
            f"{path}: validation {bound} {r['nats']:.4f}"
            + (" nats per token, " if r["error"] is None else f" +- {r['error']:.4f} nats per token, ")
            + f"perplexity {r['ppl']:.2f}, {r['bits_per_char']:.3f} bits per character"
            + (f"; the true entropy is {r['truth']:.4f}" if "truth" in r else "")
        )
    for path, r in report["lambada"].items():
        mc = f" (Monte Carlo {r['ppl_monte_carlo']:.2f})" if "ppl_monte_carlo" in r else ""
        lines.append(
            f"{path}: LAMBADA accuracy {r['accuracy']:.1%} of {r['passages']} words, perplexity {r['ppl']:.2f}{mc} per "
            f"word, of {r['words_in_ppl']} words"
        )
    if report["rows"]:
        columns = ("genppl", "true_ppl", "entropy", "self_bleu", "mauve", "s_per_sample")
        keys = [k for k in columns if any(k in r for r in report["rows"])]
        wide = max(len(r["model"]) for r in report["rows"])
        lines.append(f"\n{'model':{wide}s} {'steps':>5s} {'texts':>6s} " + " ".join(f"{k:>12s}" for k in keys))
        for r in report["rows"]:
            numbers = " ".join(f"{r[k]:12.3f}" if k in r else " " * 12 for k in keys)
            lines.append(f"{r['model']:{wide}s} {r['steps'] or '':>5} {r['texts']:6d} {numbers}".rstrip())
    if report["latency"]:
        wide = max(len("seconds per sample"), *(len(r["model"]) for r in report["latency"]))
        lines.append(f"\n{'seconds per sample':{wide}s} {'steps':>5s} {'batch':>6s}")
        for r in report["latency"]:
            lines.append(f"{r['model']:{wide}s} {r['steps']:5d} {r['batch']:6d} {r['s_per_sample']:12.4f}")
    lines += drafter_lines(report["drafters"]) if report["drafters"] else []
    for path, (mean, error) in report.get("rouge2", {}).items():
        lines.append(f"{short(path)}: ROUGE-2 {mean:.3f} +- {error:.3f}")
    lines.append(f"\n{report['hardware']}, seed {report['seed']}, torch {report['torch']}")
    return "\n".join(lines)


QUALITY = {"genppl": "generative perplexity", "true_ppl": "perplexity under the true language"}


def pyplot():
    """-> matplotlib.pyplot that draws into files; imported only by a run that plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot(report, path):
    """Quality and entropy against sampling steps, a line a model, with real text as the line to reach."""
    plt = pyplot()
    quality = "genppl" if "genppl" in report["rows"][0] else "true_ppl"
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for ax, key in zip(axes, (quality, "entropy"), strict=True):
        diffusion = [r for r in report["rows"] if r["steps"] and not r["causal"]]
        for model in dict.fromkeys(r["model"] for r in diffusion):
            line = [(r["steps"], r[key]) for r in diffusion if r["model"] == model]
            ax.plot(*zip(*line, strict=True), "o-", label=model)
        flat = [r for r in report["rows"] if not r["steps"] or r["causal"]]
        for r, style in zip(flat, itertools.cycle(("--", ":", "-.")), strict=False):
            ax.axhline(r[key], linestyle=style, color="gray" if r["steps"] else "black", label=r["model"])
        ax.set_xscale("log", base=2)
        ax.set_xlabel("sampling steps")
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    for ax in axes:
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel(QUALITY[quality])
    axes[1].set_ylabel("entropy of a sample (nats)")
    axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)


def plot_latency(report, path):
    """Quality against seconds per sample, a panel a batch size: a line a diffusion model, a star a GPT."""
    plt = pyplot()
    quality = "genppl" if "genppl" in report["rows"][0] else "true_ppl"
    batches = list(dict.fromkeys(r["batch"] for r in report["latency"]))
    fig, axes = plt.subplots(1, len(batches), figsize=(5.5 * len(batches), 4.2), squeeze=False, sharey=True)
    for ax, batch in zip(axes[0], batches, strict=True):
        seconds = {(r["model"], r["steps"]): r["s_per_sample"] for r in report["latency"] if r["batch"] == batch}
        for model in dict.fromkeys(r["model"] for r in report["rows"] if r["steps"]):
            rows = [r for r in report["rows"] if r["model"] == model]
            line = [(seconds[report["timed"][r["path"]], r["steps"]], r[quality]) for r in rows]
            ax.plot(*zip(*line, strict=True), "*" if rows[0]["causal"] else "o-", label=model)
        ax.axhline(report["rows"][-1][quality], linestyle="--", color="black", label="real text")
        ax.set(xscale="log", yscale="log", xlabel=f"seconds per sample, batch of {batch}")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel(QUALITY[quality])
    axes[0, 0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)


def plot_drafters(report, path):
    """A bar a drafter: its acceptance rate, and the measured speed."""
    plt = pyplot()
    rows = report["drafters"]
    names = [short(r["drafter"]) for r in rows]
    fig, axes = plt.subplots(1, 2, figsize=(11, 0.5 * len(rows) + 1.4), sharey=True)
    for ax, key, label in zip(axes, ("alpha", "speedup"), ("acceptance rate alpha", "measured speed-up"), strict=True):
        ax.barh(names, [r[key] for r in rows], xerr=[r[f"{key}_error"] for r in rows], color="tab:blue", height=0.6)
        ax.set_xlabel(f"{label}, 95 % intervals")
        ax.grid(alpha=0.3, axis="x")
    axes[0].set_xlim(0, 1)
    axes[0].invert_yaxis()
    axes[1].axvline(1, color="black", linestyle="--")
    fig.tight_layout()
    fig.savefig(path, dpi=130)
