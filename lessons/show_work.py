"""
One sentence through every intermediate of the loss, of the sampler's steps and of a speculative
round, to talk over.
$ python lessons/show_work.py 'The "for" statement is used to iterate.'              (3 seconds)
$ python lessons/show_work.py TEXT DIFFUSION GPT SEED   (other checkpoints than the demo's, of one
                                                         vocabulary)

Nothing is computed a second time here: the project's own functions run, and what they held when
they returned is printed under the names that it has there: t and masked in diffusion_loss, xt and
logits in masked_nll, step_of in unmask, u and residual in verify.
"""

import inspect
import itertools
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import UserError
from drafters import load_model
from extras.diffusion_drafter import Diffusion
from model import diffusion_loss, masked_nll, unmask
from plumbing.console import prepare_console
from plumbing.randomness import seeded
from plumbing.terminal import show_blanks
from speculative import speculate, verify


def inside(call, *functions):
    """
    -> for each function, the local variables of its first run within call(), as they were when it
    returned, and under "returned" what it returned.
    """
    names = {inspect.unwrap(f).__code__: i for i, f in enumerate(functions)}
    seen = [{} for _ in functions]

    def look(frame, event, result):
        i = names.get(frame.f_code)
        if event == "return" and i is not None and not seen[i]:
            seen[i].update(frame.f_locals, returned=result)

    try:
        sys.setprofile(look)
        call()
    finally:
        sys.setprofile(None)
    return seen


def word(decode, token):
    return repr(decode([int(token)]))


def best(p, decode, n=3):
    """(V) probabilities -> the n most probable words."""
    return "  ".join(f"{word(decode, i)} {p[i]:.2f}" for i in p.argsort(descending=True)[:n])


# --------------------------------------------------------------------------------------------------


def show_loss(model, x0, generator, decode):
    """model.diffusion_loss: t, xt, and for every masked token what it adds. -> xt"""
    outer, inner = inside(lambda: diffusion_loss(model, x0, generator), diffusion_loss, masked_nll)
    masked = outer["masked"]
    xt = inner["xt"]
    log_p = inner["logits"].log_softmax(-1)  # (N, V)
    weight = inner["weight"].item() / x0.numel()
    t = outer["t"].item()
    print(
        f"1. The loss. Each token is masked with probability t = {t:.3f}: "
        f"{masked.sum()} of {x0.numel()} are.\n"
    )
    print(f"   x0  {decode(x0[0].tolist())!r}")
    print(f"   xt  {show_blanks(xt[0].tolist(), decode, model.mask_id)!r}\n")
    positions = masked[0].nonzero().flatten()
    for position, x, row in zip(positions, x0[masked], log_p, strict=True):
        print(
            f"   {position:3} {word(decode, x):>12}  log p {row[x]:7.3f}  weight {weight:.3f}  "
            f"adds {-weight * row[x]:6.3f}   best: {best(row.exp(), decode)}"
        )
    total = outer["returned"].item()
    print(
        f"\n   The weight is 1 / (t T). The sum, {total:.4f} nats per token, bounds "
        "-log p(x0) / T on the average.\n"
    )
    return xt


def show_steps(model, xt, generator, decode, n_steps=2):
    """model.unmask: which step unmasks what, from which distribution."""
    states = [xt]
    options = {"generator": generator, "watch": lambda xt: states.append(xt.clone())}
    (held,) = inside(lambda: unmask(model, xt, n_steps, "ancestral", **options), unmask)
    times = [1 - k / n_steps for k in range(n_steps + 1)]
    rates = ", ".join(f"{(t - s) / t:.2f}" for t, s in itertools.pairwise(times))
    print(
        f"2. The sampler, in {n_steps} steps t -> s. Each unmasks a masked position with "
        f"probability (t - s) / t: {rates}.\n"
    )
    print(f"       {show_blanks(xt[0].tolist(), decode, model.mask_id)!r}")
    for k, (before, after) in enumerate(itertools.pairwise(states), 1):
        p = model(before)[0].float().softmax(-1)  # (T, V)
        for position in (held["step_of"][0] == k).nonzero().flatten():
            x = after[0, position]
            log_p = p[position, x].log()
            drawn = f"   {position:3} {word(decode, x):>12} drawn, log p {log_p:7.3f}"
            print(f"{drawn}   best: {best(p[position], decode)}")
        print(f"       {show_blanks(after[0].tolist(), decode, model.mask_id)!r}\n")


def show_speculation(target, model, x0, generator, decode, gamma=4):
    """speculative.verify in the first round: p, q, u, the residual, the token that follows."""
    known = x0[0, : max(x0.size(1) // 2, 1)]
    n_new = min(gamma + 1, target.config.block_size - len(known))
    options = {"gamma": gamma, "generator": generator}
    (held,) = inside(lambda: speculate(target, Diffusion(model), known, n_new, **options), verify)
    drafts = held["drafts"]
    accepted = len(held["returned"]) - 1
    rejected = accepted < len(drafts)
    print(
        f"3. A speculative round. The diffusion model proposes {len(drafts)} tokens at once, "
        "the GPT verifies them.\n"
    )
    print(f"       {decode(known.tolist())!r}")
    for i, x in enumerate(drafts):
        p_x = held["p"][i, x]
        q_x = held["q"][i][x]
        verdict = "accepted" if i < accepted else "rejected" if i == accepted else "not tested"
        print(
            f"   {i + 1:3} {word(decode, x):>12}  q {q_x:.3f}  p {p_x:.3f}  "
            f"min(1, p / q) {min(1, (p_x / q_x).item()):.3f}  u {held['u'][i]:.3f}  {verdict}"
        )
    if rejected:
        residual = held["residual"] / held["residual"].sum()
        print(f"\n       p there   {best(held['p'][accepted], decode)}")
        print(f"       q there   {best(held['q'][accepted], decode)}")
        print(f"       residual  {best(residual, decode)}   max(p - q, 0), divided by its sum")
    where = "from the residual" if rejected else "from p, the bonus token"
    print(f"       drawn {where}: {word(decode, held['returned'][-1])}")
    print(f"       {decode([*known.tolist(), *held['returned'].tolist()])!r}")


@torch.no_grad()
def main(text, diffusion="out/pydoc/ckpt.pt", gpt="out/pydoc_ar/ckpt.pt", seed="1"):
    model, checkpoint = load_model(diffusion)
    target, of_target = load_model(gpt)
    fits = data.same_vocabulary(checkpoint["meta"], of_target["meta"])
    if model.config.causal or not target.config.causal or not fits:
        raise UserError(
            f"{diffusion} and {gpt} must be a diffusion model and a GPT of the same vocabulary."
        )
    encode, decode = data.encoder(checkpoint["meta"])
    x0 = torch.tensor([encode(text)])
    size = model.config.block_size
    if not 2 <= x0.size(1) <= size:
        raise UserError(f"The text has {x0.size(1)} tokens; it must be from 2 to {size}.")
    xt = show_loss(model, x0, seeded(seed, "loss"), decode)
    show_steps(model, xt, seeded(seed, "reverse"), decode)
    show_speculation(target, model, x0, seeded(seed, "speculation"), decode)


if __name__ == "__main__":
    prepare_console()
    if not 2 <= len(sys.argv) <= 5:
        raise UserError("Which text? python lessons/show_work.py TEXT [DIFFUSION GPT SEED]")
    try:
        main(*sys.argv[1:])
    except KeyError as missing:  # in a student's own body
        raise UserError(
            f"No variable is called {missing}. This prints t and masked of diffusion_loss, xt and "
            "logits of masked_nll, step_of of unmask, u and residual of verify: name them so."
        ) from None
