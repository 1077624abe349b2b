"""
Every number and plot: how likely real text is under a model, and how good its own text is.
$ python eval.py config/eval_pydoc.py                                                  (2 minutes)

nelbo       nats per token of validation text: exact for a GPT, an upper bound (MDLM) for a
            diffusion model. With --dataset it is zero-shot perplexity
genppl      perplexity of a model's samples under --evaluator, an autoregressive model. Read it
            beside the entropy of the same samples: a low perplexity with an entropy below that of
            real text is repetition, not quality
selfbleu    how alike a model's samples are, by 1- to 4-grams: 1 is one text over and over
frontier    genppl and entropy of every model at every number of steps, temperature and cooling, and
            how much better each is than the first model, the teacher, at its best, at equal steps
            and entropy. (The teacher with cooling is compared with the teacher without)
latency     seconds per sample: a diffusion model at each number of steps, a GPT with its KV cache
acceptance  for a GPT and its drafters: how many of their tokens it accepts, how much faster it gets

Samples may come from files instead (--samples), written elsewhere or by another kind of model.
"""

import collections
import dataclasses
import itertools
import math
import time

import torch

import data
import metrics
from configurator import UserError, check_at_least, choose, configure
from drafters import check_context, load_drafter, load_model
from plumbing.checkpoints import paths_of
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import compile_trunk, dtype_of, pick_for_sampling, prepare_for_sampling
from plumbing.parallel import (
    is_first_process,
    join_processes,
    leave_processes,
    rank_and_world,
)
from plumbing.report import tables, write_report
from speculative import check_sampler, draw_many, empty_templates, sampler_and_steps

# --------------------------------------------------------------------------------------------------
what = "nelbo,genppl"  # any of nelbo, genppl, selfbleu, frontier, latency, acceptance
ckpt = "out/pydoc/ckpt.pt"  # several (a,b or out/x/round_*.pt) side by side; '': only samples
samples = ""  # files of saved samples (a.jsonl,b.jsonl), evaluated beside those of ckpt
evaluator = ""  # an autoregressive checkpoint, also gpt2-large or hf:NAME; for genppl, frontier
dataset = ""  # a name under data/, or a folder; '': what the checkpoint was trained on
eval_blocks = 512  # for nelbo: validation blocks at most, spread evenly over the text
draws = 4  # for nelbo: noise draws per block
num_samples = 64  # of each model, for genppl, selfbleu, frontier and acceptance
length = 0  # tokens, with the prompt; 0: the context; longer is allowed
steps = [4, 8, 16, 32, 64, 128, 256]  # diffusion sampling steps, one row of the table each
sampler = ""  # '' (own, or spread) | 'spread' | 'ancestral' | 'first_hitting' | 'confidence'
temperature = 1.0  # 0: always the most probable token
cooling = 1.0  # diffusion: the temperature of the last step over that of the first
temperatures = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]  # for frontier
coolings = [1.0]  # for frontier, of diffusion: each of them at every temperature
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
ar_top_p = [1.0]  # for genppl: top_p of autoregressive samples, one row of the table each
latency_batch = [1, 8]  # samples at a time when latency is measured
draft = ""  # for acceptance: drafters, checkpoints (a,b), ngram.txt or 'lookup'
prompts = ""  # for acceptance: a prompts.jsonl of data/cnn_dailymail; '': from validation text
batch_size = 16  # sequences per forward pass, on each process
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
compile = "off"  # 'off' | 'on': torch.compile, in half a minute; a GPT is 1.2 to 1.4 times as fast
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
out = "out/eval"  # folder for eval.json, eval.txt and the plots
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

PARTS = ("nelbo", "genppl", "selfbleu", "frontier", "latency", "acceptance")
SAMPLE_PARTS = {"genppl", "selfbleu", "frontier"}  # what saved samples are enough for


# --------------------------------------------------------------------------------------------------
# what was asked for


