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
    join_processes,
    load_model,
    nelbo,
    probabilities,
    propose,
    speculate,
    spread,
    tokens_per_call,
)
from plumbing.hardware import pick_device
from sample import check_sampling, draw_many, draw_samples, empty_pages, paths_of, prepare, prepare_drafter, time_gammas

# ----------------------------------------------------------------------------------------------------------------------
ckpt = "out/pydoc/ckpt.pt"  # one checkpoint, or several with commas between them; out/sdtt/round_*.pt is every round
samples = ""  # files of sample.py --save, judged instead of what ckpt would write now
judge = ""  # an autoregressive checkpoint, also gpt2-large and the like; for genppl (but of markov data) and mauve
retokenize = False  # judge the text as the judge's own tokenizer cuts it; its vocabulary may be another then
what = "nelbo,genppl"  # any of nelbo, genppl, selfbleu, mauve, lambada, latency, acceptance
dataset = ""  # validation text; '': what the checkpoint was trained on
passages = "lambada"  # for lambada: a name under data/, or a folder that data/lambada/prepare.py wrote
steps = [4, 8, 16, 32, 64, 128, 256]  # diffusion sampling steps, one row of the table each
sampler = "ancestral"  # see sample.py
num_samples = 64  # for genppl and entropy
length = 0  # tokens per sample; 0: the smallest context among model and judge
temperature = 1.0
top_k = 0
top_p = 1.0  # of diffusion samples, and where acceptance is measured
ar_top_p = [1.0]  # of autoregressive samples: one row of the table each
draft = ""  # for acceptance: drafters of ckpt, with commas between them; see sample.py
prompts = ""  # for acceptance: a prompts.jsonl of data/cnn_dailymail, also for ROUGE-2; '': from validation text
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
    """(n, T + 1 if causal else T) int64 -> nats per token and its standard error over batches (None if there is one).

    A causal model sees each block from its own beginning; the first of the T + 1 tokens is context only.
    """
    ar, device = model.config.causal, model.wte.weight.device

    def nats_of(i):
        b, noise = batches[i].to(device), generator(cfg.seed, "nelbo", i, device=device)
        return (ar_loss(model, b) if ar else nelbo(model, b, noise)).item()

    batches = [b for _ in range(1 if ar else cfg.draws) for b in x.split(cfg.batch_size)]
    values = torch.tensor(spread(nats_of, range(len(batches)), "likelihood"))
    weights = torch.tensor([float(len(b)) for b in x.split(cfg.batch_size)])
    values = values.view(-1, len(weights)).mean(0)  # over the draws: only other text is independent
    mean = (values * weights).sum() / weights.sum()
    if len(weights) == 1:
        return mean.item(), None
    error = ((values - mean).square() * weights).sum() / weights.sum() / (len(weights) - 1)
    return mean.item(), error.sqrt().item()


@torch.no_grad()
def judge_nats(judge, x, counted, batch_size):
    """(n, L) int64, (n, L) bool -> nats per counted token under the judge, in windows of the judge's context.

    The first token has nothing before it and must not be counted.
    """
    size, device = judge.config.block_size, judge.wte.weight.device

    def nats_of(i):
        rows, total = slice(i, i + batch_size), 0.0
        for start in range(0, x.size(1) - 1, size):
            window, weights = (a[rows, start : start + size + 1].to(device) for a in (x, counted))
            h = judge.hidden(window[:, :-1]).flatten(0, 1)
            total += judge.nll(h, window[:, 1:].flatten(), weights[:, 1:].flatten().float()).item()
        return total

    return sum(spread(nats_of, range(0, len(x), batch_size), "judging")) / counted.sum().item()


@torch.no_grad()
def judge_features(judge, x, batch_size):
    """(n, L) int64 -> (n, C) on the CPU: the judge's last hidden state, as MAUVE takes it from GPT-2."""
    x = x[:, -judge.config.block_size :]
    rows = range(0, len(x), batch_size)
    parts = spread(
        lambda i: judge.hidden(x[i : i + batch_size].to(judge.wte.weight.device))[:, -1].cpu(), rows, "mauve"
    )
    return torch.cat(parts).float().numpy()


