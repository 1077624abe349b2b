"""
Text out of any checkpoint.
$ python sample.py --ckpt=out/pydoc/ckpt.pt --steps=64                           (a few seconds)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --trace=True                         (watch it appear)
$ python sample.py --ckpt=out/pydoc/ckpt.pt --infill='The ___ statement is used'
$ python sample.py --ckpt=out/pydoc/ckpt.pt,out/sdtt_pydoc/round_3.pt --steps=8  (side by side)
$ python sample.py --ckpt=out/pydoc_ar/ckpt.pt --draft=lookup            (speculative decoding)
"""

import functools
import os
import sys
import time

import torch

import data
import metrics
from configurator import UserError, choose, configure
from drafters import check_context, load_drafter, load_model
from plumbing.checkpoints import paths_of
from plumbing.checks import check_cooling, check_sampling_knobs
from plumbing.hardware import (
    check_attention,
    compile_trunk,
    frozen_dtype,
    pick_device,
    pick_for_sampling,
    prepare_for_sampling,
)
from plumbing.randomness import seeded
from plumbing.terminal import Tracer, colored, print_samples
from speculative import check_sampler, draw_samples, known_text, sampler_and_steps, speculate

# --------------------------------------------------------------------------------------------------
# what to write
ckpt = "out/pydoc/ckpt.pt"  # several are shown side by side: a.pt,b.pt or out/x/round_*.pt
prompt = ""  # text that the samples begin with, or FILE:path
chat = False  # the prompt is a message, in the chat template of an hf: model
infill = ""  # diffusion: a text with blanks to fill, one token each, or FILE:path
blank = "_"  # what a blank looks like in infill
num_samples = 4
length = 0  # tokens, with the prompt; 0: the context; longer is allowed
# how to draw it
steps = 0  # diffusion: forward passes; 0: what the checkpoint was made for, else 64
sampler = ""  # '' (own, or spread) | 'spread' | 'ancestral' | 'first_hitting' | 'confidence'
temperature = 1.0  # 0: always the most probable token
cooling = 1.0  # diffusion: the temperature of the last step over that of the first
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
# speculative decoding of a GPT, with the same distribution
draft = ""  # what proposes tokens: a checkpoint, an ngram.txt or 'lookup'
gamma = 0  # tokens proposed at a time; 0: the fastest in a short trial, which may be none
trace = False  # diffusion: show one sample appearing
# the run
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "off"  # 'off' | 'on': torch.compile, in half a minute; a GPT is 1.2 to 1.4 times as fast
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def check_knobs(cfg):
    """Raises UserError for a value with which nothing can be sampled."""
    check_sampling_knobs(cfg)
    check_sampler(cfg.sampler)
    choose("compile", cfg.compile, ("off", "on"))


# --------------------------------------------------------------------------------------------------
# load


def load(path, cfg):
    """-> model, checkpoint, the context to sample in, a note on device and number format."""
    device, _, _ = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    frozen = frozen_dtype(cfg.device, cfg.dtype)
    model, checkpoint = load_model(path, device, cfg.attention, frozen)
    autocast, note = pick_for_sampling(model.config.causal, cfg.device, cfg.dtype)
    prepare_for_sampling(model, autocast)
    if cfg.compile == "on":
        compile_trunk(model, device)
    return model, checkpoint, autocast, note


# --------------------------------------------------------------------------------------------------
# template: the known tokens, and -1 where a token is to be drawn


def make_template(model, meta, cfg, chat=False):
    """-> (L,) int64, from prompt, infill and length. chat: the prompt is a message."""
    if cfg.prompt and cfg.infill:
        raise UserError(
            "Give either --prompt or --infill: a template with blanks may begin with any text."
        )
    if cfg.infill:
        return fill_in_template(meta, cfg)
    ids = []
    if chat:
        ids = data.chat_prompt(meta, data.read_text(cfg.prompt))
    elif cfg.prompt or model.config.causal:
        ids = data.encode_prompt(meta, data.read_text(cfg.prompt))  # at least a start token
    size = cfg.length or model.config.block_size
    if len(ids) >= size:
        raise UserError(
            f"The prompt has {len(ids)} tokens and leaves no room in {size}. "
            f"Use --length={len(ids) + 64}."
        )
    return torch.tensor(ids + [-1] * (size - len(ids)))