def wanted_parts(cfg):
    """-> the parts of `what`. Raises UserError for bad values, before any work."""
    parts = [part.strip() for part in cfg.what.split(",")]
    for part in parts:
        choose("what", part, PARTS)
    check_sampling(cfg)
    check_at_least(cfg, eval_blocks=1, draws=1)
    check_each(cfg, "latency_batch", "at least 1", lambda v: v >= 1)
    check_each(cfg, "temperatures", "at least 0", lambda v: v >= 0)
    check_each(cfg, "coolings", "at least 0", lambda v: v >= 0)
    check_each(cfg, "ar_top_p", "above 0 and at most 1", lambda v: 0 < v <= 1)
    others = sorted(set(parts) - SAMPLE_PARTS)
    if not cfg.ckpt and others:
        raise UserError(f"{others[0]} needs a model. Give --ckpt=CKPT, or leave {others[0]} out.")
    if "frontier" in parts and cfg.ckpt and len(cfg.temperatures) < 2:
        raise UserError(f"temperatures is {cfg.temperatures}; a frontier takes at least two.")
    return parts


def check_sampling(cfg):
    """Raises UserError where nothing is to be evaluated, or nothing can be sampled."""
    if not cfg.ckpt and not cfg.samples:
        raise UserError("There is nothing to evaluate. Give --ckpt=CKPT, --samples=FILE or both.")
    check_sampling_knobs(cfg)
    check_sampler(cfg.sampler)
    check_each(cfg, "steps", "at least 1", lambda v: v >= 1)
    if cfg.length == 1:
        raise UserError("length is 1, but the first token of a sample is not scored. Use 2.")
    choose("compile", cfg.compile, ("off", "on"))


def check_each(cfg, name, what_is_allowed, allowed):
    """Raises UserError unless the list of this knob has numbers, all of them allowed."""
    numbers = getattr(cfg, name)
    if not numbers or not all(map(allowed, numbers)):
        raise UserError(f"{name} is {numbers}; it must be {what_is_allowed}.")


# --------------------------------------------------------------------------------------------------
# what is measured


def load_models(cfg, device):
    """-> {path: (model, checkpoint)}, in the order of --ckpt."""
    models = {}
    for path in paths_of(cfg.ckpt) if cfg.ckpt else []:
        model, checkpoint = load_model(path, device, cfg.attention)
        prepare_for_sampling(model, sampling_context(model, cfg))
        if cfg.compile == "on":
            compile_trunk(model, device)
        models[path] = (model, checkpoint)
    return models


def load_files(cfg):
    """
    -> [(samples, about), ...]. Raises UserError unless all are texts of one length, begin with
    prefixes of one length, and are equally many for each prefix.
    """
    if not cfg.samples:
        return []
    files = [data.load_samples(path) for path in paths_of(cfg.samples)]
    kinds = {(x.size(1), about["prefix"], about["continuations"]) for x, about in files}
    if len(kinds) > 1:
        said = "; ".join(
            f"{size} tokens, {prefix} of them a prefix, {n} for each"
            for size, prefix, n in sorted(kinds)
        )
        raise UserError(f"Texts of different kinds do not compare ({said}). Give one kind.")
    length, prefix, _ = kinds.pop()
    if cfg.length not in (0, length) or (cfg.ckpt and prefix):
        raise UserError(
            f"{cfg.samples} has texts of {length} tokens, {prefix} of them a prefix: they do not "
            "compare with those asked for. Evaluate them alone: --ckpt= --length=0."
        )
    return files


def load_evaluator(cfg, meta, device):
    """-> the evaluator. Raises UserError unless it is autoregressive and reads the same tokens."""
    if not cfg.evaluator:
        raise UserError("An evaluator is needed: --evaluator=CKPT, of an autoregressive model.")
    model, checkpoint = load_model(cfg.evaluator, device, cfg.attention)
    if not model.config.causal:
        raise UserError(
            f"The evaluator {cfg.evaluator} is a diffusion model; it must be autoregressive."
        )
    if not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(
            f"The evaluator {cfg.evaluator} has another vocabulary than the text: "
            "their numbers would not compare."
        )
    return model


def common_meta(models, files):
    """-> the meta of all models and samples. Raises UserError where their vocabularies differ."""
    metas = [(path, checkpoint["meta"]) for path, (_, checkpoint) in models.items()]
    metas += [(f"the samples of {about['ckpt']}", about["meta"]) for _, about in files]
    first, meta = metas[0]
    for path, other in metas:
        if not data.same_vocabulary(meta, other):
            raise UserError(
                f"{path}: another vocabulary than {first}'s; their numbers do not compare."
            )
    return meta


