"""
A masked diffusion model drafts for a GPT: it predicts all tokens of a draft in one forward pass.
$ python -m extras.diffusion_drafter --ckpt=out/pydoc_ar/ckpt.pt --drafter=out/pydoc/ckpt.pt
$ python -m extras.diffusion_drafter --drafter=out/sdtt_pydoc/round_3.pt --draft_steps=2 --gamma=6
$ python -m extras.diffusion_drafter --table=True            (acceptance and speed of every gamma)

The text has exactly the GPT's distribution, as with every drafter: see speculative.py.
Christopher et al. 2024, arXiv 2408.05636 (SpecDiff).
"""

import time

import torch

import data
from configurator import UserError, check_at_least, configure
from drafters import load_model
from metrics import GAMMAS, Rounds, acceptance, mean_and_error, race, tokens_per_forward
from model import draw, probabilities
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import check_attention, pick_device
from plumbing.randomness import seeded
from plumbing.terminal import print_samples
from sample import cost_line, draft_line, settings_of
from speculative import speculate

# --------------------------------------------------------------------------------------------------
ckpt = "out/pydoc_ar/ckpt.pt"  # the target, a GPT
drafter = "out/pydoc/ckpt.pt"  # a masked diffusion model of the same vocabulary
draft_steps = 1  # forward passes for a draft, from left to right
gamma = 4  # tokens proposed at a time
table = False  # instead of texts: acceptance by position and speed, for several gamma
prompt = ""  # text that the samples begin with, or FILE:path
num_samples = 4
length = 0  # tokens, with the prompt; 0: the context
temperature = 1.0  # 0: always the most probable token
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = "float32"  # 'float32' (fastest for a cached step on a CPU) | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


class Diffusion:
    """
    Masks after the last token, unmasked in `steps` groups from left to right.

    Speculation needs q(x_j | all tokens before j). Within a group the tokens are drawn
    independently of each other, and a group sees only what is to its left, so q is known. In any
    other order a token would depend on later ones, q would be a sum over all of these, and without
    q speculation is not lossless.
    """

    def __init__(self, model, steps=1):
        self.model = model
        self.steps = steps

    @torch.no_grad()
    def propose(self, x, n, settings, generator):
        """(T,) int64 -> drafts (g,) with g <= n, q (g of (V,)): see speculative.py."""
        size = self.model.config.block_size
        n = min(n, size - 1)
        if n == 0:
            return x[:0], []
        known = x[-(size - n) :]  # the last tokens, all that fit
        masks = x.new_full((n,), self.model.mask_id)
        z = torch.cat([known, masks])
        position = torch.arange(len(known), len(z), device=x.device)  # (n)
        q = []
        for group in position.tensor_split(min(self.steps, n)):
            h = self.model.hidden(z[None])[0, group]  # (size of the group, C)
            p = probabilities(self.model.head(h), **settings)  # (size of the group, V)
            z[group] = draw(p, generator)
            q.extend(p)
        return z[len(known) :], q


# --------------------------------------------------------------------------------------------------
# the run


def load(cfg):
    """
    -> the target, its meta, the drafter, the context to draw in, a note on device and number
    format.
    """
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    target, checkpoint = load_model(cfg.ckpt, device, cfg.attention)
    model, of_drafter = load_model(cfg.drafter, device, cfg.attention)
    if not target.config.causal or model.config.causal:
        raise UserError(
            f"{cfg.ckpt} must be a GPT and {cfg.drafter} a masked diffusion model. "
            "Other drafters: sample.py --draft"
        )
    meta = checkpoint["meta"]
    if not data.same_vocabulary(meta, of_drafter["meta"]):
        raise UserError(f"The drafter {cfg.drafter} has another vocabulary than the target.")
    return target, meta, Diffusion(model, cfg.draft_steps), autocast, note


def known_tokens(target, meta, cfg):
    """-> (T,) int64, the prompt, or a start token; how many tokens are to follow."""
    device = target.wte.weight.device
    x = torch.tensor(data.encode_prompt(meta, data.read_text(cfg.prompt)), device=device)
    n_new = (cfg.length or target.config.block_size) - len(x)
    if n_new < 1:
        raise UserError(f"The prompt has {len(x)} tokens and leaves no room. Use a shorter one.")
    return x, n_new


def print_texts(target, meta, drafter, settings, note, cfg):
    """Prints texts, how much of them was drafted, and tokens per forward pass of the target."""
    x, n_new = known_tokens(target, meta, cfg)
    rounds = Rounds(cfg.gamma)
    texts = []
    n_drafted = 0
    began = time.perf_counter()
    for i in range(cfg.num_samples):
        rounds.start(len(x))
        options = {"generator": seeded(cfg.seed, i, device=x.device), "eos": meta.get("eot")}
        options |= {"watch": rounds, **settings}
        texts.append(speculate(target, drafter, x, n_new, gamma=cfg.gamma, **options).cpu())
        n_drafted += sum(rounds.drafted)
    took = cost_line(rounds.n_tokens, time.perf_counter() - began, note, cfg)
    took += "\n" + draft_line(n_drafted, rounds, cfg.gamma)
    decode = data.encoder(meta)[1]
    print_samples([cfg.ckpt], [([decode(text.tolist()) for text in texts], took)])


def print_table(target, meta, drafter, settings, note, cfg):
    """
    A line for each gamma. A diffusion model predicts later positions worse: acceptance falls, and
    the best gamma is smaller than alpha alone says. speed is over token by token with a KV cache.
    """
    x, n_new = known_tokens(target, meta, cfg)
    print(f"{cfg.num_samples} texts of {len(x) + n_new} tokens on {note}")
    print("gamma  alpha  tokens/forward  speed    by position")
    rounds = Rounds(cfg.gamma)
    race(target, drafter, x, n_new, cfg.gamma, settings, seed=cfg.seed, rounds=rounds)  # warms up
    for gamma in GAMMAS:
        rounds = Rounds(gamma)
        speeds = []
        for i in range(cfg.num_samples):
            seed = cfg.seed + i
            ratio = race(target, drafter, x, n_new, gamma, settings, seed=seed, rounds=rounds)
            speeds.append(ratio)
        speed, _ = mean_and_error(torch.tensor(speeds))
        counts = zip(rounds.accepted.tolist(), rounds.tested.tolist(), strict=True)
        by_position = " ".join(f"{a / t:.2f}" for a, t in counts if t)
        alpha = f"{acceptance(rounds):6.3f}"
        print(
            f"{gamma:5d} {alpha} {tokens_per_forward(rounds):15.2f} {speed:6.2f}    {by_position}"
        )


def main(cfg):
    check_sampling_knobs(cfg)
    check_at_least(cfg, gamma=1, draft_steps=1)
    target, meta, drafter, autocast, note = load(cfg)
    settings = settings_of(cfg)
    show = print_table if cfg.table else print_texts
    with torch.no_grad(), autocast:
        show(target, meta, drafter, settings, note, cfg)


if __name__ == "__main__":
    main(cfg)