def fill_in_template(meta, cfg):
    """-> (L,) int64: the text of infill, with one token for each blank."""
    if cfg.length:
        raise UserError(
            f"length is {cfg.length}, but --infill is as long as its template. Leave --length out."
        )
    if not cfg.blank:
        raise UserError("--blank must not be empty: it marks the blanks of --infill.")
    encode, _ = data.encoder(meta)
    first, *others = data.read_text(cfg.infill).split(cfg.blank)
    if not others:
        raise UserError(
            f"The infill template has no blank {cfg.blank!r}. Mark blanks with it, or set --blank."
        )
    ids = encode(first)
    for part in others:
        ids += [-1, *encode(part)]
    return torch.tensor(ids)


# --------------------------------------------------------------------------------------------------
# draw


def text_end(row, n_known, eos):
    """(L,) int64 -> how many tokens come before its first eos after the known ones."""
    if eos is not None:
        ends = (row[n_known:] == eos).nonzero()
        if len(ends):
            return n_known + int(ends[0])
    return len(row)


def split_template(template, device):
    """(L,) -> (n_known,), what a GPT continues, on the device; how many tokens are to follow."""
    known = known_text(template[None])[0].to(device)
    return known, len(template) - len(known)


def settings_of(cfg):
    return {"temperature": cfg.temperature, "top_k": cfg.top_k, "top_p": cfg.top_p}


def draw_plain(model, checkpoint, template, n, cfg, watch=None):
    """(L,) -> n texts, each (at most L,) int64 on the CPU."""
    device = model.wte.weight.device
    sampler, steps = sampler_and_steps(cfg.sampler, cfg.steps, checkpoint.get("made_for"))
    eos = checkpoint["meta"].get("eot") if model.config.causal else None
    templates = template.to(device).expand(n, -1)  # (n, L)
    generator = seeded(cfg.seed, device=device)
    options = {"generator": generator, "eos": eos, "watch": watch, "cooling": cfg.cooling}
    options |= settings_of(cfg)
    x = draw_samples(model, templates, steps, sampler, **options).cpu()
    n_known = int((template >= 0).sum())
    return [row[: text_end(row, n_known, eos)] for row in x]


def draw_with_drafts(model, checkpoint, template, drafter, gamma, cfg, *, number=0, watch=None):
    """(L,) -> one text, (at most L,) int64 on the CPU; its number gives it a seed of its own."""
    device = model.wte.weight.device
    known, n_new = split_template(template, device)
    eos = checkpoint["meta"].get("eot")
    generator = seeded(cfg.seed, number, device=device)
    options = {"generator": generator, "eos": eos, "watch": watch, **settings_of(cfg)}
    x = speculate(model, drafter, known, n_new, gamma=gamma, **options).cpu()
    return x[: text_end(x, len(known), eos)]


def chosen_gamma(model, drafter, template, cfg):
    """-> cfg.gamma; if that is 0, the fastest in a short trial, or 0 if drafts do not pay off."""
    if cfg.gamma:
        return cfg.gamma
    device = model.wte.weight.device
    known, n_new = split_template(template, device)
    generator = seeded(cfg.seed, "trial", device=device)
    return metrics.choose_gamma(model, drafter, known, n_new, settings_of(cfg), generator)


# --------------------------------------------------------------------------------------------------
# print


def cost_line(n_new, seconds, note, cfg):
    """-> a line: how long n_new new tokens took, and where."""
    return f"{n_new} new tokens in {seconds:.2f} s on {note}, seed {cfg.seed}"