def load_corpus(cfg, models, files, meta):
    """-> the dataset whose validation text is `real text`, by default that of the first model."""
    sources = [checkpoint["config"]["dataset"] for _, checkpoint in models.values()]
    sources += [about["dataset"] for _, about in files]
    corpus = data.load(cfg.dataset or sources[0])
    if not data.same_vocabulary(meta, corpus.meta):
        raise UserError(
            f"The dataset {cfg.dataset or sources[0]} has another vocabulary than the model."
        )
    return corpus


def text_length(cfg, models, files, evaluator=None):
    """-> tokens of a sample: that of the files, --length, or the smallest context of all models."""
    if files:
        return files[0][0].size(1)
    contexts = [model.config.block_size for model, _ in models.values()]
    if evaluator:
        contexts.append(evaluator.config.block_size)
    return cfg.length or min(contexts)


def prefix_of(files):
    """-> how many tokens of real text the saved samples continue."""
    return files[0][1]["prefix"] if files else 0


# --------------------------------------------------------------------------------------------------
# samples. (samples, about) is (n, L) int64 and a dict that says what they are: ckpt, steps, ...,
# as the first line of a file of saved samples does (data.SAMPLES_ARE)


def sampling_context(model, cfg):
    """-> autocast, to sample in."""
    return pick_for_sampling(model.config.causal, cfg.device, cfg.dtype)[0]


def sampling_options(cfg, checkpoint):
    """-> the options of draw_samples. --sampler= takes the sampler a student was made for."""
    sampler, _ = sampler_and_steps(cfg.sampler, 0, checkpoint.get("made_for"))
    return {
        "sampler": sampler,
        "temperature": cfg.temperature,
        "top_k": cfg.top_k,
        "top_p": cfg.top_p,
    }


def steps_to_try(causal, sampler, length, cfg):
    """-> [number of steps, ...]: only one for a GPT and for first_hitting, which ignore --steps."""
    return [length] if causal or sampler == "first_hitting" else cfg.steps


def coolings_to_try(causal, n_steps, coolings):
    """-> [cooling, ...]: only 1.0 for a GPT, and for a single step."""
    return [1.0] if causal or n_steps == 1 else coolings


def draw_texts(models, length, cfg, temperatures, coolings, ar_top_p):
    """-> [(samples, about), ...] of every model, number of steps, cooling and temperature."""
    texts = []
    for path, (model, checkpoint) in models.items():
        causal = model.config.causal
        templates = empty_templates(model, checkpoint["meta"], cfg.num_samples, length)
        options = sampling_options(cfg, checkpoint)
        settings = []
        for n_steps in steps_to_try(causal, options["sampler"], length, cfg):
            top_ps = ar_top_p if causal else [cfg.top_p]
            falling = coolings_to_try(causal, n_steps, coolings)
            settings += itertools.product([n_steps], top_ps, falling, temperatures)
        for n_steps, top_p, cooling, temperature in settings:
            options["n_steps"] = n_steps
            options["top_p"] = top_p
            options["cooling"] = cooling
            options["temperature"] = temperature
            began = time.perf_counter()
            with sampling_context(model, cfg):
                x = draw_many(model, templates, cfg.batch_size, cfg.seed, **options)
            about = {
                "ckpt": path,
                "steps": n_steps,
                "causal": causal,
                "sampler": None if causal else options["sampler"],
                "temperature": temperature,
                "cooling": cooling,
                "top_p": top_p,
                "prefix": 0,
                "continuations": 1,
                "made_for": (checkpoint.get("made_for") or {}).get("steps"),  # of an SDTT student
                "s_per_sample": (time.perf_counter() - began) / cfg.num_samples,
            }
            texts.append((x, about))
    return texts


