"""
Every number and plot: how likely real text is under a model, and how good its own text is.
$ python eval.py config/eval_pydoc.py                                                                (1 minute)

nelbo   nats per token of validation text: exact for a GPT, an upper bound (MDLM) for a diffusion model
genppl  perplexity of a model's samples under a judge, an autoregressive model. Read it beside the entropy of the same
        samples: a low perplexity with an entropy below that of real text is repetition, not quality.
latency seconds per sample: a diffusion model at each number of steps, a GPT with its KV cache, small and large batches
acceptance  for a GPT and its drafters: how many of their tokens it accepts, and how much faster they make it
"""

import dataclasses
import itertools
import json
import math
import os
import time
import types

import torch
from tqdm import tqdm

import data
from configurator import UserError, check_range, choose, configure
from model import (
    Diffusion,
    Lookup,
    acceptance,
    ar_loss,
    best_gamma,
    generator,
    load_model,
    nelbo,
    pick_device,
    predicted_speedup,
    probabilities,
    propose,
    speculate,
    tokens_per_call,
)
from sample import check_sampling, draw_samples, paths_of, prepare, prepare_drafter, start_token

# ----------------------------------------------------------------------------------------------------------------------
ckpt = "out/pydoc/ckpt.pt"  # one checkpoint, or several with commas between them; out/sdtt/round_*.pt is every round
judge = ""  # an autoregressive checkpoint with the same vocabulary; needed for genppl (markov data: not needed)
what = "nelbo,genppl"  # any of nelbo, genppl, latency, acceptance
dataset = ""  # validation text; '': what the checkpoint was trained on
steps = [4, 8, 16, 32, 64, 128, 256]  # diffusion sampling steps, one row of the table each
sampler = "ancestral"  # see sample.py
num_samples = 64  # for genppl and entropy
length = 0  # tokens per sample; 0: the smallest context among model and judge
temperature = 1.0
top_k = 0
top_p = 1.0  # of diffusion samples, and where acceptance is measured
ar_top_p = [1.0]  # of autoregressive samples: one row of the table each
draft = ""  # for acceptance: drafters of ckpt, with commas between them; see sample.py
gamma = 4  # tokens drafted at a time where acceptance is counted; the speed is measured at each drafter's best
draft_steps = 1  # of a diffusion drafter
latency_batch = [1, 8]  # samples at a time when latency is measured
eval_blocks = 512  # validation blocks at most, spread evenly over the text
draws = 4  # noise draws per block for nelbo
batch_size = 16
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu'
dtype = ""  # '' (bfloat16 where the hardware has it) | 'float32' | 'bfloat16'
attention = "sdpa"
out = "out/eval"  # folder for eval.json, eval.txt, eval.png and latency.png
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def likelihood(model, x, cfg):
    """(n, T + 1 if causal else T) int64 -> nats per token and its standard error over batches.

    A causal model sees each block from its own beginning; the first of the T + 1 tokens is context only.
    """
    device = model.wte.weight.device
    noise = generator(cfg.seed, "nelbo", device=device)
    ar = model.config.causal
    batches = [b for _ in range(1 if ar else cfg.draws) for b in x.to(device).split(cfg.batch_size)]
    bar = tqdm(batches, desc="likelihood", leave=False)
    values = torch.tensor([ar_loss(model, b) if ar else nelbo(model, b, noise) for b in bar])
    weights = torch.tensor([float(len(b)) for b in x.split(cfg.batch_size)])
    values = values.view(-1, len(weights)).mean(0)  # over the draws: only other text is independent
    mean = (values * weights).sum() / weights.sum()
    error = ((values - mean).square() * weights).sum() / weights.sum() / max(len(weights) - 1, 1)
    return mean.item(), error.sqrt().item()


@torch.no_grad()
def judge_nats(judge, x, batch_size):
    """(n, L) int64 -> nats per token under the judge: all tokens but the first, in windows of the judge's context."""
    size, device = judge.config.block_size, judge.wte.weight.device
    total, count = 0.0, 0
    for b in x.split(batch_size):
        for start in range(0, x.size(1) - 1, size):
            window = b[:, start : start + size + 1].to(device)
            n = window[:, 1:].numel()
            total, count = total + ar_loss(judge, window).item() * n, count + n
    return total / count


