"""
ROUGE-2 of summaries that a GPT writes, alone and with each of its drafters: speculative decoding
leaves the distribution as it is, and the score shows it.
$ python -m extras.rouge --ckpt=gpt2 --draft=lookup --prompts=data/cnn_dailymail/prompts.jsonl
Lin 2004, by the package rouge-score (stemmed, F1): pip install rouge-score
"""

import importlib.util

import torch
from tqdm import tqdm

import data
from configurator import UserError, check_at_least, configure
from drafters import load_drafter, load_model
from eval import sampling_context
from plumbing.checkpoints import paths_of
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import pick_device
from plumbing.randomness import seeded
from speculative import generate, speculate

# --------------------------------------------------------------------------------------------------
ckpt = "gpt2"  # the target: a GPT
draft = "lookup"  # drafters, checkpoints (a,b), ngram.txt or 'lookup'; '': the target alone
prompts = "data/cnn_dailymail/prompts.jsonl"  # {"prompt", "reference"} a line
num_samples = 256  # prompts, at most
length = 640  # tokens with the prompt
gamma = 4  # tokens proposed at a time
temperature = 1.0  # 0: always the most probable token
top_k = 2  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
batch_size = 16  # sequences per forward pass, on each process
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (bfloat16 if it is fast here) | 'float32' | 'bfloat16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
out = ""  # a .json file for the numbers; '': they are only printed
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def check_package():
    if not importlib.util.find_spec("rouge_score"):
        raise UserError("ROUGE needs a package. Install it with: pip install rouge-score")


def rouge_2_f1(references, texts):
    """[text, ...], [text, ...] -> the mean F1 of ROUGE-2 against the references, its error."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True)
    scores = []
    for reference, text in zip(references, texts, strict=True):
        scores.append(scorer.score(reference, text)["rouge2"].fmeasure)
    scores = torch.tensor(scores)
    return scores.mean().item(), (scores.std() / len(scores) ** 0.5).item()


def text_of(row, start, meta):
    """(L,) int64 -> the text from `start` up to the end-of-text."""
    tokens = row[start:].tolist()
    if meta.get("eot") in tokens:
        tokens = tokens[: tokens.index(meta["eot"])]
    return data.encoder(meta)[1](tokens)


def texts_alone(target, x, n_new, meta, cfg):
    """(n, P) int64 -> [text, ...] that the target writes, in batches."""
    texts = []
    for i, part in enumerate(x.split(cfg.batch_size)):
        rows = generate(
            target,
            part,
            n_new,
            generator=seeded(cfg.seed, "target", i, device=x.device),
            eos=meta.get("eot"),
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
        )
        texts += [text_of(row, x.size(1), meta) for row in rows]
    return texts


def texts_with(drafter, target, x, n_new, meta, cfg):
    """(n, P) int64 -> [text, ...] that the target writes with the drafter, one at a time."""
    texts = []
    for i, prompt in enumerate(tqdm(x, leave=False)):
        row = speculate(
            target,
            drafter,
            prompt,
            n_new,
            gamma=cfg.gamma,
            generator=seeded(cfg.seed, "drafts", i, device=x.device),
            eos=meta.get("eot"),
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
        )
        texts.append(text_of(row, x.size(1), meta))
    return texts


def evaluate(cfg):
    """-> {who writes: (ROUGE-2, its standard error)}"""
    check_package()
    device, _, _ = pick_device(cfg.device, cfg.dtype)
    target, checkpoint = load_model(cfg.ckpt, device, cfg.attention)
    if not target.config.causal:
        raise UserError(f"{cfg.ckpt} is a diffusion model; the target is a GPT.")
    meta = checkpoint["meta"]
    names = paths_of(cfg.draft) if cfg.draft else []
    drafters = {name: load_drafter(name, target, meta, cfg.attention) for name in names}
    x, references = data.load_prompts(cfg.prompts, meta, cfg.num_samples)
    x = x.to(device)
    n_new = cfg.length - x.size(1)
    if n_new < 1 or cfg.length > target.config.block_size:
        raise UserError(
            f"length is {cfg.length}; from {x.size(1) + 1} (the prompts and a token) to the "
            f"context of {target.config.block_size} is possible."
        )

    with sampling_context(target, cfg):
        texts = {"the target alone": texts_alone(target, x, n_new, meta, cfg)}
        for name, drafter in drafters.items():
            texts[name] = texts_with(drafter, target, x, n_new, meta, cfg)
    return {who: rouge_2_f1(references, written) for who, written in texts.items()}


def main(cfg):
    check_sampling_knobs(cfg)
    check_at_least(cfg, num_samples=7, gamma=1)
    report = evaluate(cfg)
    for who, (mean, error) in report.items():
        print(f"{who}: ROUGE-2 {mean:.3f} +- {error:.3f}")
    if cfg.out:
        data.write_json(cfg.out, report)


if __name__ == "__main__":
    main(cfg)
