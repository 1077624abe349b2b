"""
The pictures of the lessons, drawn with the functions that they are about.
$ python lessons/pictures.py assets                                                              (five files, 4 seconds)
"""

import os
import sys

import torch
from matplotlib.colors import ListedColormap

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
from configurator import UserError, one_line_for_user_errors
from model import add_noise, causal_mask, reveal_order
from plumbing.randomness import seeded
from plumbing.report import pyplot
from speculative import residual, verify

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "slept"]
BLUE, ORANGE, GREEN, GREY, WHITE = "#2f6db5", "#e08a1e", "#3a9a5b", "#d0d0d0", "#ffffff"
CALLS = [WHITE, "#08306b", "#2f7abc", "#86bfe0", "#d3e5f4"]  # hidden; revealed by call 1, 2, 3, 4


def grid(ax, numbers, colours, words=None):
    """(rows, columns) int64 -> squares in the colour of their number, with a word in each where there are words."""
    ax.pcolormesh(
        numbers,
        cmap=ListedColormap(colours),
        vmin=0,
        vmax=len(colours) - 1,
        edgecolors="#808080",
        linewidth=0.6,
    )
    for i, row in enumerate(words or []):
        for j, word in enumerate(row):
            ax.text(j + 0.5, i + 0.5, word, ha="center", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)


def attention(plt):
    """Who may look at whom, in both models."""
    T = len(WORDS)
    fig, axes = plt.subplots(1, 2, figsize=(8, 4))
    masks = {
        "causal = True: the GPT": causal_mask(T, T, "cpu"),
        "causal = False: the diffusion model": torch.ones(T, T),
    }
    for ax, (title, mask) in zip(axes, masks.items(), strict=True):
        grid(ax, mask.long(), [WHITE, BLUE])
        ax.set(title=title, xlabel="is looked at", ylabel="looks", aspect="equal")
        ax.set_xticks([i + 0.5 for i in range(T)], WORDS, rotation=45)
        ax.set_yticks([i + 0.5 for i in range(T)], WORDS)
    return fig


def noise(plt):
    """One sentence at rising noise levels, and what each level weighs in the loss."""
    levels = torch.tensor([[0.1], [0.3], [0.5], [0.7], [0.9]])
    same = [
        add_noise(torch.zeros(1, len(WORDS)).long(), t[None], 1, seeded("noise")) for t in levels
    ]  # same draws
    hidden = torch.cat(same)  # (levels, words): what is hidden at t is hidden at every higher level
    words = [["" if h else word for word, h in zip(WORDS, row, strict=True)] for row in hidden]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2))
    grid(left, hidden, [WHITE, GREY], words)
    left.set_yticks(
        [i + 0.5 for i in range(len(levels))], [f"t = {t:.1f}" for t in levels[:, 0].tolist()]
    )
    left.set(title="each token is hidden with probability t", xticks=[])
    t = torch.linspace(0.02, 1, 200)
    for a, colour in ((1, BLUE), (0.5, ORANGE), (0, GREEN)):
        right.plot(t, (2 - a) / t**a, color=colour, label=f"t_weight = {a}")
    right.set(title="weight of a hidden token", xlabel="t", ylim=(0, 12), xlim=(0, 1))
    right.legend()
    return fig


def orders(plt, T=32, K=4):
    """A sequence being unmasked in K calls, in the papers' order and in the default one."""
    fig, axes = plt.subplots(2, 1, figsize=(10, 4.2))
    times = 1 - torch.arange(K + 1, dtype=torch.float64) / K
    for ax, sampler in zip(axes, ("ancestral", "spread"), strict=True):
        call = reveal_order(
            torch.ones(1, T, dtype=torch.bool), times, sampler, seeded("orders", 2)
        )  # (1, T)
        after = torch.stack([call[0] * (call[0] <= k) for k in range(1, K + 1)])  # (K, T)
        grid(ax, after, CALLS)
        ax.set_yticks([k + 0.5 for k in range(K)], [f"after call {k}" for k in range(1, K + 1)])
        ax.set(title=f"{sampler}: white is [MASK], a colour is what one call reveals", xticks=[])
    return fig