def sample_entropy(x):
    """(n, L) int64 -> mean over samples of the entropy, in nats, of the token frequencies within a sample."""
    entropies = []
    for row in x:
        p = row.unique(return_counts=True)[1] / row.numel()
        entropies.append(-(p * p.log()).sum())
    return torch.stack(entropies).mean().item()


def markov_nats(x, meta):
    """(n, L) int64 -> exact nats per token, given the first, under the true language of data/markov."""
    P = torch.tensor(meta["transition"], dtype=torch.float64)
    return -P[x[:, :-1], x[:, 1:]].log().mean().item()


def empty_page(model, meta, size):
    """-> (1, size) int64 of -1, blanks; an autoregressive model gets its start token."""
    template = torch.full((1, size), -1, device=model.wte.weight.device)
    if model.config.causal:
        template[0, 0] = start_token(meta)
    return template


def draw_many(model, meta, cfg, n_steps, size):
    """-> (num_samples, size) int64 on the CPU, seconds per sample."""
    template, device = empty_page(model, meta, size), model.wte.weight.device
    rows, began = [], time.perf_counter()
    for i in tqdm(range(0, cfg.num_samples, cfg.batch_size), desc=f"{n_steps} steps", leave=False):
        n = min(cfg.batch_size, cfg.num_samples - i)
        noise = generator(cfg.seed, "genppl", i, device=device)
        rows.append(draw_samples(model, template.expand(n, -1), cfg, n_steps, noise).cpu())
    return torch.cat(rows), (time.perf_counter() - began) / cfg.num_samples