def retokenized(x, prefix, decode, encode):
    """(n, L) int64 -> (n, M) int64, padded at the end, (n, M) bool: which tokens count. End-of-text stays one token."""
    texts = [[encode(decode(part)) for part in (row[:prefix], row[prefix:])] for row in x.tolist()]
    longest = max(len(known) + len(new) for known, new in texts)
    y, counted = torch.zeros(len(x), longest, dtype=torch.int64), torch.zeros(len(x), longest, dtype=torch.bool)
    for i, (known, new) in enumerate(texts):
        y[i, : len(known) + len(new)] = torch.tensor(known + new)
        counted[i, max(len(known), 1) : len(known) + len(new)] = True
    return y, counted


def self_bleu(rows, longest=4):
    """Lists of tokens, all of one length -> the mean BLEU of each of them against all others, without smoothing.

    An n-gram's count is clipped at its count in that other row which has most of it: one of the two highest counts.
    """
    log_precision = [0.0] * len(rows)
    for n in range(1, longest + 1):
        counts = [collections.Counter(zip(*(row[i:] for i in range(n)), strict=False)) for row in rows]
        best = {}  # n-gram -> its highest count in a row, how many rows have that, the next count
        for c in counts:
            for gram, k in c.items():
                top, rows_with_it, second = best.get(gram, (0, 0, 0))
                if k > top:
                    best[gram] = k, 1, top
                elif k == top:
                    best[gram] = top, rows_with_it + 1, second
                else:
                    best[gram] = top, rows_with_it, max(second, k)
        for i, c in enumerate(counts):
            hits = 0
            for gram, k in c.items():
                top, rows_with_it, second = best[gram]
                hits += min(k, second if k == top and rows_with_it == 1 else top)
            log_precision[i] += math.log(hits / c.total()) / longest if hits else -math.inf
    return sum(map(math.exp, log_precision)) / len(rows)


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


@torch.no_grad()
def lambada(model, passages, cfg, largest=8):
    """[(context ids, word ids), ...] -> accuracy, and perplexity of the last words (per word, not per token).

    A word is right if each of its tokens is the most probable one; a diffusion model is shown all of them masked, in
    one forward. Its perplexity is the bound of nelbo on the m tokens of the word, sum over l = 1 ... m of 1/l times the
    mean over subsets S of l tokens of -log p(S | the others). exact: over all 2^m - 1 subsets, so longer words than
    `largest` tokens are left out of all perplexities; monte_carlo: `draws` random subsets instead. A passage whose
    word leaves no room for context is skipped.
    """
    causal, size, device = model.config.causal, model.config.block_size, model.wte.weight.device

    def log_p(x, masked):
        """(n + m), (S, m) bool -> (S, m, V) log-probabilities of the last m tokens with those masked."""
        xt = x.repeat(len(masked), 1)
        xt[:, -masked.size(1) :].masked_fill_(masked, model.mask_id)
        return predict(xt, masked.size(1))

    def predict(xt, m):
        """(S, n) -> (S, m, V) log-probabilities of the last m places; logits in float32, as large ones need."""
        h = model.hidden(xt)[:, -m:]
        with torch.autocast(device.type, enabled=False):
            return model.head(h.float()).log_softmax(-1)

    def nats(x, masked):
        """-> (S): 1/l sum over a subset's l tokens of -log p."""
        picked = log_p(x, masked).gather(2, x[-masked.size(1) :].expand(len(masked), -1)[..., None]).squeeze(2)
        return -(picked * masked).sum(1) / masked.sum(1)

    def one(i):
        context, word = passages[i]
        m, x = len(word), torch.tensor((context + word)[-size:], device=device)
        if causal:
            p = predict(x[None, :-1], m)[0]  # (m, V)
            nats_of_word = -p.gather(1, x[-m:, None]).sum().item() if m <= largest else None
            return (p.argmax(1) == x[-m:]).all().item(), nats_of_word, None
        everything = torch.ones(1, m, dtype=torch.bool, device=device)
        hit = (log_p(x, everything)[0].argmax(1) == x[-m:]).all().item()
        if m > largest:
            return hit, None, None
        subsets = torch.tensor(list(itertools.product((False, True), repeat=m))[1:], device=device)  # (2^m - 1, m)
        sizes = subsets.sum(1)
        weights = 1 / torch.tensor([math.comb(m, k) for k in range(1, m + 1)], device=device)[sizes - 1]  # mean over S
        noise = generator(cfg.seed, "lambada", i)
        n_masks = torch.randint(1, m + 1, (cfg.draws, 1), generator=noise)
        drawn = (torch.rand(cfg.draws, m, generator=noise).argsort(1).argsort(1) < n_masks).to(device)
        return hit, (weights * nats(x, subsets)).sum().item(), m * nats(x, drawn).mean().item()

    passages = [(context, word) for context, word in passages if len(word) < size]
    if not any(len(word) <= largest for _, word in passages):
        raise UserError(f"No passage ends with a word of at most {largest} tokens that leaves room for its context.")
    rows = spread(one, range(len(passages)), "lambada")
    exact = [r[1] for r in rows if r[1] is not None]
    row = {"accuracy": sum(r[0] for r in rows) / len(rows), "passages": len(rows), "words_in_ppl": len(exact)}
    row["ppl"] = math.exp(sum(exact) / len(exact))
    if not causal:
        row["ppl_monte_carlo"] = math.exp(sum(r[2] for r in rows if r[2] is not None) / len(exact))
    return row


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


