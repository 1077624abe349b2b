"""
Many samples into a file, which eval.py --samples measures; many GPUs share the work.
$ python -m extras.save_samples --ckpt=out/sdtt_pydoc/round_3.pt --steps=16 --out=out/round_3.jsonl
$ torchrun --standalone --nproc_per_node=8 -m extras.save_samples --ckpt=sdtt:kld:7 \
    --num_samples=1024 --out=out/kld7.jsonl
$ python -m extras.save_samples --prefix=50 --length=100 --num_samples=500 --continuations=5 \
    --out=out/c.jsonl                                   (continuations of validation texts)
A line is one JSON object: first what the samples are, then {"tokens": [...], "text": "..."} each.
The setting with prefixes is SDTT's for MAUVE: Deschenaux & Gulcehre 2024, arXiv 2410.21035.
"""

import contextlib
import json

import torch

import data
import sample
from configurator import UserError, check_at_least, configure, print_once
from plumbing.checks import check_cooling
from plumbing.parallel import is_first_process, join_processes, leave_processes
from speculative import draw_many, empty_templates, sampler_and_steps

# --------------------------------------------------------------------------------------------------
# what to write
ckpt = "out/pydoc/ckpt.pt"  # one
out = ""  # the file, NAME.jsonl
num_samples = 256
batch_size = 16  # sequences per forward pass, on each process
length = 0  # tokens, with the prefix; 0: the context; longer is allowed
prefix = 0  # tokens of a validation text that the samples continue
continuations = 1  # samples that continue the same text
dataset = ""  # whose validation text: a name under data/ or a folder; '': what ckpt was trained on
# how to draw it
steps = 0  # diffusion: forward passes; 0: what the checkpoint was made for, else 64
sampler = ""  # '' (own, or spread) | 'spread' | 'ancestral' | 'first_hitting' | 'confidence'
temperature = 1.0  # 0: always the most probable token
cooling = 1.0  # diffusion: the temperature of the last step over that of the first
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
# the run
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "off"  # 'off' | 'on': torch.compile, in half a minute; a GPT is 1.2 to 1.4 times as fast
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def check_save(cfg, size):
    """size: tokens of a sample."""
    if not cfg.out:
        raise UserError("Where to? Give --out=FILE.jsonl.")
    check_at_least(cfg, continuations=1)
    if not 0 <= cfg.prefix < size:
        raise UserError(f"prefix is {cfg.prefix}; it must be from 0 to {size - 1}.")
    if cfg.num_samples % cfg.continuations:
        raise UserError(
            f"num_samples {cfg.num_samples} does not divide into {cfg.continuations} continuations."
        )


def put_prefixes(templates, meta, dataset, cfg):
    """
    (N, L) int64 -> the same, beginning with validation texts: each of them in as many rows, one
    below the other, as there are continuations.
    """
    corpus = data.load(dataset)
    if not data.same_vocabulary(meta, corpus.meta):
        raise UserError(
            f"{dataset} has another vocabulary than {cfg.ckpt}: its text cannot be continued."
        )
    size = templates.size(1)
    n = cfg.num_samples // cfg.continuations
    texts = data.blocks(corpus.val, size, n)  # (n, L)
    if len(texts) < n:
        raise UserError(
            f"{dataset} has {len(texts)} validation texts of {size} tokens, fewer than {n}."
        )
    templates = templates.clone()
    beginnings = texts[:, : cfg.prefix].repeat_interleave(cfg.continuations, 0)  # (N, prefix)
    templates[:, : cfg.prefix] = beginnings
    return templates


def samples_header(cfg, *, causal, sampler, steps, note, dataset, meta):
    """-> what the first line of a file of samples says of them."""
    # a script need not have these knobs
    absent = {"cooling": 1.0, "top_k": 0, "prefix": 0, "continuations": 1}
    keys = ("ckpt", "temperature", "cooling", "top_k", "top_p", "seed", "prefix", "continuations")
    header = {key: getattr(cfg, key, absent.get(key)) for key in keys}
    if causal or steps == 1:
        header["cooling"] = 1.0  # there was no second step of diffusion
    header |= {"causal": causal, "sampler": sampler, "steps": steps, "hardware": note}
    return header | {"dataset": dataset, "meta": meta}


def main(cfg):
    sample.check_knobs(cfg)
    join_processes(cfg)
    model, checkpoint, autocast, note = sample.load(cfg.ckpt, cfg)
    check_cooling([model], cfg)
    meta = checkpoint["meta"]
    size = cfg.length or model.config.block_size
    check_save(cfg, size)
    dataset = cfg.dataset or checkpoint["config"]["dataset"]
    sampler, steps = sampler_and_steps(cfg.sampler, cfg.steps, checkpoint.get("made_for"))
    templates = empty_templates(model, meta, cfg.num_samples, size)  # (N, L)
    if cfg.prefix:
        templates = put_prefixes(templates, meta, dataset, cfg)

    writes = is_first_process()
    # the file is opened now: that it cannot be written should not be found out after hours
    with data.replacing(cfg.out, "w") if writes else contextlib.nullcontext() as f:
        with torch.no_grad(), autocast:
            x = draw_many(
                model,
                templates,
                cfg.batch_size,
                cfg.seed,
                n_steps=steps,
                sampler=sampler,
                temperature=cfg.temperature,
                cooling=cfg.cooling,
                top_k=cfg.top_k,
                top_p=cfg.top_p,
            )
        if writes:
            causal = model.config.causal
            if causal:
                sampler = None  # a GPT writes token by token
                steps = size
            about = {"sampler": sampler, "steps": steps, "note": note, "dataset": dataset}
            header = samples_header(cfg, causal=causal, meta=meta, **about)
            f.write(json.dumps(header) + "\n")
            _, decode = data.encoder(meta)
            for tokens in x.tolist():
                f.write(json.dumps({"tokens": tokens, "text": decode(tokens)}) + "\n")
    print_once(f"{len(x)} samples are in {cfg.out}: measure them with eval.py --samples={cfg.out}")
    leave_processes()


if __name__ == "__main__":
    main(cfg)