def seconds_per_sample(model, meta, cfg, n_steps, size, batch, repeats=3):
    """-> the median over repeats of the seconds that `batch` samples of `size` tokens take at once, over batch."""
    template, times = empty_page(model, meta, size).expand(batch, -1), []
    for i in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        draw_samples(model, template, cfg, n_steps, generator(cfg.seed, i, device=template.device)).cpu()
        times.append((time.perf_counter() - began) / batch)
    return sorted(times[1:])[repeats // 2]


@torch.no_grad()
def overlap(target, drafter, text, prompt, cfg):
    """(n, L) int64 written by the target after `prompt` tokens -> (n) mean over its tokens of sum_x min(p, q).

    The chance that a draft is accepted, without the noise of drawing it. For diffusion and lookup: at 16 places.
    """
    if len(text) > cfg.batch_size:
        return torch.cat([overlap(target, drafter, part, prompt, cfg) for part in text.split(cfg.batch_size)])
    settings, size = (cfg.temperature, cfg.top_k, cfg.top_p), text.size(1)
    p = probabilities(target(text[:, :-1]), *settings)  # (n, L - 1, V), of token i + 1
    if isinstance(drafter, (Diffusion, Lookup)):
        noise, q = generator(cfg.seed, "overlap", device=text.device), []
        places = torch.linspace(prompt, size - cfg.gamma, 16).long().unique()
        for n in places.to(text.device)[:, None].expand(-1, len(text)):
            q.append(propose(drafter, None, text.clone(), n, cfg.gamma, settings, noise)[1][:, 0])
        p, q = p[:, places - 1], torch.stack(q, 1)
    else:
        p, q = p[:, prompt - 1 :], probabilities(drafter(text[:, :-1]), *settings)[:, prompt - 1 :]
    return torch.minimum(p, q).sum(-1).mean(1)


def mean_and_error(values):
    """(n) -> mean, half the width of its 95 % confidence interval by Student's t."""
    t = 2.36 if len(values) == 8 else 1.96 + 2.5 / (len(values) - 1)  # the quantile, to 2 % for n > 6
    return values.mean().item(), t * (values.std() / len(values) ** 0.5).item()


def drafters_table(target, drafters, prompts, size, cfg):
    """(n, P) int64 prompts -> a dict a drafter: acceptance on n texts of `size` tokens, speed one text at a time."""
    settings, n_new = (cfg.temperature, cfg.top_k, cfg.top_p), size - prompts.size(1)
    device, rows = prompts.device, []
    text = target.generate(prompts, n_new, *settings, generator(cfg.seed, "target", device=device))
    for path, drafter in tqdm(drafters.items(), desc="drafters", leave=False):
        row = {"drafter": path}
        row["alpha"], row["alpha_error"] = mean_and_error(overlap(target, drafter, text, prompts.size(1), cfg))
        noise = generator(cfg.seed, "speculate", device=device)
        _, counts = speculate(target, drafter, prompts, n_new, cfg.gamma, *settings, noise)
        row["counted"], _ = acceptance(counts)
        row["counted_at"] = [a / t if t else None for a, t in zip(counts.accepted, counts.tested, strict=True)]
        row["tokens_per_call"] = tokens_per_call(counts)
        for _ in range(2):  # the first one warms up
            _, one_text = speculate(target, drafter, prompts[:1], n_new, cfg.gamma, *settings, noise)
        row["c"] = acceptance(one_text)[1]
        if isinstance(drafter, Diffusion):  # one call drafts all, the later ones worse: by place, up to cfg.gamma
            speeds = [
                tokens_per_call(types.SimpleNamespace(accepted=counts.accepted[:g], tested=counts.tested[:g]))
                / (1 + row["c"] * cfg.gamma)
                for g in range(1, cfg.gamma + 1)
            ]
            row["predicted"], row["gamma"] = max(speeds), speeds.index(max(speeds)) + 1
        else:
            row["gamma"] = best_gamma(row["alpha"], row["c"])
            row["predicted"] = predicted_speedup(row["alpha"], row["c"], row["gamma"])
        speculate(target, drafter, prompts[:1], n_new, row["gamma"], *settings, noise)  # warms up
        ratios = []
        for i, one in enumerate(prompts[:8].split(1)):  # the same prompt with and without, one after the other
            began = time.perf_counter()
            target.generate(one, n_new, *settings, generator(cfg.seed, i, device=device)).cpu()
            plain = time.perf_counter()
            speculate(target, drafter, one, n_new, row["gamma"], *settings, generator(cfg.seed, i, device=device))
            ratios.append((plain - began) / (time.perf_counter() - plain))
        row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(ratios))
        rows.append(row)
    return rows


