"""
A page that replays samples at their measured speed, side by side: one file that needs no network.
$ python -m extras.page --ckpt=out/pydoc_ar/ckpt.pt,out/pydoc/ckpt.pt --steps=4 --out=page.html
$ python -m extras.page --ckpt=out/pydoc_ar/ckpt.pt --draft=out/pydoc_ngram/ngram.txt
                                                                                (a few seconds)
Every model writes one text; a GPT writes it plain and, with --draft, with drafts.
"""

import json
import os
import time

import torch

import data
import metrics
import sample
from configurator import UserError, configure
from drafters import Lookup, NGram, check_context, load_drafter
from plumbing.checkpoints import paths_of
from plumbing.checks import check_cooling
from speculative import sampler_and_steps

# --------------------------------------------------------------------------------------------------
# what to write
out = "page.html"  # the page
frontier = ""  # an eval.json of eval.py --what=frontier: plotted below the texts
ckpt = "out/pydoc_ar/ckpt.pt,out/pydoc/ckpt.pt"  # as many as shall be side by side
prompt = ""  # text that the samples begin with, or FILE:path
infill = ""  # diffusion: a text with blanks to fill, one token each, or FILE:path
blank = "_"  # what a blank looks like in infill
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
# the run
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "off"  # 'off' | 'on': torch.compile, in half a minute; a GPT is 1.2 to 1.4 times as fast
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


class Recorder:
    """watch(x, drafts): remembers when which tokens were there. x (1, L) of a batch, or (n,)."""

    def __init__(self, template):
        self.began = time.perf_counter()
        self.events = [(0.0, template.tolist(), None)]  # seconds, tokens so far, drafts

    def __call__(self, x, drafts=None):
        tokens = x.view(-1).tolist()  # waits for the device
        drafts = None if drafts is None else drafts.tolist()
        self.events.append((time.perf_counter() - self.began, tokens, drafts))


def label_of(path):
    """'out/sdtt_pydoc/round_1.pt' -> 'sdtt_pydoc, round 1': a name for the page."""
    folder, file = os.path.split(os.path.normpath(path))
    if not file.endswith((".pt", ".txt")):
        return path
    name = os.path.splitext(file)[0]
    if name in ("ckpt", "ngram"):
        return os.path.basename(folder) or name
    return ", ".join(part for part in (os.path.basename(folder), name.replace("_", " ")) if part)


def name_of_network(model):
    """'GPT', 'LSTM', 'CNN', 'hf:NAME'."""
    arch = model.config.arch
    return arch if arch.startswith("hf:") else arch.upper()


def name_of(model, checkpoint, cfg):
    """'GPT', 'masked diffusion, 4 steps', 'SDTT student, 4 steps': what writes a text."""
    if model.config.causal:
        return name_of_network(model)
    _, n_steps = sampler_and_steps(cfg.sampler, cfg.steps, checkpoint.get("made_for"))
    kind = "SDTT student" if checkpoint.get("made_for") else "masked diffusion"
    return f"{kind}, {n_steps} steps" if n_steps > 1 else f"{kind}, 1 step"


def name_of_drafter(drafter):
    """'n-gram', 'lookup', or what kind of network it is."""
    if isinstance(drafter, NGram):
        return "n-gram"
    if isinstance(drafter, Lookup):
        return "lookup"
    return name_of_network(drafter.model)


# --------------------------------------------------------------------------------------------------
# what the page is told of a text


def split_text(ids, decode, start=0):
    """
    [token id, ...] -> [text, ...] that joined are decode(ids), from the token `start` on. Of tokens
    that share a character (bytes of UTF-8) the last one has it, and the others have "".

    A token alone may decode to another text: SentencePiece's lose the space before a word.
    """
    pieces = []
    shown = decode(ids[:start])
    for end in range(start + 1, len(ids) + 1):
        text = decode(ids[:end])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            pieces.append("")
        else:
            pieces.append(text[len(shown) :])
            shown = text
    return pieces


def steps_of_tokens(n, events, mask_id):
    """-> for each of n tokens the forward pass, from 1, that wrote it; 0: it was given."""
    step_of = [-1] * n
    for step, (_, tokens, _) in enumerate(events):
        for i, token in enumerate(tokens[:n]):
            if step_of[i] < 0 and token not in (-1, mask_id):
                step_of[i] = step
    return step_of


def drafts_of_steps(n_given, events, decode):
    """-> {step: [how many of its drafts were accepted, [text of each of the others]]}."""
    found = {}
    n_before = n_given
    for step, (_, tokens, drafts) in enumerate(events):
        if drafts is not None:
            n_accepted = 0
            for token, draft in zip(tokens[n_before:], drafts, strict=False):
                if token != draft:
                    break
                n_accepted += 1
            kept = tokens[: n_before + n_accepted]
            # the target's own token follows a rejection; a text that ended with a draft has none
            others = drafts[n_accepted:] if len(tokens) > len(kept) else []
            found[step] = [n_accepted, split_text(kept + others, decode, len(kept))]
            n_before = len(tokens)
    return found