def real_texts(corpus, length, files, cfg):
    """-> (samples, about) of validation text: one for each sample, or each prefix."""
    sizes = [len(x) // about["continuations"] for x, about in files]
    x = data.blocks(corpus.val, length, max(sizes, default=cfg.num_samples))
    about = {"ckpt": "real text", "steps": None, "causal": False}
    about |= {"temperature": None, "cooling": None}
    prefix = prefix_of(files)  # what the samples continue: not scored here either
    return x, {**about, "top_p": 1, "prefix": prefix, "continuations": 1}


def row_of(about):
    """about -> the columns of a table that say what samples are."""
    name = about["ckpt"] if about["top_p"] == 1 else f"{about['ckpt']}, top_p {about['top_p']:g}"
    keys = ("steps", "causal", "temperature", "cooling", "sampler", "made_for", "s_per_sample")
    return {"model": name, "path": about["ckpt"]} | {k: about[k] for k in keys if k in about}


# --------------------------------------------------------------------------------------------------
# measure


def likelihoods(models, corpus, cfg):
    """-> {path: nats per token of validation text, and the same in other units}."""
    decode = data.encoder(corpus.meta)[1]
    rows = {}
    for path, (model, _) in models.items():
        causal = model.config.causal
        x = data.blocks(corpus.val, model.config.block_size + causal, cfg.eval_blocks)
        nats, error = metrics.likelihood(
            model, x, draws=cfg.draws, seed=cfg.seed, batch_size=cfg.batch_size
        )
        chars_per_token = len(decode(x.flatten().tolist())) / x.numel()
        rows[path] = {
            "kind": "exact" if causal else "upper bound",
            "nats": nats,
            "error": error,
            "ppl": math.exp(nats),
            "tokens": x.numel(),
            "bits_per_char": nats / math.log(2) / chars_per_token,
        }
    return rows


def score(x, about, evaluator, meta, cfg):
    """
    (n, L) int64 -> {genppl, entropy}, and (n, 3) float64: nats, scored tokens and entropy of each
    text.
    """
    prefix = about["prefix"]
    scored = metrics.scored_positions(x, meta.get("eot"), prefix)
    nats = metrics.evaluator_nats(evaluator, x, scored, cfg.batch_size)
    entropies = metrics.entropies(x[:, prefix:])
    row = {
        "genppl": math.exp(nats.sum() / scored.sum()),
        "entropy": entropies.mean().item(),
    }
    return row, torch.stack([nats, scored.sum(1), entropies], dim=1)


def self_bleu_of(x, about, n):
    """
    Self-BLEU grows with the number of texts, so every row of a table takes the same number n:
    evenly spaced texts, and only one for each prefix.
    """
    one_each = x[:: about["continuations"], about["prefix"] :]
    chosen = torch.linspace(0, len(one_each) - 1, n).long()
    return metrics.self_bleu(one_each[chosen].tolist())


def quality(texts, evaluator, meta, parts, cfg):
    """[(samples, about), ...] -> a row for each: entropy, and genppl and self-BLEU if wanted."""
    n_bleu = min(len(x) // about["continuations"] for x, about in texts)
    rows = []
    for x, about in texts:
        row = row_of(about) | {"texts": len(x)}
        if "genppl" in parts:
            row |= score(x, about, evaluator, meta, cfg)[0]
        else:
            row["entropy"] = metrics.entropies(x[:, about["prefix"] :]).mean().item()
        if "selfbleu" in parts:
            row["self_bleu"] = self_bleu_of(x, about, n_bleu)
        rows.append(row)
    return rows


def frontier(texts, evaluator, meta, cfg):
    """
    [(samples, about), ...], real text last -> a row for each, and the gains over the first model,
    the teacher.
    """
    rows = []
    lines = {}  # (model, steps, cooling) -> [(row, (n, 3)), ...], a point for each temperature
    for x, about in texts:
        row, per_text = score(x, about, evaluator, meta, cfg)
        row = row_of(about) | row | {"repeated": metrics.repeated(x[:, about["prefix"] :])}
        if row["steps"]:
            row["tokens_per_step"] = (x.size(1) - about["prefix"]) / row["steps"]
            key = (row["model"], row["steps"], row["cooling"])
            lines.setdefault(key, []).append((row, per_text))
        rows.append(row)
    return rows, gains(lines, rows[-1]["entropy"], cfg.seed)


def gains(lines, real_entropy, seed):
    """
    lines: {(model, steps, cooling): [(row, (n, 3)), ...]}, a point for each temperature. The first
    model is the teacher. -> for each line of the others, the row of one point, with its gain over
    the teacher's lines of as many steps. The teacher's lines with cooling are compared with its
    line without. Lines with nothing to compare are left out.
    """
    if not lines:  # samples of files that have no steps
        return []
    teacher = next(iter(lines))[0]
    frontiers = collections.defaultdict(dict)  # steps -> {cooling: [(n, 3) at each temperature]}
    for (model, n_steps, cooling), points in lines.items():
        if model == teacher and len(points) >= 2:
            frontiers[n_steps][cooling] = [texts for _, texts in points]
    rows = []
    for (model, n_steps, cooling), points in lines.items():
        teacher_lines = list(frontiers[n_steps].values())
        if model == teacher:
            uniform = frontiers[n_steps].get(1.0)
            teacher_lines = [uniform] if uniform and cooling != 1 else []
        if not teacher_lines:
            continue
        # at the temperature where the student is about as varied as real text
        row, per_text = min(points, key=lambda point: abs(point[0]["entropy"] - real_entropy))
        rows.append(row | metrics.gain(per_text, teacher_lines, seed))
    return rows


def latencies(models, length, cfg):
    """
    -> seconds per sample of each model, batch and number of steps; {path: the path that was timed
    instead}. The rounds of a student are equally fast: one of them is timed.
    """
    rows = []
    timed = {}
    first_of = {}  # shape -> the first path of that shape
    for path, (model, checkpoint) in models.items():
        causal = model.config.causal
        options = sampling_options(cfg, checkpoint)
        config = dataclasses.replace(model.config, dropout=0.0)
        shape = (*dataclasses.astuple(config), options["sampler"])
        timed[path] = first_of.setdefault(shape, path)
        if timed[path] != path:
            continue
        steps = steps_to_try(causal, options["sampler"], length, cfg)
        for batch, n_steps in itertools.product(cfg.latency_batch, steps):
            template = empty_templates(model, checkpoint["meta"], batch, length)
            options["n_steps"] = n_steps
            with sampling_context(model, cfg):
                seconds = metrics.seconds_per_sample(model, template, cfg.seed, **options)
            row = {"model": path, "causal": causal, "batch": batch, "steps": n_steps}
            rows.append(row | {"s_per_sample": seconds})
    return rows, timed


# --------------------------------------------------------------------------------------------------
# acceptance


def load_target(cfg, models, meta):
    """-> the target of an acceptance table, {path: drafter}, tokens of a text."""
    if not cfg.draft:
        raise UserError("acceptance needs drafters: --draft=CKPT,out/ngram/ngram.txt,lookup")
    if len(models) > 1:
        raise UserError("acceptance has one target: give one --ckpt, and its drafters as --draft.")
    if cfg.num_samples < 7:
        raise UserError(
            f"num_samples is {cfg.num_samples}; the intervals of acceptance take at least 7."
        )
    target = next(iter(models.values()))[0]
    with sampling_context(target, cfg):  # in which a drafter makes its cache
        drafters = {
            path: load_drafter(path, target, meta, cfg.attention) for path in paths_of(cfg.draft)
        }
    context = target.config.block_size
    length = cfg.length or context
    shortest = 4 * max(metrics.GAMMAS)
    if length < shortest or length > context:
        raise UserError(
            f"length is {length}; from {shortest} to the target's context of {context} is possible."
        )
    for path, drafter in drafters.items():
        check_context(drafter, path, length)
    return target, drafters, length


def beginnings(cfg, corpus, meta, length):
    """-> (n, P) int64, what the target continues: --prompts, or beginnings of validation text."""
    if not cfg.prompts:
        return data.blocks(corpus.val, max(1, length // 8), cfg.num_samples)
    prompts, _ = data.load_prompts(cfg.prompts, meta, cfg.num_samples)
    size = prompts.size(1)
    if size >= length:
        raise UserError(
            f"The prompts have {size} tokens and leave no room in {length}. Use --length."
        )
    return prompts


def rows_of_drafters(target, drafters, prompts, length, cfg):
    """{name: drafter}, prompts (n, P) int64 -> a row of the table for each."""
    settings = {"temperature": cfg.temperature, "top_k": cfg.top_k, "top_p": cfg.top_p}
    with sampling_context(target, cfg):
        return metrics.drafter_rows(
            target, drafters, prompts, length, settings, cfg.seed, cfg.batch_size
        )


# --------------------------------------------------------------------------------------------------
# the recipe


def needs_text(parts, cfg):
    """-> whether validation text is needed: not for latency, nor for acceptance with --prompts."""
    return bool({"nelbo", *SAMPLE_PARTS} & set(parts)) or (
        "acceptance" in parts and not cfg.prompts
    )


def with_formats(note, models, parts, cfg):
    """The note on the machine -> the same, with the number formats of what is measured on it."""
    machine = note.rpartition(", ")[0]
    kinds = []  # the kinds of model that sample in 16 bits, all in the same dtype
    for kind, causal in (("diffusion models", False), ("GPTs", True)):
        is_evaluated = any(model.config.causal == causal for model, _ in models.values())
        picked = dtype_of(pick_for_sampling(causal, cfg.device, cfg.dtype)[0])
        if is_evaluated and picked != torch.float32:
            kinds.append(kind)
            dtype = str(picked).removeprefix("torch.")
    if not kinds or set(parts) == {"nelbo"}:
        return f"{machine}, float32"
    return f"{machine}, {' and '.join(kinds)} sampled in {dtype}, all else in float32"


def measure_samples(models, files, corpus, evaluator, parts, cfg):
    """-> the parts of the report that are about samples."""
    length = text_length(cfg, models, files, evaluator)
    if "frontier" in parts and length - prefix_of(files) < 4:
        raise UserError(f"A frontier takes texts of at least 4 tokens; these have {length}.")
    real = real_texts(corpus, length, files, cfg)
    report = {"tokens_per_sample": length}
    if {"genppl", "selfbleu"} & set(parts):
        drawn = draw_texts(models, length, cfg, [cfg.temperature], [cfg.cooling], cfg.ar_top_p)
        report["rows"] = quality([*drawn, *files, real], evaluator, corpus.meta, parts, cfg)
    if "frontier" in parts:
        drawn = draw_texts(models, length, cfg, cfg.temperatures, cfg.coolings, [cfg.top_p])
        texts = [*drawn, *files, real]
        report["frontier"], report["gains"] = frontier(texts, evaluator, corpus.meta, cfg)
    return report


def evaluate(cfg):
    """-> dict: everything that eval.json holds."""
    parts = wanted_parts(cfg)
    device, note = join_processes(cfg)

    # all is loaded before any work, so that mistakes show at once
    models = load_models(cfg, device)
    files = load_files(cfg)
    meta = common_meta(models, files)
    corpus = load_corpus(cfg, models, files, meta) if needs_text(parts, cfg) else None
    evaluator = None
    if {"genppl", "frontier"} & set(parts):
        evaluator = load_evaluator(cfg, meta, device)
    if "acceptance" in parts:
        target, drafters, size = load_target(cfg, models, meta)
        prompts = beginnings(cfg, corpus, meta, size).to(device)

    report = {"hardware": with_formats(note, models, parts, cfg)}
    report |= {"torch": torch.__version__, "seed": cfg.seed}
    report["processes"] = rank_and_world()[1]
    report["files"] = [{k: v for k, v in about.items() if k != "meta"} for _, about in files]
    if "nelbo" in parts:
        report["likelihood"] = likelihoods(models, corpus, cfg)
    if SAMPLE_PARTS & set(parts):
        report |= measure_samples(models, files, corpus, evaluator, parts, cfg)
    if "latency" in parts:
        length = text_length(cfg, models, files, evaluator)
        report["latency"], report["timed"] = latencies(models, length, cfg)
    if "acceptance" in parts:
        report["drafters"] = rows_of_drafters(target, drafters, prompts, size, cfg)
    return report


def main(cfg):
    report = evaluate(cfg)
    if is_first_process():
        print(tables(report))
        print(f"Saved in {cfg.out}: {', '.join(write_report(report, cfg.out))}")
    leave_processes()


if __name__ == "__main__":
    main(cfg)