def evaluate(cfg):
    """-> dict: everything eval.json holds. Reads all checkpoints before any work, so that mistakes show at once."""
    wanted = cfg.what.split(",")
    for w in wanted:
        choose("what", w, ("nelbo", "genppl", "latency", "acceptance"))
    for name in ("steps", "latency_batch"):
        if min(getattr(cfg, name), default=0) < 1:
            raise UserError(f"{name} is {getattr(cfg, name)}; it takes numbers from 1 up.")
    if not cfg.ar_top_p or not all(0 < p <= 1 for p in cfg.ar_top_p):
        raise UserError(f"ar_top_p is {cfg.ar_top_p}; it takes numbers above 0 and at most 1.")
    check_sampling(cfg)
    check_range(cfg, ("num_samples", "batch_size", "draws", "eval_blocks"), 1)
    if cfg.length == 1:
        raise UserError("length is 1, but the first token of a sample is not judged. Use at least 2.")
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    models = {path: prepare(path, cfg) for path in paths_of(cfg.ckpt)}
    first = next(iter(models.values()))[1]
    meta, metas = first["meta"], {path: checkpoint["meta"] for path, (_, checkpoint, *_) in models.items()}
    if "acceptance" in wanted:
        target = next(iter(models.values()))[0]
        if not cfg.draft:
            raise UserError("acceptance needs drafters: --draft=CKPT,out/ngram/ngram.txt,lookup")
        drafters = {path: prepare_drafter(path, target, meta, cfg) for path in paths_of(cfg.draft)}
        check_range(cfg, ("gamma",), 1)
        check_range(cfg, ("num_samples",), 7)  # for the intervals
        if len(models) > 1:
            raise UserError("acceptance is of one target: give one --ckpt, and its drafters as --draft.")
        drafted = cfg.length or target.config.block_size
        if drafted > target.config.block_size or drafted < 4 * cfg.gamma:
            raise UserError(f"length is {drafted}; from {4 * cfg.gamma} (4 gamma) to the target's context is possible.")
    judge = None
    if cfg.judge:
        judge, checkpoint = load_model(cfg.judge, device, cfg.attention)
        metas[cfg.judge] = checkpoint["meta"]
        if not judge.config.causal:
            raise UserError(f"The judge {cfg.judge} is a diffusion model; a judge must be autoregressive.")
    elif "genppl" in wanted and "transition" not in meta:
        raise UserError("genppl needs a judge: --judge=CKPT of an autoregressive model, or leave it out: --what=nelbo.")
    corpus = data.load(cfg.dataset or first["config"]["dataset"])
    for path, other in {**metas, "the dataset": corpus.meta}.items():
        if not data.same_vocabulary(meta, other):
            raise UserError(f"{path} has another vocabulary than {next(iter(models))}; their numbers do not compare.")
    sizes = [m[0].config.block_size for m in models.values()] + ([judge.config.block_size] if judge else [])
    size = cfg.length or min(sizes)
    report = {
        "hardware": note,
        "torch": torch.__version__,
        "seed": cfg.seed,
        "tokens_per_sample": size,
        "rows": [],
    }
    report |= {
        "num_samples": cfg.num_samples,
        "sampler": cfg.sampler,
        "likelihood": {},
        "latency": [],
        "timed": {},
        "drafters": [],
    }

    if "nelbo" in wanted:
        for path, (model, *_) in models.items():
            x = data.blocks(corpus.val, model.config.block_size + model.config.causal, cfg.eval_blocks)
            with autocast:
                nats, error = likelihood(model, x, cfg)
            chars = len(data.encoder(corpus.meta)[1](x.flatten().tolist())) / x.numel()  # per token
            kind = "exact" if model.config.causal else "upper bound"
            row = {"kind": kind, "nats": nats, "error": error, "ppl": math.exp(nats), "tokens": x.numel()}
            row["bits_per_char"] = nats / math.log(2) / chars
            if "entropy_rate" in meta:  # of a diffusion block: the first token has nothing before it
                T, rate = model.config.block_size, meta["entropy_rate"]
                row["truth"] = rate if model.config.causal else (meta["stationary_entropy"] + (T - 1) * rate) / T
            report["likelihood"][path] = row
    if "genppl" in wanted:
        rows = report["rows"]
        for path, (model, _, context, _) in models.items():
            causal = model.config.causal
            for n_steps, top_p in [(size, p) for p in cfg.ar_top_p] if causal else [(k, cfg.top_p) for k in cfg.steps]:
                with context:
                    settings = types.SimpleNamespace(**{**vars(cfg), "top_p": top_p})
                    x, seconds = draw_many(model, meta, settings, n_steps, size)
                label = path if top_p == 1 else f"{path}, top_p {top_p:g}"
                rows.append({"model": label, "path": path, "steps": n_steps, "s_per_sample": seconds, "causal": causal})
                rows[-1] |= judged(x, judge, autocast, meta, cfg)
        x = data.blocks(corpus.val, size, cfg.num_samples)
        rows.append({"model": "real text", "steps": None} | judged(x, judge, autocast, meta, cfg))
    if "latency" in wanted:
        timed = {}  # the rounds of a model are equally fast: one of them is measured
        for path, (model, _, context, _) in models.items():
            shape = dataclasses.astuple(dataclasses.replace(model.config, dropout=0.0))
            report["timed"][path] = timed.setdefault(shape, path)
            if timed[shape] != path:
                continue
            for batch, n_steps in itertools.product(cfg.latency_batch, [size] if model.config.causal else cfg.steps):
                with context:
                    seconds = seconds_per_sample(model, meta, cfg, n_steps, size, batch)
                row = {"model": path, "causal": model.config.causal, "batch": batch, "steps": n_steps}
                report["latency"].append(row | {"s_per_sample": seconds})
    if "acceptance" in wanted:
        size = cfg.length or target.config.block_size
        prompts = data.blocks(corpus.val, max(1, size // 8), cfg.num_samples).to(target.wte.weight.device)
        with next(iter(models.values()))[2]:
            report["drafters"] = drafters_table(target, drafters, prompts, size, cfg)
    return report


def judged(x, judge, autocast, meta, cfg):
    """(n, L) int64 -> {"entropy", "genppl" by the judge, "true_ppl" by the true language where it is known}."""
    row = {"entropy": sample_entropy(x)}
    if judge:
        with autocast:
            row["genppl"] = math.exp(judge_nats(judge, x, cfg.batch_size))
    if "transition" in meta:
        row["true_ppl"] = math.exp(markov_nats(x, meta))
    return row


def tables(report):
    """-> the text that is printed and saved as eval.txt."""
    lines = []
    for path, r in report["likelihood"].items():
        bound = "<=" if r["kind"] == "upper bound" else " ="
        lines.append(
            f"{path}: validation {bound} {r['nats']:.4f} +- {r['error']:.4f} nats per token, "
            f"perplexity {r['ppl']:.2f}, {r['bits_per_char']:.3f} bits per character"
            + (f"; the true entropy is {r['truth']:.4f}" if "truth" in r else "")
        )
    if report["rows"]:
        keys = [k for k in ("genppl", "true_ppl", "entropy", "s_per_sample") if any(k in r for r in report["rows"])]
        lines.append(f"\n{'model':34s} {'steps':>5s} " + " ".join(f"{k:>12s}" for k in keys))
        for r in report["rows"]:
            numbers = " ".join(f"{r[k]:12.3f}" if k in r else " " * 12 for k in keys)
            lines.append(f"{r['model'][-34:]:34s} {r['steps'] or '':>5} {numbers}")
    if report["latency"]:
        lines.append(f"\n{'seconds per sample':34s} {'steps':>5s} {'batch':>6s}")
        for r in report["latency"]:
            lines.append(f"{r['model'][-34:]:34s} {r['steps']:5d} {r['batch']:6d} {r['s_per_sample']:12.4f}")
    if report["drafters"]:
        names = ("drafter", "alpha", "+-", "counted", "by place", "tokens/call", "c", "gamma", "predicted", "measured")
        lines.append("\n{:34s} {:>6s} {:>5s} {:>7s} {:>24s} {:>11s} {:>6s} {:>5s} {:>9s} {:>14s}".format(*names))
        for r in report["drafters"]:
            places = " ".join("-" if a is None else f"{a:.2f}" for a in r["counted_at"])
            lines.append(
                f"{r['drafter'][-34:]:34s} {r['alpha']:6.3f} {r['alpha_error']:5.3f} {r['counted']:7.3f} {places:>24s} "
                f"{r['tokens_per_call']:11.2f} {r['c']:6.3f} {r['gamma']:5d} {r['predicted']:9.2f} "
                f"{r['speedup']:7.2f} +- {r['speedup_error']:.2f}"
            )
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
    names = [r["drafter"].removesuffix("/ckpt.pt").removesuffix("/ngram.txt") for r in rows]
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


def main(cfg):
    report = evaluate(cfg)
    text = tables(report)
    print(text)
    written = {"eval.json": json.dumps(report, indent=1), "eval.txt": text + "\n"}
    for name, content in written.items():
        data.atomic_write(os.path.join(cfg.out, name), content.encode())
    if report["rows"]:
        plot(report, os.path.join(cfg.out, "eval.png"))
        written["eval.png"] = None
        if report["latency"]:
            plot_latency(report, os.path.join(cfg.out, "latency.png"))
            written["latency.png"] = None
    if report["drafters"]:
        plot_drafters(report, os.path.join(cfg.out, "drafters.png"))
        written["drafters.png"] = None
    print(f"Saved in {cfg.out}: {', '.join(written)}")


if __name__ == "__main__":
    main(cfg)
