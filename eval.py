"""
Every number and plot: how likely real text is under a model, and how good its own text is.
$ python eval.py config/eval_pydoc.py                                                                (2 minutes)

nelbo   nats per token of validation text: exact for a GPT, an upper bound (MDLM) for a diffusion model
genppl  perplexity of a model's samples under a judge, an autoregressive model. Read it beside the entropy of the same
        samples: a low perplexity with an entropy below that of real text is repetition, not quality.
frontier  genppl and entropy of every model at every number of steps and temperature, and how much better the others are
        than the first, the teacher, at equal steps and equal entropy
latency seconds per sample: a diffusion model at each number of steps, a GPT with its KV cache, small and large batches
selfbleu    how alike a model's samples are (Texygen's self-BLEU with up to 4-grams): 1 is one text over and over
mauve   how close the samples' distribution is to real text (Pillutla et al. 2021), by features of the judge; 1 is best
lambada accuracy and perplexity of the last word of a passage that cannot be guessed from its sentence alone
loss    a plot of the loss against steps, from the log.jsonl beside each checkpoint
acceptance  for a GPT and its drafters: how many of their tokens it accepts, and how much faster they make it

Zero-shot perplexity is nelbo with --dataset. Samples may be written beforehand, by sample.py --save on many GPUs.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import time
import types

import torch
from config.common import *
from config.sampling import *

import data
import metrics
from configurator import UserError, check, choose, configure
from drafters import load_drafter, load_model, load_to_sample
from plumbing.checkpoints import paths_of
from plumbing.hardware import pick_device
from plumbing.parallel import join_processes, leave_processes, rank_and_world
from plumbing.report import tables, write_report
from plumbing.runs import read_log
from plumbing.scores import characters, judge_features, mauve_score, self_bleu
from speculative import draw_many, empty_pages, settled

# ----------------------------------------------------------------------------------------------------------------------
samples = ""  # files of sample.py --save, judged instead of what ckpt would write now
judge = ""  # an autoregressive checkpoint, also gpt2-large or hf:NAME; for genppl (but of markov data) and mauve
retokenize = False  # for a judge of another vocabulary: it reads the text; per token of the model, and per character
what = "nelbo,genppl"  # any of nelbo, genppl, selfbleu, mauve, lambada, latency, acceptance, loss, frontier
passages = (
    "lambada"  # for lambada: a name under data/, or a folder that data/lambada/prepare.py wrote
)
steps = [
    4,
    8,
    16,
    32,
    64,
    128,
    256,
]  # diffusion sampling steps, one row of the table each, at least 1
temperatures = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]  # for frontier, at least 0
num_samples = 64  # for genppl and entropy, at least 1
ar_top_p = [1.0]  # of autoregressive samples: one row of the table each, from 1e-6 to 1
prompts = ""  # for acceptance: a prompts.jsonl of data/cnn_dailymail, also for ROUGE-2; '': from validation text
gamma = 4  # tokens drafted at a time where acceptance is counted; speed is at each drafter's best, from 1 to 64
latency_batch = [1, 8]  # samples at a time when latency is measured, at least 1
eval_blocks = 512  # validation blocks at most, spread evenly over the text, at least 1
draws = 4  # noise draws per block for nelbo, at least 1
out = "out/eval"  # folder for eval.json, eval.txt, eval.png and latency.png
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def wanted_parts(cfg):
    """-> the parts of `what`. Refuses bad values before any work."""
    check(cfg, __file__)
    wanted = [w.strip() for w in cfg.what.split(",")]
    parts = (
        "nelbo",
        "genppl",
        "selfbleu",
        "mauve",
        "latency",
        "acceptance",
        "lambada",
        "loss",
        "frontier",
    )
    for w in wanted:
        choose("what", w, parts)
    if cfg.samples and (others := set(wanted) - {"genppl", "selfbleu", "mauve"}):
        raise UserError(f"{min(others)} needs a model, not --samples. Leave it out: --what=genppl.")
    if "frontier" in wanted and (len(cfg.temperatures) < 2 or 0 < cfg.length < 4):
        raise UserError(
            "A frontier takes at least two --temperatures, and texts of at least 4 tokens."
        )
    if cfg.length == 1:
        raise UserError(
            "length is 1, but the first token of a sample is not judged. Use at least 2."
        )
    if "acceptance" in wanted and cfg.prompts and not importlib.util.find_spec("rouge_score"):
        raise UserError(
            "ROUGE-2 needs a package that is missing. Install it with: pip install rouge-score"
        )
    if "mauve" in wanted and not importlib.util.find_spec("mauve"):
        raise UserError(
            "mauve needs a package that is missing. Install it with: pip install mauve-text"
        )
    if "mauve" in wanted and (cfg.retokenize or not cfg.judge):
        raise UserError(
            "mauve takes tokens as they are and features from a judge: --judge=CKPT, no --retokenize."
        )
    return wanted


def load_drafters(cfg, models, meta):
    """-> the target of an acceptance table, its drafters."""
    if not cfg.draft:
        raise UserError("acceptance needs drafters: --draft=CKPT,out/ngram/ngram.txt,lookup")
    target = next(iter(models.values()))[0]
    drafters = {path: load_drafter(path, target, meta, cfg) for path in paths_of(cfg.draft)}
    if cfg.num_samples < 7:
        raise UserError(
            f"num_samples is {cfg.num_samples}; the intervals of acceptance take at least 7."
        )
    if len(models) > 1:
        raise UserError(
            "acceptance is of one target: give one --ckpt, and its drafters as --draft."
        )
    length = cfg.length or target.config.block_size
    if length > target.config.block_size or length < 4 * cfg.gamma:
        raise UserError(
            f"length is {length}; from {4 * cfg.gamma} (4 gamma) to the target's context is possible."
        )
    return target, drafters


def load_judge(cfg, wanted, meta, device):
    """-> judge and its meta, or None and None."""
    if not cfg.judge:
        if "frontier" in wanted or ("genppl" in wanted and "transition" not in meta):
            raise UserError(
                "genppl and frontier need a judge: --judge=CKPT of an autoregressive model."
            )
        return None, None
    judge, checkpoint = load_model(cfg.judge, device, cfg.attention)
    if not judge.config.causal:
        raise UserError(
            f"The judge {cfg.judge} is a diffusion model; a judge must be autoregressive."
        )
    if not cfg.retokenize and not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(
            f"The judge {cfg.judge} has another vocabulary than the text. Use --retokenize=True."
        )
    return judge, checkpoint["meta"]


def load_all(wanted, device, cfg):
    """-> what is read before any work, so that mistakes show at once: files, models, corpus, judge, passages, prompts,
    target, drafters, logs, their common vocabulary (meta) and the size of a text.
    """
    its = types.SimpleNamespace(
        corpus=None, passages=None, prompts=None, target=None, drafters=None, logs={}
    )
    its.files = (
        {path: data.load_samples(path) for path in paths_of(cfg.samples)} if cfg.samples else {}
    )
    its.models = (
        {} if its.files else {path: load_to_sample(path, cfg) for path in paths_of(cfg.ckpt)}
    )
    metas = {path: checkpoint["meta"] for path, (_, checkpoint, *_) in its.models.items()}
    metas |= {path: about["meta"] for path, (_, about) in its.files.items()}
    sources = [checkpoint["config"]["dataset"] for _, checkpoint, *_ in its.models.values()]
    sources += [about["dataset"] for _, about in its.files.values()]
    its.meta = next(iter(metas.values()))
    if "acceptance" in wanted:
        its.target, its.drafters = load_drafters(cfg, its.models, its.meta)
        its.prompts = (
            data.load_prompts(cfg.prompts, its.meta, cfg.num_samples) if cfg.prompts else None
        )
    its.judge, its.judge_meta = load_judge(cfg, wanted, its.meta, device)
    if "loss" in wanted:
        its.logs = {path: read_log(path) for path in (os.path.dirname(p) or p for p in its.models)}
    if "lambada" in wanted:
        its.passages, metas["the passages"] = data.load_passages(cfg.passages)
    reads = {"nelbo", "genppl", "selfbleu", "mauve", "frontier"} | (
        set() if cfg.prompts else {"acceptance"}
    )
    if reads & set(wanted):
        its.corpus = data.load(cfg.dataset or sources[0])
        metas["the dataset"] = its.corpus.meta
    for path, other in metas.items():
        if not data.same_vocabulary(its.meta, other):
            raise UserError(
                f"{path}: another vocabulary than {next(iter(metas))}'s; their numbers do not compare."
            )
    lengths = {x.size(1) for x, _ in its.files.values()} | ({cfg.length} if cfg.length else set())
    if (
        len(lengths) > 1
        or len({(about["prefix"], about["continuations"]) for _, about in its.files.values()}) > 1
    ):
        raise UserError(
            f"Texts of {sorted(lengths)} tokens, or with other prefixes, do not compare. Give one kind."
        )
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
    report = {
        "hardware": note,
        "torch": torch.__version__,
        "seed": cfg.seed,
        "tokens_per_sample": its.size,
    }
    report |= {"retokenize": cfg.retokenize} | ({} if its.files else {"sampler": cfg.sampler})
    report["processes"] = rank_and_world()[1]
    report["files"] = {
        p: {k: v for k, v in about.items() if k != "meta"} for p, (_, about) in its.files.items()
    }
    report |= {
        "likelihood": {},
        "lambada": {},
        "rows": [],
        "latency": [],
        "timed": {},
        "drafters": [],
    }
    report |= {"losses": its.logs, "frontier": [], "gains": []}
    if "nelbo" in wanted:
        report["likelihood"] = likelihood_of_all(its, autocast, cfg)
    if "lambada" in wanted:
        for path, (model, *_) in its.models.items():
            with autocast:
                report["lambada"][path] = metrics.lambada(model, its.passages, cfg)
    if {"genppl", "selfbleu", "mauve"} & set(wanted):
        report["rows"] = quality_of_all(its, wanted, autocast, cfg)
    if "frontier" in wanted:
        report["frontier"], report["gains"] = frontier_of_all(its, autocast, cfg)
    if "latency" in wanted:
        report["latency"], report["timed"] = latency_of_all(its, cfg)
    if "acceptance" in wanted:
        report |= acceptance_of_all(its, device, cfg)
    return report


def acceptance_of_all(its, device, cfg):
    """-> {"drafters": the rows of their table, "rouge2": scores, none where prompts have no references}."""
    length, references = cfg.length or its.target.config.block_size, None
    if cfg.prompts:
        x, references = its.prompts
        its.target.source = x.size(1) - 1  # for one that has an encoder
        if x.size(1) >= length:
            raise UserError(
                f"The prompts have {x.size(1)} tokens and leave no room in {length}. Use --length."
            )
    else:
        x = data.blocks(its.corpus.val, max(1, length // 8), cfg.num_samples)
    with next(iter(its.models.values()))[2]:
        rows, texts = metrics.drafters_table(its.target, its.drafters, x.to(device), length, cfg)
    rouge2 = metrics.rouge_2(texts, x.size(1), references, its.meta) if references else {}
    return {"drafters": rows, "rouge2": rouge2}


def likelihood_of_all(its, autocast, cfg):
    """-> {path: nats per token of validation text, and the same in other units}."""
    rows, meta = {}, its.corpus.meta
    for path, (model, *_) in its.models.items():
        x = data.blocks(
            its.corpus.val, model.config.block_size + model.config.causal, cfg.eval_blocks
        )
        with autocast:  # of one model: it keeps copies of the weights until it ends
            nats, error = metrics.likelihood(model, x, cfg)
        chars = len(data.encoder(meta)[1](x.flatten().tolist())) / x.numel()  # per token
        kind = "exact" if model.config.causal else "upper bound"
        rows[path] = {
            "kind": kind,
            "nats": nats,
            "error": error,
            "ppl": math.exp(nats),
            "tokens": x.numel(),
        }
        rows[path]["bits_per_char"] = nats / math.log(2) / chars
        if "entropy_rate" in meta:  # of a diffusion block: the first token has nothing before it
            T, rate = model.config.block_size, meta["entropy_rate"]
            rows[path]["truth"] = (
                rate if model.config.causal else (meta["stationary_entropy"] + (T - 1) * rate) / T
            )
    return rows


def quality_of_all(its, wanted, autocast, cfg):
    """-> a row for each file of samples, or each model and number of steps, and at the end one of real text."""
    rows, prefix = [], max([about["prefix"] for _, about in its.files.values()], default=0)
    texts = [
        len(x) // about["continuations"] for x, about in its.files.values()
    ]  # that do not continue the same
    real = data.blocks(
        its.corpus.val, its.size, max(texts, default=cfg.num_samples)
    )  # with a prefix: those continued
    same = {"judge": its.judge, "metas": (its.meta, its.judge_meta), "wanted": wanted, "cfg": cfg}
    same["n"] = min([len(real), *texts])
    with autocast:
        real_row = {"model": "real text", "steps": None} | quality(real, prefix=prefix, **same)
        if "mauve" in wanted:
            same["real_features"] = judge_features(its.judge, real, cfg.batch_size)

    def label(path, top_p):
        return path if top_p == 1 else f"{path}, top_p {top_p:g}"

    for path, (x, about) in its.files.items():
        name = label(path, about["top_p"])
        rows.append(
            {
                "model": name,
                "path": about["ckpt"],
                "steps": about["steps"],
                "causal": about["causal"],
            }
        )
        with autocast:
            rows[-1] |= quality(x, prefix=prefix, continuations=about["continuations"], **same)
    for path, (model, checkpoint, context, _) in its.models.items():
        causal, templates = (
            model.config.causal,
            empty_pages(model, its.meta, cfg.num_samples, its.size),
        )
        ways = (
            [(its.size, p) for p in cfg.ar_top_p] if causal else [(k, cfg.top_p) for k in cfg.steps]
        )
        for n_steps, top_p in ways:
            began = time.perf_counter()
            with context:
                own = settled(cfg, checkpoint, top_p=top_p)
                x = draw_many(model, templates, own, n_steps)
            seconds = (time.perf_counter() - began) / cfg.num_samples
            rows.append(
                {"model": label(path, top_p), "path": path, "steps": n_steps, "causal": causal}
            )
            rows[-1] |= {"s_per_sample": seconds, "sampler": None if causal else own.sampler}
            with autocast:
                rows[-1] |= quality(x, **same)
    return [*rows, real_row]


def frontier_of_all(its, autocast, cfg):
    """-> a row for each model, number of steps and temperature, one of real text; the gains over the first model."""
    points, metas = {}, (its.meta, its.judge_meta)

    def point(x, **names):
        """(n, L) int64 -> its row, (n, 3): nats, judged tokens and entropy of each text."""
        with autocast:
            nats, n_tokens = metrics.judged(x, its.judge, metas, cfg)
        row, entropies = (
            names | {"genppl": math.exp(nats.sum() / n_tokens.sum())},
            metrics.entropies(x),
        )
        row |= {"entropy": entropies.mean().item(), "repeated": metrics.repeated(x)}
        return row, torch.stack([nats, n_tokens, entropies], 1)

    for path, (model, checkpoint, context, _) in its.models.items():
        templates = empty_pages(model, its.meta, cfg.num_samples, its.size)
        for n_steps in [its.size] if model.config.causal else cfg.steps:
            points[path, n_steps] = []
            names = {"model": path, "steps": n_steps, "tokens_per_step": its.size / n_steps}
            names["made_for"] = (checkpoint.get("made_for") or {}).get(
                "steps"
            )  # of an SDTT student
            for temperature in cfg.temperatures:
                with context:
                    x = draw_many(
                        model, templates, settled(cfg, checkpoint, temperature=temperature), n_steps
                    )
                points[path, n_steps].append(point(x, **names, temperature=temperature))
    real, _ = point(
        data.blocks(its.corpus.val, its.size, cfg.num_samples), model="real text", steps=None
    )
    teacher, gains = next(iter(its.models)), []
    for path, n_steps in points:
        if (
            path != teacher and (teacher, n_steps) in points
        ):  # at the temperature where it is as varied as real text
            row, texts = min(
                points[path, n_steps], key=lambda found: abs(found[0]["entropy"] - real["entropy"])
            )
            gains.append(
                row | metrics.gain(texts, [each for _, each in points[teacher, n_steps]], cfg.seed)
            )
    return [*(row for line in points.values() for row, _ in line), real], gains


def latency_of_all(its, cfg):
    """-> seconds per sample of each model, batch and number of steps, {path: the path that was timed in its place}."""
    rows, timed = [], {}
    shapes = {}  # the rounds of a model are equally fast: one of them is measured
    for path, (model, checkpoint, context, _) in its.models.items():
        own = settled(cfg, checkpoint)
        shape = *dataclasses.astuple(dataclasses.replace(model.config, dropout=0.0)), own.sampler
        timed[path] = shapes.setdefault(shape, path)
        if timed[path] != path:
            continue
        for batch, n_steps in itertools.product(
            cfg.latency_batch, [its.size] if model.config.causal else cfg.steps
        ):
            with context:
                seconds = metrics.seconds_per_sample(model, its.meta, own, n_steps, its.size, batch)
            row = {"model": path, "causal": model.config.causal, "batch": batch, "steps": n_steps}
            rows.append(row | {"s_per_sample": seconds})
    return rows, timed


def quality(x, judge, metas, wanted, cfg, prefix=0, continuations=1, n=None, real_features=None):
    """(N, L) int64 -> its row of the table: entropy, and what is wanted of genppl, true_ppl, self_bleu and mauve.

    Self-BLEU grows with the number of texts: it is of n of them (None: all), one of a prefix, evenly chosen, the same n
    in every row of a table.
    """
    meta, row = (
        metas[0],
        {"texts": len(x), "entropy": metrics.entropies(x[:, prefix:]).mean().item()},
    )
    if judge and "genppl" in wanted:
        nats, n_tokens = metrics.judged(x, judge, metas, cfg, prefix)
        row["genppl"] = math.exp(nats.sum() / n_tokens.sum())
        if cfg.retokenize:  # comparable between models of different tokenizers
            row["bits_per_char"] = (
                nats.sum().item() / math.log(2) / characters(x, prefix, data.encoder(meta)[1])
            )
    if "transition" in meta and "genppl" in wanted:
        row["true_ppl"] = math.exp(metrics.markov_nats(x, meta))
    if "selfbleu" in wanted:
        one_each = x[::continuations, prefix:]
        chosen = torch.linspace(0, len(one_each) - 1, n or len(one_each)).long()
        row["self_bleu"] = self_bleu(one_each[chosen].tolist())
    if real_features is not None:
        row["mauve"] = mauve_score(
            real_features, judge_features(judge, x, cfg.batch_size), cfg.seed
        )
    return row


def main(cfg):
    report = evaluate(cfg)
    if rank_and_world()[0] == 0:
        print(tables(report))
        print(f"Saved in {cfg.out}: {', '.join(write_report(report, cfg.out))}")
    leave_processes()


if __name__ == "__main__":
    main(cfg)
