"""
Every number and plot: how likely real text is under a model, and how good its own text is.
$ python eval.py config/eval_pydoc.py                                                                (1 minute)

nelbo   nats per token of validation text: exact for a GPT, an upper bound (MDLM) for a diffusion model
genppl  perplexity of a model's samples under a judge, an autoregressive model. Read it beside the entropy of the same
        samples: a low perplexity with an entropy below that of real text is repetition, not quality.
"""

import itertools
import json
import math
import os
import time

import torch
from tqdm import tqdm

import data
from configurator import UserError, check_range, choose, configure
from model import ar_loss, generator, load_model, nelbo, pick_device
from sample import draw_samples, prepare, start_token

# ----------------------------------------------------------------------------------------------------------------------
ckpt = "out/pydoc/ckpt.pt"  # one checkpoint, or several with commas between them
judge = ""  # an autoregressive checkpoint with the same vocabulary; needed for genppl (markov data: not needed)
what = "nelbo,genppl"  # any of nelbo, genppl
dataset = ""  # validation text; '': what the checkpoint was trained on
steps = [4, 8, 16, 32, 64, 128, 256]  # diffusion sampling steps, one row of the table each
sampler = "ancestral"  # see sample.py
num_samples = 64  # for genppl and entropy
length = 0  # tokens per sample; 0: the smallest context among model and judge
temperature = 1.0
top_k = 0
top_p = 1.0
eval_blocks = 512  # validation blocks at most, spread evenly over the text
draws = 4  # noise draws per block for nelbo
batch_size = 16
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu'
dtype = ""  # '' (bfloat16 where the hardware has it) | 'float32' | 'bfloat16'
attention = "sdpa"
out = "out/eval"  # folder for eval.json and eval.png
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


def draw_many(model, meta, cfg, n_steps, size):
    """-> (num_samples, size) int64 on the CPU, seconds per sample."""
    device = model.wte.weight.device
    template = torch.full((1, size), -1, device=device)
    if model.config.causal:
        template[0, 0] = start_token(meta)
    rows, began = [], time.perf_counter()
    for i in tqdm(range(0, cfg.num_samples, cfg.batch_size), desc=f"{n_steps} steps", leave=False):
        n = min(cfg.batch_size, cfg.num_samples - i)
        noise = generator(cfg.seed, "genppl", i, device=device)
        rows.append(draw_samples(model, template.expand(n, -1), cfg, n_steps, noise).cpu())
    return torch.cat(rows), (time.perf_counter() - began) / cfg.num_samples


def evaluate(cfg):
    """-> dict: everything eval.json holds. Reads all checkpoints before any work, so that mistakes show at once."""
    wanted = cfg.what.split(",")
    for w in wanted:
        choose("what", w, ("nelbo", "genppl"))
    if min(cfg.steps, default=0) < 1:
        raise UserError(f"steps is {cfg.steps}; sampling takes at least 1 step.")
    check_range(cfg, ("num_samples", "batch_size", "draws", "eval_blocks"), 1)
    if cfg.length == 1:
        raise UserError("length is 1, but the first token of a sample is not judged. Use at least 2.")
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    models = {path: prepare(path, cfg) for path in cfg.ckpt.split(",")}
    first = next(iter(models.values()))[1]
    meta, metas = first["meta"], {path: checkpoint["meta"] for path, (_, checkpoint, *_) in models.items()}
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
            raise UserError(
                f"{path} has another vocabulary than {cfg.ckpt.split(',')[0]}; their numbers do not compare."
            )
    sizes = [m[0].config.block_size for m in models.values()] + ([judge.config.block_size] if judge else [])
    size = cfg.length or min(sizes)
    report = {
        "hardware": note,
        "torch": torch.__version__,
        "seed": cfg.seed,
        "tokens_per_sample": size,
        "rows": [],
    }
    report |= {"num_samples": cfg.num_samples, "sampler": cfg.sampler, "likelihood": {}}

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
            for n_steps in [size] if model.config.causal else cfg.steps:
                with context:
                    x, seconds = draw_many(model, meta, cfg, n_steps, size)
                rows.append({"model": path, "steps": n_steps, "s_per_sample": seconds, "causal": model.config.causal})
                rows[-1] |= judged(x, judge, autocast, meta, cfg)
        x = data.blocks(corpus.val, size, cfg.num_samples)
        rows.append({"model": "real text", "steps": None} | judged(x, judge, autocast, meta, cfg))
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
    lines.append(f"\n{report['hardware']}, seed {report['seed']}, torch {report['torch']}")
    return "\n".join(lines)


def plot(report, path):
    """Quality and entropy against sampling steps, with real text as the line to reach."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
    axes[0].set_ylabel({"genppl": "generative perplexity", "true_ppl": "perplexity under the true language"}[quality])
    axes[1].set_ylabel("entropy of a sample (nats)")
    axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)


def main(cfg):
    report = evaluate(cfg)
    text = tables(report)
    print(text)
    os.makedirs(cfg.out, exist_ok=True)
    if report["rows"]:
        plot(report, os.path.join(cfg.out, "eval.png"))
    for name, content in (("eval.json", json.dumps(report, indent=1)), ("eval.txt", text + "\n")):
        with open(os.path.join(cfg.out, name), "w", encoding="utf-8") as f:
            f.write(content)
    print(f"Saved in {cfg.out}: eval.json, eval.txt{' and eval.png' * bool(report['rows'])}")


if __name__ == "__main__":
    main(cfg)