def seconds_per_sample(model, meta, cfg, n_steps, size, batch, repeats=3):
    """-> the median over repeats of the seconds that `batch` samples of `size` tokens take at once, over batch."""
    template, times = empty_pages(model, meta, batch, size).to(model.wte.weight.device), []
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
    t = 1.96 + 2.5 / (len(values) - 1)  # the quantile, to 2 % for n > 6
    return values.mean().item(), t * (values.std() / len(values) ** 0.5).item()


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


def rouge_2(target, drafters, prompts, size, references, meta, cfg):
    """-> {who: (mean ROUGE-2 F1 against the references, its standard error)} of the target and of each speculation."""
    from rouge_score import rouge_scorer

    scorer, decode, P = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True), data.encoder(meta)[1], prompts.size(1)
    settings, scores = (cfg.temperature, cfg.top_k, cfg.top_p), {}

    def score(x):
        texts = [decode(row).split("<|endoftext|>")[0] for row in x[:, P:].tolist()]
        pairs = zip(references, texts, strict=True)
        f1 = torch.tensor([scorer.score(reference, text)["rouge2"].fmeasure for reference, text in pairs])
        return f1.mean().item(), (f1.std() / len(f1) ** 0.5).item()

    noise = generator(cfg.seed, "target", device=prompts.device)
    scores["the target alone"] = score(target.generate(prompts, size - P, *settings, noise))
    for path, drafter in drafters.items():
        noise = generator(cfg.seed, "speculate", device=prompts.device)
        x, _ = speculate(target, drafter, prompts, size - P, cfg.gamma, *settings, noise)
        scores[path] = score(x)
    return scores


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
        row["counted"] = acceptance(counts)
        row["counted_at"] = [a / t if t else None for a, t in zip(counts.accepted, counts.tested, strict=True)]
        row["tokens_per_call"] = tokens_per_call(counts)
        measured = time_gammas(target, drafter, prompts[:1], n_new, (*settings, noise))
        row["gamma"], row["predicted"] = best_gamma(drafter, counts, row["alpha"], measured)
        row["c"], row["call"] = measured[row["gamma"]]
        ratios = []
        for i, one in enumerate(prompts[:24].split(1)):  # the same prompt with and without, one after the other
            began = time.perf_counter()
            target.generate(one, n_new, *settings, generator(cfg.seed, i, device=device)).cpu()
            plain = time.perf_counter()
            speculate(target, drafter, one, n_new, row["gamma"], *settings, generator(cfg.seed, i, device=device))
            ratios.append((plain - began) / (time.perf_counter() - plain))
        row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(ratios))
        rows.append(row)
    return rows


def check(cfg):
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
    drafters = {path: prepare_drafter(path, target, meta, cfg) for path in paths_of(cfg.draft)}
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


