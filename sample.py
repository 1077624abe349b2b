"""
Text out of any checkpoint.
$ python sample.py --ckpt=out/pydoc/ckpt.pt --steps=64                                             (a few seconds)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --num_samples=1 --trace=True            (watch the text appear)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --infill='The ___ statement is used'
$ python sample.py --ckpt=out/pydoc/ckpt.pt,out/sdtt_pydoc/round_3.pt --steps=8                      (side by side)
$ python sample.py --ckpt=out/pydoc_ar/ckpt.pt --draft=lookup                                  (speculative decoding)
$ python sample.py --ckpt=out/pydoc_ar/ckpt.pt,out/pydoc/ckpt.pt --steps=4 --html=page.html     (a page)
$ torchrun --standalone --nproc_per_node=8 sample.py --ckpt=sdtt:kld:7 --num_samples=1024 --save=out/kld7.jsonl
"""

import contextlib
import json
import sys
import time

import torch
from config.common import *
from config.sampling import *
from plumbing.refusals import refuse_odd_sampling

import data
import speculative
from configurator import UserError, check, configure, print_once
from drafters import load_drafter, load_to_sample
from plumbing.checkpoints import paths_of
from plumbing.page import frontier_of, recorder, run_of, write_page
from plumbing.parallel import join_processes, leave_processes, rank_and_world
from plumbing.published import save_published
from plumbing.randomness import seeded
from plumbing.terminal import coloured, print_samples, tracer

# ----------------------------------------------------------------------------------------------------------------------
export = (
    ""  # a folder: also save the model there as model.safetensors and config.json, to publish it
)
num_samples = 4  # at least 1
steps = 0  # diffusion: K calls of the network (in each window); 0: the checkpoint's own, else 64, at least 0
prompt = ""  # text that the samples begin with, or FILE:path
infill = ""  # diffusion: a text with blanks to fill, one token each, or FILE:path
blank = "_"  # what a blank looks like in infill
gamma = 0  # tokens that --draft guesses at a time; 0: the fastest by a short trial, from 0 to 64
trace = False  # show one sample appearing (diffusion)
html = ""  # a file: one sample of every model, replayed by a page at its measured speed; a GPT plain and with --draft
frontier = ""  # of the page: an eval.json of eval.py --what=frontier, plotted below the samples
save = ""  # a .jsonl file: write the samples there, for eval.py --samples; torchrun shares the work
prefix = 0  # of saved samples: they continue so many tokens of a validation text, at least 0
continuations = 1  # of saved samples: so many continue the same text, at least 1
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------


def save_samples(cfg, model, checkpoint, autocast, note):
    """Writes one JSON object a line: first what the samples are, then {"tokens", "text"} of each."""
    meta, decode = checkpoint["meta"], data.encoder(checkpoint["meta"])[1]
    cfg, size = speculative.settled(cfg, checkpoint), cfg.length or model.config.block_size
    if cfg.prefix >= size:
        raise UserError(f"prefix is {cfg.prefix}; it must be from 0 to {size - 1}.")
    if cfg.num_samples % cfg.continuations:
        raise UserError(
            f"num_samples {cfg.num_samples} does not divide into {cfg.continuations} continuations."
        )
    dataset = cfg.dataset or checkpoint["config"]["dataset"]
    templates = speculative.empty_pages(model, meta, cfg.num_samples, size)
    if cfg.prefix:
        corpus = data.load(dataset)
        if not data.same_vocabulary(meta, corpus.meta):
            raise UserError(
                f"{dataset} has another vocabulary than {cfg.ckpt}: its text cannot be continued."
            )
        n = cfg.num_samples // cfg.continuations
        texts = data.blocks(corpus.val, size, n)
        if len(texts) < n:
            raise UserError(
                f"{dataset} has {len(texts)} validation texts of {size} tokens, fewer than {n}."
            )
        templates[:, : cfg.prefix] = texts.repeat_interleave(cfg.continuations, 0)[:, : cfg.prefix]
    about = {
        k: getattr(cfg, k)
        for k in ("ckpt", "sampler", "temperature", "top_k", "top_p", "seed", "prefix")
    }
    about |= {
        "continuations": cfg.continuations,
        "steps": size if model.config.causal else cfg.steps,
    }
    about |= {"causal": model.config.causal, "hardware": note, "dataset": dataset, "meta": meta}
    writes = rank_and_world()[0] == 0
    # the file is opened now, not after hours
    with autocast, data.replacing(cfg.save, "w") if writes else contextlib.nullcontext() as f:
        x = speculative.draw_many(model, templates, cfg, cfg.steps)
        lines = [about, *({"tokens": row, "text": decode(row)} for row in x.tolist())]
        if writes:
            f.writelines(json.dumps(line) + "\n" for line in lines)
    print_once(f"{len(x)} samples saved in {cfg.save}")


def make_template(cfg, model, meta):
    """prompt, infill and length -> (1, L) int64 with -1 at the blanks."""
    encode, _ = data.encoder(meta)
    size = cfg.length or model.config.block_size
    if cfg.prompt and cfg.infill:
        raise UserError(
            "Give either --prompt or --infill: a template with blanks may begin with any text."
        )
    if cfg.infill:
        if cfg.length or not cfg.blank:
            raise UserError(
                "--infill takes its length from the template, and --blank must not be empty."
            )
        parts = data.read_text(cfg.infill).split(cfg.blank)
        if len(parts) == 1:
            raise UserError(
                f"The infill template has no blank {cfg.blank!r}. Mark blanks with it, or set --blank."
            )
        ids = encode(parts[0])
        for part in parts[1:]:
            ids += [-1] + encode(part)
        return torch.tensor([ids])
    ids = (
        data.encode_prompt(meta, data.read_text(cfg.prompt))
        if cfg.prompt or model.config.causal
        else []
    )
    model.source = (
        len(ids) - 1
    )  # for one that has an encoder; the last is where its own text starts
    if len(ids) >= size:
        raise UserError(
            f"The prompt has {len(ids)} tokens and leaves no room in {size}. Use --length={len(ids) + 64}."
        )
    return torch.tensor([ids + [-1] * (size - len(ids))])


