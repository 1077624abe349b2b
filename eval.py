"""
Every number and plot: how likely real text is under a model, and how good its own text is.
$ python eval.py config/eval_pydoc.py                                                                (1 minute)

nelbo   nats per token of validation text: exact for a GPT, an upper bound (MDLM) for a diffusion model
genppl  perplexity of a model's samples under a judge, an autoregressive model. Read it beside the entropy of the same
        samples: a low perplexity with an entropy below that of real text is repetition, not quality.
latency seconds per sample: a diffusion model at each number of steps, a GPT with its KV cache, small and large batches
selfbleu    how alike a model's samples are (Texygen's self-BLEU with up to 4-grams): 1 is one text over and over
mauve   how close the samples' distribution is to real text (Pillutla et al. 2021), by features of the judge; 1 is best
lambada accuracy and perplexity of the last word of a passage that cannot be guessed from its sentence alone
acceptance  for a GPT and its drafters: how many of their tokens it accepts, and how much faster they make it

Zero-shot perplexity is nelbo with --dataset. Samples may be written beforehand, by sample.py --save on many GPUs.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import time
import types

import torch
import torch.distributed as dist

import data
from config.common import *
from config.sampling import *
from configurator import UserError, check_range, choose, configure
from drafters import load_drafter, load_model, load_to_sample
from metrics import (
    drafters_table,
    judge_features,
    judge_nats,
    lambada,
    likelihood,
    markov_nats,
    retokenized,
    rouge_2,
    sample_entropy,
    seconds_per_sample,
    self_bleu,
)
from plumbing.checkpoints import paths_of
from plumbing.hardware import pick_device
from plumbing.parallel import join_processes, rank_and_world
from plumbing.report import plot, plot_drafters, plot_latency, tables
from speculative import check_sampling, draw_many, empty_pages

# ----------------------------------------------------------------------------------------------------------------------
samples = ""  # files of sample.py --save, judged instead of what ckpt would write now
judge = ""  # an autoregressive checkpoint, also gpt2-large and the like; for genppl (but of markov data) and mauve
retokenize = False  # judge the text as the judge's own tokenizer cuts it; its vocabulary may be another then
what = "nelbo,genppl"  # any of nelbo, genppl, selfbleu, mauve, lambada, latency, acceptance
passages = "lambada"  # for lambada: a name under data/, or a folder that data/lambada/prepare.py wrote
steps = [4, 8, 16, 32, 64, 128, 256]  # diffusion sampling steps, one row of the table each
num_samples = 64  # for genppl and entropy
ar_top_p = [1.0]  # of autoregressive samples: one row of the table each
prompts = ""  # for acceptance: a prompts.jsonl of data/cnn_dailymail, also for ROUGE-2; '': from validation text
gamma = 4  # tokens drafted at a time where acceptance is counted; the speed is measured at each drafter's best
latency_batch = [1, 8]  # samples at a time when latency is measured
eval_blocks = 512  # validation blocks at most, spread evenly over the text
draws = 4  # noise draws per block for nelbo
out = "out/eval"  # folder for eval.json, eval.txt, eval.png and latency.png
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def load_passages(folder):
    """A folder that data/lambada/prepare.py wrote, or a name under data/ -> [(context ids, word ids), ...], meta."""
    folder, meta = data.load_meta(folder, "passages.jsonl")
    encode = data.encoder(meta)[0]
    try:
        with open(os.path.join(folder, "passages.jsonl"), encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        return [(encode(line["context"]), encode(line["word"])) for line in lines], meta
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/passages.jsonl is damaged ({str(error)[:80]}). Run data/lambada/prepare.py."
        ) from None


def load_prompts(cfg, meta):
    """-> (n, P) int64, the texts that should follow. Only prompts of the commonest length, num_samples at most."""
    try:
        with open(cfg.prompts, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        encode = data.encoder(meta)[0]
        rows = [(encode(line["prompt"]), line["reference"]) for line in lines]
        P = collections.Counter(len(ids) for ids, _ in rows).most_common(1)[0][0]
        rows = [row for row in rows if len(row[0]) == P][: cfg.num_samples]
        if len(rows) < 7:
            raise ValueError(f"only {len(rows)} of one length, {P} tokens; the intervals need 7")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{cfg.prompts} holds no prompts ({str(error)[:80]}). Make them with: python data/cnn_dailymail/prepare.py"
        ) from None
    if not importlib.util.find_spec("rouge_score"):
        raise UserError("ROUGE-2 needs a package that is missing. Install it with: pip install rouge-score")
    return torch.tensor([ids for ids, _ in rows]), [reference for _, reference in rows]


def wanted_parts(cfg):
    """-> the parts of `what`. Refuses bad values before any work."""
    wanted = [w.strip() for w in cfg.what.split(",")]
    for w in wanted:
        choose("what", w, ("nelbo", "genppl", "selfbleu", "mauve", "latency", "acceptance", "lambada"))
    for name in ("steps", "latency_batch"):
        if min(getattr(cfg, name), default=0) < 1:
            raise UserError(f"{name} is {getattr(cfg, name)}; it takes numbers from 1 up.")
    if not cfg.ar_top_p or not all(0 < p <= 1 for p in cfg.ar_top_p):
        raise UserError(f"ar_top_p is {cfg.ar_top_p}; it takes numbers above 0 and at most 1.")
    check_sampling(cfg)
    check_range(cfg, ("num_samples", "batch_size", "draws", "eval_blocks"), 1)
    if cfg.samples and (others := set(wanted) - {"genppl", "selfbleu", "mauve"}):
        raise UserError(
            f"what is {cfg.what!r}, but {min(others)} needs a model, not --samples. Leave it out: --what=genppl."
        )
    if cfg.length == 1:
        raise UserError("length is 1, but the first token of a sample is not judged. Use at least 2.")
    if "mauve" in wanted and not importlib.util.find_spec("mauve"):
        raise UserError("mauve needs a package that is missing. Install it with: pip install mauve-text")
    if "mauve" in wanted and cfg.retokenize:
        raise UserError("mauve compares tokens as they are: not with --retokenize=True.")
    if "mauve" in wanted and not cfg.judge:
        raise UserError("mauve takes its features from a judge: --judge=CKPT of an autoregressive model.")
    return wanted


def load_drafters(cfg, models, meta):
    """-> the target of an acceptance table, its drafters."""
    if not cfg.draft:
        raise UserError("acceptance needs drafters: --draft=CKPT,out/ngram/ngram.txt,lookup")
    target = next(iter(models.values()))[0]
    drafters = {path: load_drafter(path, target, meta, cfg) for path in paths_of(cfg.draft)}
    check_range(cfg, ("gamma",), 1)
    check_range(cfg, ("num_samples",), 7)  # for the intervals
    if len(models) > 1:
        raise UserError("acceptance is of one target: give one --ckpt, and its drafters as --draft.")
    length = cfg.length or target.config.block_size
    if length > target.config.block_size or length < 4 * cfg.gamma:
        raise UserError(f"length is {length}; from {4 * cfg.gamma} (4 gamma) to the target's context is possible.")
    return target, drafters


def load_judge(cfg, wanted, meta, device):
    """-> judge and its meta, or None and None."""
    if not cfg.judge:
        if "genppl" in wanted and "transition" not in meta:
            raise UserError(
                "genppl needs a judge: --judge=CKPT of an autoregressive model, or leave it out: --what=nelbo."
            )
        return None, None
    judge, checkpoint = load_model(cfg.judge, device, cfg.attention)
    if not judge.config.causal:
        raise UserError(f"The judge {cfg.judge} is a diffusion model; a judge must be autoregressive.")
    if not cfg.retokenize and not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(f"The judge {cfg.judge} has another vocabulary than the text. Use --retokenize=True.")
    return judge, checkpoint["meta"]


def load_samples(path):
    """-> (n, L) int64, what sample.py --save says of them. Raises UserError if the file is damaged."""
    try:
        with open(path, encoding="utf-8") as f:
            about, *lines = (json.loads(line) for line in f)
        x = torch.tensor([line["tokens"] for line in lines])
        if missing := {"ckpt", "steps", "causal", "prefix", "continuations", "top_p", "dataset", "meta"} - about.keys():
            raise ValueError(f"no {min(missing)}")
        if x.dim() != 2 or not 0 <= x.min() <= x.max() < about["meta"]["vocab_size"]:
            raise ValueError("tokens that are no samples of one length and vocabulary")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} holds no samples ({str(error)[:80]}). Write them with sample.py --save.") from None
    return x, about


def load_all(wanted, device, cfg):
    """-> what is read before any work, so that mistakes show at once: files, models, corpus, judge, passages, prompts,
    target, drafters, their common vocabulary (meta) and the size of a text.
    """
    its = types.SimpleNamespace(corpus=None, passages=None, prompts=None, target=None, drafters=None)
    its.files = {path: load_samples(path) for path in paths_of(cfg.samples)} if cfg.samples else {}
    its.models = {} if its.files else {path: load_to_sample(path, cfg) for path in paths_of(cfg.ckpt)}
    metas = {path: checkpoint["meta"] for path, (_, checkpoint, *_) in its.models.items()}
    metas |= {path: about["meta"] for path, (_, about) in its.files.items()}
    sources = [checkpoint["config"]["dataset"] for _, checkpoint, *_ in its.models.values()]
    sources += [about["dataset"] for _, about in its.files.values()]
    its.meta = next(iter(metas.values()))
    if "acceptance" in wanted:
        its.target, its.drafters = load_drafters(cfg, its.models, its.meta)
        its.prompts = load_prompts(cfg, its.meta) if cfg.prompts else None
    its.judge, its.judge_meta = load_judge(cfg, wanted, its.meta, device)
    if "lambada" in wanted:
        its.passages, metas["the passages"] = load_passages(cfg.passages)
    if set(wanted) & {"nelbo", "genppl", "selfbleu", "mauve"} or ("acceptance" in wanted and not cfg.prompts):
        its.corpus = data.load(cfg.dataset or sources[0])
        metas["the dataset"] = its.corpus.meta
    for path, other in metas.items():
        if not data.same_vocabulary(its.meta, other):
            raise UserError(f"{path}: another vocabulary than {next(iter(metas))}'s; their numbers do not compare.")
    lengths = {x.size(1) for x, _ in its.files.values()} | ({cfg.length} if cfg.length else set())
    if len(lengths) > 1 or len({(about["prefix"], about["continuations"]) for _, about in its.files.values()}) > 1:
        raise UserError(f"Texts of {sorted(lengths)} tokens, or with other prefixes, do not compare. Give one kind.")
    sizes = [m[0].config.block_size for m in its.models.values()]
    sizes += [its.judge.config.block_size] if its.judge else []
    its.size = min(lengths, default=min(sizes, default=0))
    return its


def evaluate(cfg):
    """-> dict: everything eval.json holds."""
    wanted = wanted_parts(cfg)
    device, note = join_processes(cfg)
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    its = load_all(wanted, device, cfg)
    report = {"hardware": note, "torch": torch.__version__, "seed": cfg.seed, "tokens_per_sample": its.size}
    report |= {"retokenize": cfg.retokenize} | ({} if its.files else {"sampler": cfg.sampler})
    report["processes"] = rank_and_world()[1]
    report["files"] = {p: {k: v for k, v in about.items() if k != "meta"} for p, (_, about) in its.files.items()}
    report |= {"likelihood": {}, "lambada": {}, "rows": [], "latency": [], "timed": {}, "drafters": []}
    if "nelbo" in wanted:
        report["likelihood"] = likelihood_of_all(its.models, its.corpus, its.meta, autocast, cfg)
    if "lambada" in wanted:
        for path, (model, *_) in its.models.items():
            with autocast:
                report["lambada"][path] = lambada(model, its.passages, cfg)
    if {"genppl", "selfbleu", "mauve"} & set(wanted):
        metas = its.meta, its.judge_meta
        judged = functools.partial(quality, judge=its.judge, metas=metas, wanted=wanted, cfg=cfg)
        report["rows"] = quality_of_all(its.models, its.files, its.corpus, judged, its.meta, its.size, autocast, cfg)
    if "latency" in wanted:
        report["latency"], report["timed"] = latency_of_all(its.models, its.meta, its.size, cfg)
    if "acceptance" in wanted:
        report |= acceptance_of_all(its, device, cfg)
    return report


def acceptance_of_all(its, device, cfg):
    """-> {"drafters": the rows of their table} and, where prompts have references, "rouge2"."""
    length, references = cfg.length or its.target.config.block_size, None
    if cfg.prompts:
        x, references = its.prompts
        if x.size(1) >= length:
            raise UserError(f"The prompts have {x.size(1)} tokens and leave no room in {length}. Use --length.")
    else:
        x = data.blocks(its.corpus.val, max(1, length // 8), cfg.num_samples)
    with next(iter(its.models.values()))[2]:
        found = {"drafters": drafters_table(its.target, its.drafters, x.to(device), length, cfg)}
        if references:
            rouge = rouge_2(its.target, its.drafters, x.to(device), length, references, its.meta, cfg)
            found["rouge2"] = rouge
    return found


def likelihood_of_all(models, corpus, meta, autocast, cfg):
    """-> {path: nats per token of validation text, and the same in other units}."""
    rows = {}
    for path, (model, *_) in models.items():
        x = data.blocks(corpus.val, model.config.block_size + model.config.causal, cfg.eval_blocks)
        with autocast:  # of one model: it keeps copies of the weights until it ends
            nats, error = likelihood(model, x, cfg)
        chars = len(data.encoder(corpus.meta)[1](x.flatten().tolist())) / x.numel()  # per token
        kind = "exact" if model.config.causal else "upper bound"
        rows[path] = {"kind": kind, "nats": nats, "error": error, "ppl": math.exp(nats), "tokens": x.numel()}
        rows[path]["bits_per_char"] = nats / math.log(2) / chars
        if "entropy_rate" in meta:  # of a diffusion block: the first token has nothing before it
            T, rate = model.config.block_size, meta["entropy_rate"]
            truth = rate if model.config.causal else (meta["stationary_entropy"] + (T - 1) * rate) / T
            rows[path]["truth"] = truth
    return rows


def quality_of_all(models, files, corpus, judged, meta, size, autocast, cfg):
    """-> a row for each file of samples, or each model and number of steps, and at the end one of real text."""
    rows, prefix = [], next(iter(files.values()))[1]["prefix"] if files else 0
    n_texts = max([len(x) // its["continuations"] for x, its in files.values()], default=cfg.num_samples)
    real = data.blocks(corpus.val, size, n_texts)  # with a prefix: the texts that were continued
    n = min([len(real), *(len(x) // its["continuations"] for x, its in files.values())])
    judged = functools.partial(judged, real=real, n=n)

    def label(path, top_p):
        return path if top_p == 1 else f"{path}, top_p {top_p:g}"

    for path, (x, its) in files.items():
        name = label(path, its["top_p"])
        rows.append({"model": name, "path": its["ckpt"], "steps": its["steps"], "causal": its["causal"]})
        with autocast:
            rows[-1] |= judged(x, prefix=prefix, continuations=its["continuations"])
    for path, (model, _, context, _) in models.items():
        causal, templates = model.config.causal, empty_pages(model, meta, cfg.num_samples, size)
        for n_steps, top_p in [(size, p) for p in cfg.ar_top_p] if causal else [(k, cfg.top_p) for k in cfg.steps]:
            began = time.perf_counter()
            with context:
                x = draw_many(model, templates, types.SimpleNamespace(**{**vars(cfg), "top_p": top_p}), n_steps)
            seconds = (time.perf_counter() - began) / cfg.num_samples
            name = label(path, top_p)
            rows.append({"model": name, "path": path, "steps": n_steps, "s_per_sample": seconds, "causal": causal})
            with autocast:
                rows[-1] |= judged(x)
    with autocast:
        rows.append({"model": "real text", "steps": None} | judged(real, prefix=prefix))
    return rows


def latency_of_all(models, meta, size, cfg):
    """-> seconds per sample of each model, batch and number of steps, {path: the path that was timed in its place}."""
    rows, timed = [], {}
    shapes = {}  # the rounds of a model are equally fast: one of them is measured
    for path, (model, _, context, _) in models.items():
        shape = dataclasses.astuple(dataclasses.replace(model.config, dropout=0.0))
        timed[path] = shapes.setdefault(shape, path)
        if timed[path] != path:
            continue
        for batch, n_steps in itertools.product(cfg.latency_batch, [size] if model.config.causal else cfg.steps):
            with context:
                seconds = seconds_per_sample(model, meta, cfg, n_steps, size, batch)
            row = {"model": path, "causal": model.config.causal, "batch": batch, "steps": n_steps}
            rows.append(row | {"s_per_sample": seconds})
    return rows, timed


def quality(x, real, judge, metas, wanted, cfg, prefix=0, continuations=1, n=None):
    """(N, L) int64 -> its row of the table: entropy, and what is wanted of genppl, true_ppl, self_bleu and mauve.

    After the `prefix`, which is real text, every token counts but the first of all and, as in MDLM's code, each
    end-of-text after the first of the sample, which may be its first token: a model may not win by writing nothing.
    retokenize: what counts is the text, as the judge's tokenizer cuts it. Self-BLEU grows with the number of texts: it
    is of n of them (None: all), one of a prefix, evenly chosen, the same n in every row of a table.
    """
    meta, judge_meta = metas
    row = {"texts": len(x), "entropy": sample_entropy(x[:, prefix:])}
    y, counted = x, torch.arange(x.size(1)).expand_as(x) >= max(prefix, 1)
    if judge and cfg.retokenize:
        y, counted = retokenized(x, prefix, data.encoder(meta)[1], data.encoder(judge_meta)[0])
    if judge and "eot" in judge_meta:
        end = y == judge_meta["eot"]
        counted = counted & ~(end & (end.cumsum(1) > 1))
    if judge and "genppl" in wanted:
        row["genppl"] = math.exp(judge_nats(judge, y, counted, cfg.batch_size))
    if "transition" in meta and "genppl" in wanted:
        row["true_ppl"] = math.exp(markov_nats(x, meta))
    if "selfbleu" in wanted:
        one_each = x[::continuations, prefix:]
        chosen = torch.linspace(0, len(one_each) - 1, n or len(one_each)).long()
        row["self_bleu"] = self_bleu(one_each[chosen].tolist())
    if "mauve" in wanted and x is not real:
        features = [judge_features(judge, part, cfg.batch_size) for part in (real, x)]
        import mauve

        out = mauve.compute_mauve(p_features=features[0], q_features=features[1], seed=cfg.seed, verbose=False)
        row["mauve"] = float(out.mauve)
    return row


def main(cfg):
    report = evaluate(cfg)
    text = tables(report)
    if dist.is_initialized():
        rank = dist.get_rank()
        dist.destroy_process_group()
        if rank:
            return
    print(text)
    for name in ("eval.png", "latency.png", "drafters.png"):  # of an earlier run, beside tables that are new
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(cfg.out, name))
    data.atomic_write(os.path.join(cfg.out, "eval.json"), json.dumps(report, indent=1).encode())
    written = ["eval.json"]
    if report["rows"] and ("genppl" in report["rows"][0] or "true_ppl" in report["rows"][0]):
        plot(report, os.path.join(cfg.out, "eval.png"))
        written.append("eval.png")
        if report["latency"]:
            plot_latency(report, os.path.join(cfg.out, "latency.png"))
            written.append("latency.png")
    if report["drafters"]:
        plot_drafters(report, os.path.join(cfg.out, "drafters.png"))
        written.append("drafters.png")
    data.atomic_write(os.path.join(cfg.out, "eval.txt"), (text + "\n").encode())  # the last: make demo looks for it
    print(f"Saved in {cfg.out}: {', '.join([*written, 'eval.txt'])}")


if __name__ == "__main__":
    main(cfg)
