"""
Text out of any checkpoint.
$ python sample.py --ckpt=out/pydoc/ckpt.pt --steps=64                                             (a few seconds)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --num_samples=1 --trace=True            (watch the text appear)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --infill='The ___ statement is used'
$ python sample.py --ckpt=out/pydoc/ckpt.pt,out/sdtt_pydoc/round_3.pt --steps=8                      (side by side)
$ python sample.py --ckpt=out/pydoc_ar/ckpt.pt --draft=lookup                                  (speculative decoding)
$ torchrun --standalone --nproc_per_node=8 sample.py --ckpt=sdtt:kld:7 --num_samples=1024 --save=out/kld7.jsonl
"""

import contextlib
import json
import os
import sys
import time

import torch

import data
from config.common import *
from config.sampling import *
from configurator import UserError, check, configure, print_once
from drafters import load_drafter, load_to_sample
from plumbing.checkpoints import paths_of
from plumbing.parallel import join_processes, leave_processes, rank_and_world
from plumbing.published import save_published
from plumbing.randomness import seeded
from plumbing.terminal import coloured, print_samples, tracer
from speculative import (
    acceptance,
    choose_gamma,
    draw_many,
    draw_samples,
    empty_pages,
    known_text,
    settled,
    speculate,
    tokens_per_call,
)

# ----------------------------------------------------------------------------------------------------------------------
export = ""  # a folder: also save the model there as model.safetensors and config.json, to publish it
num_samples = 4  # at least 1
steps = 0  # diffusion: K calls of the network (in each window); 0: the checkpoint's own, else 64, at least 0
prompt = ""  # text that the samples begin with, or FILE:path
infill = ""  # diffusion: a text with blanks to fill, one token each, or FILE:path
blank = "_"  # what a blank looks like in infill
gamma = 0  # tokens that --draft guesses at a time; 0: the fastest by a short trial, from 0 to 64
trace = False  # show one sample appearing (diffusion)
save = ""  # a .jsonl file: write the samples there, for eval.py --samples; torchrun shares the work
prefix = 0  # of saved samples: they continue so many tokens of a validation text, at least 0
continuations = 1  # of saved samples: so many continue the same text, at least 1
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def save_samples(cfg, model, checkpoint, note):
    """Writes one JSON object a line: first what the samples are, then {"tokens", "text"} of each."""
    meta, decode = checkpoint["meta"], data.encoder(checkpoint["meta"])[1]
    cfg, size = settled(cfg, checkpoint), cfg.length or model.config.block_size
    if cfg.prefix >= size:
        raise UserError(f"prefix is {cfg.prefix}; it must be from 0 to {size - 1}.")
    if cfg.num_samples % cfg.continuations:
        raise UserError(f"num_samples {cfg.num_samples} does not divide into {cfg.continuations} continuations.")
    dataset = cfg.dataset or checkpoint["config"]["dataset"]
    templates = empty_pages(model, meta, cfg.num_samples, size)
    if cfg.prefix:
        corpus = data.load(dataset)
        if not data.same_vocabulary(meta, corpus.meta):
            raise UserError(f"{dataset} has another vocabulary than {cfg.ckpt}: its text cannot be continued.")
        n = cfg.num_samples // cfg.continuations
        texts = data.blocks(corpus.val, size, n)
        if len(texts) < n:
            raise UserError(f"{dataset} has {len(texts)} validation texts of {size} tokens, fewer than {n}.")
        templates[:, : cfg.prefix] = texts.repeat_interleave(cfg.continuations, 0)[:, : cfg.prefix]
    about = {k: getattr(cfg, k) for k in ("ckpt", "sampler", "temperature", "top_k", "top_p", "seed", "prefix")}
    about |= {"continuations": cfg.continuations, "steps": size if model.config.causal else cfg.steps}
    about |= {"causal": model.config.causal, "hardware": note, "dataset": dataset, "meta": meta}
    writes = rank_and_world()[0] == 0
    with data.replacing(cfg.save, "w") if writes else contextlib.nullcontext() as f:  # opened now, not after hours
        x = draw_many(model, templates, cfg, cfg.steps)
        lines = [about, *({"tokens": row, "text": decode(row)} for row in x.tolist())]
        if writes:
            f.writelines(json.dumps(line) + "\n" for line in lines)
    print_once(f"{len(x)} samples saved in {cfg.save}")


def make_template(cfg, model, meta):
    """prompt, infill and length -> (1, L) int64 with -1 at the blanks."""
    encode, _ = data.encoder(meta)
    size = cfg.length or model.config.block_size
    if cfg.prompt and cfg.infill:
        raise UserError("Give either --prompt or --infill: a template with blanks may begin with any text.")
    if cfg.infill:
        if cfg.length or not cfg.blank:
            raise UserError("--infill takes its length from the template, and --blank must not be empty.")
        parts = read_text(cfg.infill).split(cfg.blank)
        if len(parts) == 1:
            raise UserError(f"The infill template has no blank {cfg.blank!r}. Mark blanks with it, or set --blank.")
        ids = encode(parts[0])
        for part in parts[1:]:
            ids += [-1] + encode(part)
        return torch.tensor([ids])
    ids = encode(read_text(cfg.prompt)) if cfg.prompt else [data.start_token(meta)] * model.config.causal
    if len(ids) >= size:
        raise UserError(f"The prompt has {len(ids)} tokens and leaves no room in {size}. Use --length={len(ids) + 64}.")
    return torch.tensor([ids + [-1] * (size - len(ids))])


