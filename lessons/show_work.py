"""
One sentence through every intermediate of the loss, of a reverse step and of a speculative round, to talk over.
$ python lessons/show_work.py 'The "for" statement is used to iterate.'                                   (3 seconds)
$ python lessons/show_work.py TEXT DIFFUSION GPT SEED           (other checkpoints than the demo's, of one vocabulary)

Nothing is computed a second time here: the project's own functions run, and what they held when they returned is
printed under the names that it has there.
"""

import inspect
import itertools
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import UserError, one_line_for_user_errors
from drafters import Diffusion, load_model
from model import diffusion_loss, fill_at_random, reveal_rate, unmask
from plumbing.randomness import seeded
from plumbing.terminal import show_blanks
from speculative import speculate, verify


def inside(f, call):
    """-> what the first call of the function f within call() had as local variables when it returned."""
    code, seen = inspect.unwrap(f).__code__, {}

    def look(frame, event, result):
        if event == "return" and frame.f_code is code and not seen:
            seen.update(frame.f_locals, returned=result)

    try:
        sys.setprofile(look)
        call()
    finally:
        sys.setprofile(None)
    return seen


def best(p, word, n=3):
    """(V) probabilities -> the n most probable words."""
    return "  ".join(f"{word(i)} {p[i]:.2f}" for i in p.argsort(descending=True)[:n])


def show_loss(model, x0, generator, decode, word):
    """model.diffusion_loss: t, xt, and for every masked token log p(x0 | xt), its weight and what it adds. -> xt"""
    held = inside(diffusion_loss, lambda: diffusion_loss(model, x0, generator))
    t, xt, masked = held["t"], held["xt"], held["masked"]
    log_p = model.head(held["h"]).float().log_softmax(-1)  # (N, V)
    print(
        f"1. The loss. Each token is hidden with chance t = {t.item():.3f}: {masked.sum()} of {x0.numel()} are.\n"
    )
    print(
        f"   x0  {decode(x0[0].tolist())!r}\n   xt  {show_blanks(xt[0].tolist(), decode, model.mask_id)!r}\n"
    )
    total = 0.0
    for place, x, row, weight in zip(
        masked[0].nonzero().flatten(), x0[masked], log_p, held["weights"], strict=True
    ):
        total -= (weight * row[x]).item()
        adds = f"weight {weight:.3f}  adds {-weight * row[x]:6.3f}"
        print(
            f"   {place:3} {word(x):>12}  log p {row[x]:7.3f}  {adds}   best: {best(row.exp(), word)}"
        )
    print(
        f"\n   The weight is 1 / (t T). The sum, {total:.4f} nats per token, bounds -log p(x0) / T on the average.\n"
    )
    return xt


def show_reverse(model, xt, generator, decode, word, steps=2):
    """model.unmask: which call reveals what, from which distribution."""
    states, sampler, watch = [xt], "ancestral", lambda xt: states.append(xt.clone())
    held = inside(
        fill_at_random, lambda: unmask(model, xt, steps, sampler, generator=generator, watch=watch)
    )
    rates = ", ".join(f"{reveal_rate(t, s):.2f}" for t, s in itertools.pairwise(held["times"]))
    print(
        f"2. The reverse, in {steps} steps t -> s. Each reveals a blank with the chance (t - s) / t: {rates}.\n"
    )
    print(f"       {show_blanks(xt[0].tolist(), decode, model.mask_id)!r}")
    for k, (before, after) in enumerate(itertools.pairwise(states), 1):
        p = model(before)[0].float().softmax(-1)  # (T, V)
        for place in (held["call"][0] == k).nonzero().flatten():
            x = after[0, place]
            print(
                f"   {place:3} {word(x):>12} drawn, log p {p[place, x].log():7.3f}   best: {best(p[place], word)}"
            )
        print(f"       {show_blanks(after[0].tolist(), decode, model.mask_id)!r}\n")


def show_speculation(target, model, x0, generator, decode, word, gamma=4):
    """speculative.verify in the first round: p, q, the chance to accept, the residual, the token that follows."""
    known = x0[:, : max(x0.size(1) // 2, 1)]
    n_new = min(gamma + 1, target.config.block_size - known.size(1))
    held = inside(
        verify,
        lambda: speculate(target, Diffusion(model, 1), known, n_new, gamma, generator=generator),
    )
    drafts, n = held["drafts"][0], int(held["n_accepted"])
    print(
        f"3. A speculative round. The diffusion model guesses {len(drafts)} tokens at once, the GPT judges them.\n"
    )
    print(f"       {decode(known[0].tolist())!r}")
    for j, (x, p_x, q_x) in enumerate(zip(drafts, held["p_x"][0], held["q_x"][0], strict=True)):
        what = "accepted" if j < n else "refused" if j == n else "not judged"
        chance = min(1, (p_x / q_x).item())
        print(
            f"   {j + 1:3} {word(x):>12}  q {q_x:.3f}  p {p_x:.3f}  min(1, p / q) {chance:.3f}  {what}"
        )
    if n < len(drafts):
        print(
            f"\n       p there   {best(held['p'][0, n], word)}\n       q there   {best(held['q'][0, n], word)}"
        )
        print(f"       residual  {best(held['rest'][0], word)}   max(p - q, 0), divided by its sum")
    token = int(held["returned"][1])
    print(
        f"       drawn {'from the residual' if n < len(drafts) else 'from p, for free'}: {word(token)}"
    )
    print(f"       {decode([*known[0].tolist(), *drafts[:n].tolist(), token])!r}")


@torch.no_grad()
def main(text, diffusion="out/pydoc/ckpt.pt", gpt="out/pydoc_ar/ckpt.pt", seed="1"):
    (model, checkpoint), (target, its) = load_model(diffusion), load_model(gpt)
    if (
        model.config.causal
        or not target.config.causal
        or not data.same_vocabulary(checkpoint["meta"], its["meta"])
    ):
        raise UserError(
            f"{diffusion} and {gpt} must be a diffusion model and a GPT of the same vocabulary."
        )
    encode, decode = data.encoder(checkpoint["meta"])
    x0 = torch.tensor([encode(text)])
    if not 2 <= x0.size(1) <= model.config.block_size:
        raise UserError(
            f"The text has {x0.size(1)} tokens; it must be from 2 to {model.config.block_size}."
        )
    word = lambda i: repr(decode([int(i)]))  # noqa: E731
    xt = show_loss(model, x0, seeded(seed, "loss"), decode, word)
    show_reverse(model, xt, seeded(seed, "reverse"), decode, word)
    show_speculation(target, model, x0, seeded(seed, "speculation"), decode, word)


if __name__ == "__main__":
    sys.excepthook = one_line_for_user_errors
    if not 2 <= len(sys.argv) <= 5:
        raise UserError("Which text? python lessons/show_work.py TEXT [DIFFUSION GPT SEED]")
    main(*sys.argv[1:])