def draft_line(n_drafted, rounds, gamma):
    """n_drafted: accepted drafts in the texts; rounds: metrics.Rounds -> a line on the drafts."""
    if gamma == 0:
        return "no drafts: in a short trial plain decoding was faster (--gamma=4 drafts anyway)"
    return (
        f"{n_drafted / max(rounds.n_tokens, 1):.0%} of the tokens were drafted; gamma {gamma}, "
        f"alpha {metrics.acceptance(rounds):.2f}, "
        f"{metrics.tokens_per_forward(rounds):.2f} tokens per forward pass of the target; "
        f"{rounds.n_drafts} drafts proposed, {rounds.n_rejected} rejected"
    )


def sample_plain(model, checkpoint, template, note, cfg):
    """-> [text, ...], a line on what they took."""
    _, decode = data.encoder(checkpoint["meta"])
    n = 1 if cfg.trace else cfg.num_samples
    watch = Tracer(decode, model.mask_id) if cfg.trace else None
    if cfg.compile == "on":
        draw_plain(model, checkpoint, template, n, cfg)  # the first run compiles
    began = time.perf_counter()
    texts = draw_plain(model, checkpoint, template, n, cfg, watch)
    seconds = time.perf_counter() - began
    n_known = int((template >= 0).sum())
    n_new = sum(len(text) - n_known for text in texts)  # of infill: its blanks
    return [decode(text.tolist()) for text in texts], cost_line(n_new, seconds, note, cfg)


def sample_with_drafts(model, checkpoint, template, note, cfg):
    """-> [text, ...], accepted drafts in green in a terminal, two lines on what they took."""
    meta = checkpoint["meta"]
    _, decode = data.encoder(meta)
    drafter = load_drafter(cfg.draft, model, meta, cfg.attention)
    check_context(drafter, cfg.draft, len(template))
    gamma = chosen_gamma(model, drafter, template, cfg)
    draw = functools.partial(draw_with_drafts, model, checkpoint, template, drafter, gamma, cfg)
    if cfg.compile == "on":
        for number in range(cfg.num_samples):  # the first run compiles: rounds of every length
            draw(number=number)

    rounds = metrics.Rounds(gamma)
    n_known = int((template >= 0).sum())
    texts = []
    drafted = []  # for each text a list: whether each token is an accepted draft
    began = time.perf_counter()
    for number in range(cfg.num_samples):
        rounds.start(n_known)
        texts.append(draw(number=number, watch=rounds))
        drafted.append([False] * n_known + rounds.drafted)
    seconds = time.perf_counter() - began

    if sys.stdout.isatty():
        pairs = zip(texts, drafted, strict=True)
        shown = [colored(text.tolist(), flags[: len(text)], decode) for text, flags in pairs]
    else:
        shown = [decode(text.tolist()) for text in texts]
    n_new = sum(len(text) - n_known for text in texts)
    n_drafted = sum(map(sum, drafted))
    took = f"{cost_line(n_new, seconds, note, cfg)}\n{draft_line(n_drafted, rounds, gamma)}"
    return shown, took


def main(cfg):
    check_knobs(cfg)
    if "WORLD_SIZE" in os.environ:
        raise UserError("On several GPUs samples go into a file: torchrun -m extras.save_samples")
    if cfg.chat and not cfg.prompt:
        raise UserError("--chat=True puts the prompt into a chat template: give a --prompt.")
    paths = paths_of(cfg.ckpt)
    loaded = [load(path, cfg) for path in paths]
    check_cooling([model for model, *_ in loaded], cfg)
    if cfg.trace and (len(paths) > 1 or loaded[0][0].config.causal):
        raise UserError("--trace shows masks disappearing: give one --ckpt, a diffusion model.")
    templates = []
    for model, checkpoint, *_ in loaded:
        templates.append(make_template(model, checkpoint["meta"], cfg, cfg.chat))

    drawn = []
    draw = sample_with_drafts if cfg.draft else sample_plain
    for (model, checkpoint, autocast, note), template in zip(loaded, templates, strict=True):
        with torch.no_grad(), autocast:
            drawn.append(draw(model, checkpoint, template, note, cfg))
    print_samples(paths, drawn)


if __name__ == "__main__":
    main(cfg)