def two_means(plt):
    """What a student is to expect of a token for which the teacher expects two things, by what else it revealed."""
    first, second = torch.tensor([0.6, 0.05, 0.35]), torch.tensor([0.05, 0.6, 0.35])
    geometric = (first * second).sqrt()
    laws = {
        "teacher, if the other\nword became New": first,
        "teacher, if the other\nword became Los": second,
        "their mean: kl_fwd\n= what it expects now": (first + second) / 2,
        "geometric mean:\nkl_bwd": geometric / geometric.sum(),
    }
    fig, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharey=True)
    for ax, (title, p), colour in zip(axes, laws.items(), (GREY, GREY, ORANGE, BLUE), strict=True):
        bars = ax.bar(["York", "Angeles", "(other)"], p.tolist(), color=colour)
        ax.bar_label(bars, [f"{x:.2f}" for x in p.tolist()], fontsize=9)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(0, 0.75))
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def speculation(plt, gamma=3, n=100_000):
    """How p and q make one token, and where a draft of gamma tokens may end, counted in n calls of verify."""
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.3, 0.45, 0.05, 0.2])
    drafts = torch.multinomial(q, n * gamma, replacement=True, generator=seeded("drafts")).view(
        n, gamma
    )
    accepted, _ = verify(
        drafts, p.expand(n, gamma + 1, -1), q.expand(n, gamma, -1), seeded("verify")
    )
    share = (
        torch.bincount(accepted, minlength=gamma + 1) / n
    ).tolist()  # of each number of accepted drafts
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 3))
    place, both = torch.arange(4).numpy(), torch.minimum(p, q)
    rest = residual(p[None], q[None])[0] * (
        1 - both.sum()
    )  # norm(max(p - q, 0)), as often as it is drawn from
    q, both, rest = q.numpy(), both.numpy(), rest.numpy()
    left.bar(
        place - 0.2, q, 0.36, color=WHITE, edgecolor=ORANGE, hatch="///", label="q: of it, refused"
    )
    left.bar(place - 0.2, both, 0.36, color=GREEN, label="min(p, q): accepted")
    left.bar(place + 0.2, both, 0.36, color=GREEN)
    left.bar(place + 0.2, rest, 0.36, both, color=BLUE, label="drawn anew")
    left.set(
        title="left: the draft's q; right: what comes out, p",
        xticks=place,
        xticklabels="abcd",
        ylim=(0, 0.62),
    )
    left.legend(fontsize=8)
    tree(right, share)
    return fig


def tree(ax, share):
    """share[k]: how often the first k drafts are accepted and no more -> the ways that a round may go, on ax."""
    gamma = len(share) - 1
    for k, ends in enumerate(share):
        reached = sum(share[k:])  # how often k drafts are accepted at least
        if k:
            ax.plot((k - 1, k), (1, 1), color=GREEN, lw=8 * reached, zorder=1)
            box(ax, k, 1, f"draft {k}", GREEN)
        last = (k + 1, 1) if k == gamma else (k + 0.7, 0)
        ax.plot((k, last[0]), (1, last[1]), color=BLUE, lw=8 * ends, zorder=1)
        box(ax, *last, "for free" if k == gamma else f"anew {k + 1}", BLUE)
        ax.text(
            last[0],
            last[1] - 0.42,
            f"{ends:.0%}: {k + 1} token{'s' * (k > 0)}",
            ha="center",
            fontsize=9,
        )
    box(ax, 0, 1, "the text", "#707070")
    ax.set(
        title="green: accepted; blue: the target's own", xlim=(-0.5, gamma + 1.6), ylim=(-0.7, 1.5)
    )
    ax.axis("off")


def box(ax, x, y, text, colour):
    """A word in a rounded box."""
    ax.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        color=WHITE,
        bbox={"boxstyle": "round", "fc": colour, "ec": "none"},
    )


PICTURES = {f.__name__: f for f in (attention, noise, orders, two_means, speculation)}


def draw_all(folder):
    """Writes each picture to folder/name.png. -> their paths."""
    plt, paths = pyplot(), []
    for name, picture in PICTURES.items():
        fig = picture(plt)
        fig.tight_layout()
        paths.append(os.path.join(folder, f"{name}.png"))
        fig.savefig(paths[-1], dpi=110, facecolor=WHITE)
        plt.close(fig)
    return paths


if __name__ == "__main__":
    sys.excepthook = one_line_for_user_errors
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        raise UserError("Where to? python lessons/pictures.py FOLDER, of the repository: assets.")
    print("\n".join(draw_all(sys.argv[1])))