def end_of(row, start, eos):
    """(L) int64 -> the place of its first eos from `start` on, else L."""
    found = (row[start:] == eos).nonzero() if eos is not None else ()
    return start + int(found[0]) if len(found) else len(row)


def texts_of(model, meta, template, autocast, note, cfg):
    """(1, L) int64, -1 at the blanks -> texts, a line on how long they took, and for the page what came when."""
    device, decode = model.wte.weight.device, data.encoder(meta)[1]
    n = 1 if cfg.trace or cfg.html else cfg.num_samples
    n_known = int((template[0] >= 0).sum())
    eos = meta.get("eot") if model.config.causal else None  # an autoregressive text ends there
    events = []
    watch = recorder(events) if cfg.html else tracer(decode, model.mask_id) if cfg.trace else None
    template = template.to(device).expand(n, -1)
    with torch.no_grad(), autocast:
        if cfg.draft:
            drafter, known = (
                load_drafter(cfg.draft, model, meta, cfg),
                speculative.known_text(template),
            )
            n_new, trial = template.size(1) - n_known, seeded(cfg.seed, "trial", device=device)
            gamma = speculative.choose_gamma(model, drafter, known, n_new, cfg, trial)

        def draw(watch=None):
            """-> samples, and Counts where there are drafts. Every call draws the same."""
            noise = seeded(cfg.seed, device=device)
            if not cfg.draft:
                return speculative.draw_samples(
                    model, template, cfg, cfg.steps, noise, watch, eos
                ), None
            settings = cfg.temperature, cfg.top_k, cfg.top_p
            return speculative.speculate(
                model, drafter, known, n_new, gamma, *settings, noise, eos, watch
            )

        if cfg.html or cfg.compile == "on":  # a first draw warms up: not part of the time
            draw()[0].cpu()
        if cfg.html:
            watch(template)
        began = time.perf_counter()  # the trial does not count
        x, counts = draw(watch)
        x = x.cpu()  # waits for the device
        seconds = time.perf_counter() - began
    source = speculative.unseen(model)  # what an encoder has read is not shown
    rows = [row[source : end_of(row, n_known, eos)] for row in x]
    texts, total = [decode(row.tolist()) for row in rows], sum(map(len, rows))
    took = f"{total} tokens in {seconds:.2f} s on {note}, seed {cfg.seed}"
    if counts:
        drafted = [
            places[source:][: len(row)]
            for row, places in zip(rows, counts.drafted.cpu(), strict=True)
        ]
        share = torch.cat(drafted).sum() / max(total - n * (n_known - source), 1)
        alpha, per_call = speculative.acceptance(counts), speculative.tokens_per_call(counts)
        took += f"\n{share:.0%} of the tokens were drafted; gamma {gamma}, alpha {alpha:.2f}, "
        took += f"{per_call:.2f} tokens per target call"
        if sys.stdout.isatty():
            texts = [
                coloured(row, places, decode) for row, places in zip(rows, drafted, strict=True)
            ]
    events = [(at, seen[source:], drafts) for at, seen, drafts in events]
    run = run_of(rows[0].tolist(), events, decode, model.mask_id) if cfg.html else None
    return texts, took, run


def main(cfg):
    sys.stdout.reconfigure(errors="replace")  # a Windows pipe cannot write every character
    paths = paths_of(cfg.ckpt)
    check(cfg, __file__)
    refuse_odd_sampling(cfg, paths)
    join_processes(cfg)
    models = [load_to_sample(path, cfg) for path in paths]
    if cfg.export and rank_and_world()[0] == 0:
        save_published(cfg.export, *models[0][:2])
        print(f"The model is in {cfg.export}")
    if cfg.save:
        save_samples(cfg, *models[0])
        return leave_processes()
    templates = [make_template(cfg, model, checkpoint["meta"]) for model, checkpoint, *_ in models]
    if cfg.trace and (len(models) > 1 or models[0][0].config.causal):
        raise UserError(
            "--trace shows masks disappearing: it takes one model, not several or an autoregressive one."
        )
    points, names, drawn = frontier_of(cfg.frontier), [], []
    some_causal = any(
        model.config.causal for model, *_ in models
    )  # if none is, load_drafter says so
    for path, (model, checkpoint, autocast, note), template in zip(
        paths, models, templates, strict=True
    ):
        drafts = [cfg.draft]
        if cfg.html:  # a GPT is shown plain and, where there are drafts, with them
            with_drafts = cfg.draft and (model.config.causal or not some_causal)
            drafts = ["", cfg.draft] if with_drafts else [""]
        for draft in drafts:
            names.append(f"{path} --draft={draft}" if draft and cfg.html else path)
            own_cfg = speculative.settled(cfg, checkpoint, draft=draft)
            drawn.append(texts_of(model, checkpoint["meta"], template, autocast, note, own_cfg))
    print_samples(names, drawn)
    if cfg.html:
        write_page(cfg.html, names, drawn, points)


if __name__ == "__main__":
    main(cfg)