def evaluate(cfg):
    """-> dict: everything eval.json holds. Reads all files before any work, so that mistakes show at once."""
    wanted = check(cfg)
    device, note = join_processes(cfg)
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    files = {path: load_samples(path) for path in paths_of(cfg.samples)} if cfg.samples else {}
    models = {} if files else {path: prepare(path, cfg) for path in paths_of(cfg.ckpt)}
    metas = {path: checkpoint["meta"] for path, (_, checkpoint, *_) in models.items()}
    metas |= {path: about["meta"] for path, (_, about) in files.items()}
    sources = [checkpoint["config"]["dataset"] for _, checkpoint, *_ in models.values()]
    sources += [about["dataset"] for _, about in files.values()]
    meta = next(iter(metas.values()))
    if "acceptance" in wanted:
        target, drafters = load_drafters(cfg, models, meta)
        prompts = load_prompts(cfg, meta) if cfg.prompts else None
    judge, judge_meta = load_judge(cfg, wanted, meta, device)
    if "lambada" in wanted:
        passages, metas["the passages"] = load_passages(cfg.passages)
    if any(w in wanted for w in ("nelbo", "genppl", "selfbleu", "mauve")) or (
        "acceptance" in wanted and not cfg.prompts
    ):
        corpus = data.load(cfg.dataset or sources[0])
        metas["the dataset"] = corpus.meta
    for path, other in metas.items():
        if not data.same_vocabulary(meta, other):
            raise UserError(f"{path}: another vocabulary than {next(iter(metas))}'s; their numbers do not compare.")
    lengths = {x.size(1) for x, _ in files.values()} | ({cfg.length} if cfg.length else set())
    if len(lengths) > 1 or len({(its["prefix"], its["continuations"]) for _, its in files.values()}) > 1:
        raise UserError(f"Texts of {sorted(lengths)} tokens, or with other prefixes, do not compare. Give one kind.")
    sizes = [m[0].config.block_size for m in models.values()] + ([judge.config.block_size] if judge else [])
    size = min(lengths, default=min(sizes, default=0))
    report = {"hardware": note, "torch": torch.__version__, "seed": cfg.seed, "tokens_per_sample": size}
    report |= {"retokenize": cfg.retokenize} | ({} if files else {"sampler": cfg.sampler})
    report["processes"] = dist.get_world_size() if dist.is_initialized() else 1
    report["files"] = {path: {k: v for k, v in its.items() if k != "meta"} for path, (_, its) in files.items()}
    report |= {"likelihood": {}, "lambada": {}, "rows": [], "latency": [], "timed": {}, "drafters": []}

    if "nelbo" in wanted:
        report["likelihood"] = likelihood_of_all(models, corpus, meta, autocast, cfg)
    if "lambada" in wanted:
        for path, (model, *_) in models.items():
            with autocast:
                report["lambada"][path] = lambada(model, passages, cfg)
    if {"genppl", "selfbleu", "mauve"} & set(wanted):
        judged = functools.partial(quality, judge=judge, metas=(meta, judge_meta), wanted=wanted, cfg=cfg)
        report["rows"] = quality_of_all(models, files, corpus, judged, meta, size, autocast, cfg)
    if "latency" in wanted:
        report["latency"], report["timed"] = latency_of_all(models, meta, size, cfg)
    if "acceptance" in wanted:
        length, references = cfg.length or target.config.block_size, None
        if cfg.prompts:
            x, references = prompts
            if x.size(1) >= length:
                raise UserError(f"The prompts have {x.size(1)} tokens and leave no room in {length}. Use --length.")
        else:
            x = data.blocks(corpus.val, max(1, length // 8), cfg.num_samples)
        with next(iter(models.values()))[2]:
            report["drafters"] = drafters_table(target, drafters, x.to(device), length, cfg)
            if references:
                report["rouge2"] = rouge_2(target, drafters, x.to(device), length, references, meta, cfg)
    return report


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


def short(drafter):
    """out/drafters/lstm/ckpt.pt -> out/drafters/lstm"""
    return drafter.removesuffix("/ckpt.pt").removesuffix("/ngram.txt")


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
    if report["drafters"]:
        names = ("drafter", "alpha", "+-", "counted", "by place", "tokens/call", "gamma", "c", "call")
        names += ("predicted", "measured")
        wide = max(len("drafter"), *(len(short(r["drafter"])) for r in report["drafters"]))
        widths = f"\n{{:{wide}s}}" + " {:>6s} {:>5s} {:>7s} {:>24s} {:>11s} {:>5s} {:>6s} {:>5s} {:>9s} {:>14s}"
        lines.append(widths.format(*names))
        for r in report["drafters"]:
            places = " ".join("-" if a is None else f"{a:.2f}" for a in r["counted_at"])
            lines.append(
                f"{short(r['drafter']):{wide}s} {r['alpha']:6.3f} {r['alpha_error']:5.3f} {r['counted']:7.3f} "
                f"{places:>24s} {r['tokens_per_call']:11.2f} {r['gamma']:5d} {r['c']:6.3f} "
                f"{r['call']:5.2f} {r['predicted']:9.2f} {r['speedup']:7.2f} +- {r['speedup_error']:.2f}"
            )
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