def read_text(text):
    """'FILE:path' -> the file's text; anything else is the text itself."""
    if not text.startswith("FILE:"):
        return text
    if not os.path.isfile(text[5:]):
        raise UserError(f"{text[5:]} is not a file.")
    with open(text[5:], "rb") as f:
        return data.as_text(f.read(), text[5:])


def refuse_bad_knobs(cfg, paths):
    """Refuses knobs that do not go together, before any work."""
    check(cfg, __file__)
    if cfg.save and (len(paths) > 1 or cfg.prompt or cfg.infill or cfg.draft or cfg.trace):
        raise UserError("--save takes one --ckpt, and --prefix instead of --prompt; no --infill, --draft or --trace.")
    if not cfg.save and (cfg.prefix or cfg.continuations > 1 or cfg.dataset):
        raise UserError("--prefix, --continuations and --dataset are for samples that --save writes. Use --prompt.")
    if cfg.export and len(paths) > 1:
        raise UserError("--export saves one model: give one --ckpt.")
    if "WORLD_SIZE" in os.environ and not cfg.save:
        raise UserError("torchrun shares the work of --save=FILE.jsonl only. Run it as: python sample.py ...")


def end_of(row, start, eos):
    """(L) int64 -> the place of its first eos from `start` on, else L."""
    found = (row[start:] == eos).nonzero() if eos is not None else ()
    return start + int(found[0]) if len(found) else len(row)


def texts_of(model, meta, template, autocast, note, cfg):
    """(1, L) int64, -1 at the blanks -> num_samples texts, and a line on how long they took."""
    device, decode, n = model.wte.weight.device, data.encoder(meta)[1], 1 if cfg.trace else cfg.num_samples
    noise, n_known = seeded(cfg.seed, device=device), int((template[0] >= 0).sum())
    eos = meta.get("eot") if model.config.causal else None  # an autoregressive text ends there
    counts, settings = None, (cfg.temperature, cfg.top_k, cfg.top_p, noise, eos)
    with torch.no_grad(), autocast:
        if cfg.draft:
            drafter, known = load_drafter(cfg.draft, model, meta, cfg), known_text(template).to(device).expand(n, -1)
            n_new, trial = template.size(1) - n_known, seeded(cfg.seed, "trial", device=device)
            gamma = choose_gamma(model, drafter, known, n_new, cfg, trial)
        elif cfg.compile == "on":  # a first draw compiles: not part of the time
            draw_samples(model, template.to(device).expand(n, -1), cfg, cfg.steps, seeded(device=device))
        began = time.perf_counter()  # the trial does not count
        if cfg.draft:
            x, counts = speculate(model, drafter, known, n_new, gamma, *settings)
        else:
            watch = tracer(decode, model.mask_id) if cfg.trace else None
            x = draw_samples(model, template.to(device).expand(n, -1), cfg, cfg.steps, noise, watch, eos)
        x = x.cpu()
        seconds = time.perf_counter() - began
    rows = [row[: end_of(row, n_known, eos)] for row in x]
    texts, total = [decode(row.tolist()) for row in rows], sum(map(len, rows))
    took = f"{total} tokens in {seconds:.2f} s on {note}, seed {cfg.seed}"
    if counts:
        drafted = [places[: len(row)] for row, places in zip(rows, counts.drafted.cpu(), strict=True)]
        share = torch.cat(drafted).sum() / max(total - n * n_known, 1)
        took += f"\n{share:.0%} of the tokens were drafted; gamma {gamma}, alpha {acceptance(counts):.2f}, "
        took += f"{tokens_per_call(counts):.2f} tokens per target call"
        if sys.stdout.isatty():
            texts = [coloured(row, places, decode) for row, places in zip(rows, drafted, strict=True)]
    return texts, took


def main(cfg):
    sys.stdout.reconfigure(errors="replace")  # a Windows pipe cannot write every character
    paths = paths_of(cfg.ckpt)
    refuse_bad_knobs(cfg, paths)
    join_processes(cfg)
    models = [load_to_sample(path, cfg) for path in paths]
    if cfg.export and rank_and_world()[0] == 0:
        save_published(cfg.export, *models[0][:2])
        print(f"The model is in {cfg.export}")
    if cfg.save:
        (model, checkpoint, autocast, note), *_ = models
        with torch.no_grad(), autocast:
            save_samples(cfg, model, checkpoint, note)
        return leave_processes()
    templates = [make_template(cfg, model, checkpoint["meta"]) for model, checkpoint, *_ in models]
    if cfg.trace and (len(models) > 1 or models[0][0].config.causal):
        raise UserError("--trace shows masks disappearing: it takes one model, not several or an autoregressive one.")
    drawn = []
    for (model, checkpoint, autocast, note), template in zip(models, templates, strict=True):
        drawn.append(texts_of(model, checkpoint["meta"], template, autocast, note, settled(cfg, checkpoint)))
    print_samples(paths, drawn)


if __name__ == "__main__":
    main(cfg)