def page_entry(ids, events, decode, mask_id):
    """The tokens of a text, a Recorder's events -> what the page shows of it."""
    step_of = steps_of_tokens(len(ids), events, mask_id)
    return {
        "pieces": split_text(ids, decode),
        "step_of": step_of,
        "ms": [round(1000 * seconds, 2) for seconds, _, _ in events[1:]],  # at the end of each step
        "drafts": drafts_of_steps(step_of.count(0), events, decode),
        "masks": mask_id is not None,
    }


def record_plain(model, checkpoint, template, note, cfg):
    """-> what the page shows of one text, and a line on what it took."""
    _, decode = data.encoder(checkpoint["meta"])
    sample.draw_plain(model, checkpoint, template, 1, cfg)  # warms up
    recorder = Recorder(template)
    [text] = sample.draw_plain(model, checkpoint, template, 1, cfg, recorder)
    run = page_entry(text.tolist(), recorder.events, decode, model.mask_id)
    n_new = len(text) - run["step_of"].count(0)
    return run | {"took": sample.cost_line(n_new, recorder.events[-1][0], note, cfg)}


def record_with_drafts(model, checkpoint, template, note, drafter, cfg):
    """As record_plain, of a text that a GPT writes with drafts."""
    _, decode = data.encoder(checkpoint["meta"])
    gamma = sample.chosen_gamma(model, drafter, template, cfg)
    args = model, checkpoint, template, drafter, gamma, cfg
    sample.draw_with_drafts(*args)  # warms up
    recorder = Recorder(template)
    text = sample.draw_with_drafts(*args, watch=recorder)
    run = page_entry(text.tolist(), recorder.events, decode, None)

    rounds = metrics.Rounds(gamma)
    rounds.start(run["step_of"].count(0))
    for _, tokens, drafts in recorder.events[1:]:
        rounds(torch.tensor(tokens), torch.tensor(drafts, dtype=torch.int64))
    n_new = len(text) - run["step_of"].count(0)
    took = sample.cost_line(n_new, recorder.events[-1][0], note, cfg)
    return run | {"took": f"{took}\n{sample.draft_line(sum(rounds.drafted), rounds, gamma)}"}


# --------------------------------------------------------------------------------------------------
# the file


def load_frontier(path):
    """An eval.json of eval.py --what=frontier -> its points, the last one real text."""
    keys = ("model", "steps", "temperature", "genppl", "entropy")
    try:
        points = []
        for p in data.read_json(path)["frontier"]:
            point = {key: p.get(key) for key in keys}
            point["cooling"] = p.get("cooling") or 1.0  # older reports do not say it
            points.append(point | {"model": label_of(point["model"])})
        return points
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} holds no frontier ({error}). Make it with: eval.py --what=frontier"
        ) from None


def write_page(path, runs, points):
    """
    [what page_entry says of a text, with its name and path, ...], load_frontier's points -> file.
    """
    with open(os.path.join(os.path.dirname(__file__), "page.html"), encoding="utf-8") as f:
        template = f.read()
    told = json.dumps({"runs": runs, "frontier": points}, separators=(",", ":"))
    # sampled text may be anything, </script> too: no < reaches the browser's parser
    told = told.replace("<", "\\u003c")
    with data.replacing(path, "w") as f:
        f.write(template.replace("DATA", told, 1))
    print(f"The page is {path}: open it in a browser.")


def main(cfg):
    sample.check_knobs(cfg)
    paths = paths_of(cfg.ckpt)
    points = load_frontier(cfg.frontier) if cfg.frontier else []
    loaded = [sample.load(path, cfg) for path in paths]
    check_cooling([model for model, *_ in loaded], cfg)
    templates = [sample.make_template(model, saved["meta"], cfg) for model, saved, *_ in loaded]
    if cfg.draft and not any(model.config.causal for model, *_ in loaded):
        raise UserError("--draft makes a GPT faster; all of --ckpt are diffusion models.")

    runs = []
    for path, (model, checkpoint, autocast, note), template in zip(
        paths, loaded, templates, strict=True
    ):
        name = name_of(model, checkpoint, cfg)
        with torch.no_grad(), autocast:
            run = record_plain(model, checkpoint, template, note, cfg)
            runs.append({"name": name, "path": path, **run})
            if cfg.draft and model.config.causal:
                drafter = load_drafter(cfg.draft, model, checkpoint["meta"], cfg.attention)
                check_context(drafter, cfg.draft, len(template))
                run = record_with_drafts(model, checkpoint, template, note, drafter, cfg)
                name = f"{name} + {name_of_drafter(drafter)} drafts"
                runs.append({"name": name, "path": f"{path} + {cfg.draft}", **run})
    write_page(cfg.out, runs, points)


if __name__ == "__main__":
    main(cfg)
