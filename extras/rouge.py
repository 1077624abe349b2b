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
from drafters import check_context, load_drafter, load_model
from eval import sampling_context
from metrics import mean_and_error
from plumbing.checkpoints import paths_of
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import check_attention, pick_device
from plumbing.randomness import seeded
from sample import settings_of, text_end
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
batch_size = 16  # sequences per forward pass
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
out = ""  # a .json file for the numbers; '': they are only printed
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def check_package():
    if not importlib.util.find_spec("rouge_score"):
        raise UserError("ROUGE needs a package. Install it with: pip install rouge-score")


def rouge_2_f1(references, texts):
    """
    [text, ...], [text, ...] -> the mean F1 of ROUGE-2 against the references, half the width of its
    95 % interval.
    """
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True)
    scores = []
    for reference, text in zip(references, texts, strict=True):
        scores.append(scorer.score(reference, text)["rouge2"].fmeasure)
    return mean_and_error(torch.tensor(scores))


def rows_alone(target, x, n_new, eot, cfg):
    """(n, P) int64 -> [(P + n_new,) int64, ...] that the target writes, in batches."""
    rows = []
    for i, part in enumerate(x.split(cfg.batch_size)):
        generator = seeded(cfg.seed, "target", i, device=x.device)
        options = {"generator": generator, "eos": eot, **settings_of(cfg)}
        rows += generate(target, part, n_new, **options)
    return rows


def rows_with(drafter, target, x, n_new, eot, cfg):
    """(n, P) int64 -> [(at most P + n_new,) int64, ...] that it writes with the drafter."""
    rows = []
    for i, prompt in enumerate(tqdm(x, leave=False)):
        generator = seeded(cfg.seed, "drafts", i, device=x.device)
        options = {"generator": generator, "eos": eot, **settings_of(cfg)}
        rows.append(speculate(target, drafter, prompt, n_new, gamma=cfg.gamma, **options))
    return rows


def texts_of(rows, n_known, meta):
    """[(L,) int64, ...] -> [text, ...]: what follows the prompt, up to the end-of-text."""
    decode = data.encoder(meta)[1]
    texts = []
    for row in rows:
        end = text_end(row, n_known, meta.get("eot"))
        texts.append(decode(row[n_known:end].tolist()))
    return texts


def evaluate(cfg):
    """-> {who writes: (ROUGE-2, half the width of its 95 % interval)}"""
    check_package()
    device, _, _ = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    target, checkpoint = load_model(cfg.ckpt, device, cfg.attention)
    if not target.config.causal:
        raise UserError(f"{cfg.ckpt} is a diffusion model; the target is a GPT.")
    meta = checkpoint["meta"]
    names = paths_of(cfg.draft) if cfg.draft else []
    with sampling_context(target, cfg):  # in which a drafter makes its cache
        drafters = {name: load_drafter(name, target, meta, cfg.attention) for name in names}
    for name, drafter in drafters.items():
        check_context(drafter, name, cfg.length)
    x, references = data.load_prompts(cfg.prompts, meta, cfg.num_samples)
    x = x.to(device)
    n_new = cfg.length - x.size(1)
    if n_new < 1 or cfg.length > target.config.block_size:
        raise UserError(
            f"length is {cfg.length}; from {x.size(1) + 1} (the prompts and a token) to the "
            f"context of {target.config.block_size} is possible."
        )

    with sampling_context(target, cfg):
        eot = meta.get("eot")
        written = {"the target alone": rows_alone(target, x, n_new, eot, cfg)}
        for name, drafter in drafters.items():
            written[name] = rows_with(drafter, target, x, n_new, eot, cfg)
    found = {}
    for who, rows in written.items():
        found[who] = rouge_2_f1(references, texts_of(rows, x.size(1), meta))
    return found


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
