"""
The pictures of the lessons, drawn with the functions that they are about.
$ python lessons/pictures.py assets                                   (five files, 5 seconds)
"""

import os
import sys

import torch
from matplotlib.colors import ListedColormap

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
from configurator import UserError
from model import unmask_steps
from plumbing.attention import causal_mask
from plumbing.console import prepare_console
from plumbing.randomness import seeded, uniform
from plumbing.report import pyplot
from speculative import verify

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "slept"]
BLUE = "#2f6db5"
ORANGE = "#e08a1e"
GREEN = "#3a9a5b"
GRAY = "#d0d0d0"
WHITE = "#ffffff"
STEPS = [WHITE, "#08306b", "#2f7abc", "#86bfe0", "#d3e5f4"]  # masked; unmasked by step 1, 2, 3, 4


def grid(ax, numbers, colors, words=None):
    """(rows, columns) int64 -> squares in the color of their number, perhaps with words in them."""
    ax.pcolormesh(
        numbers,
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=len(colors) - 1,
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
    """Which position sees which, in both models."""
    T = len(WORDS)
    fig, axes = plt.subplots(1, 2, figsize=(8, 4))
    sees = {
        "causal = True: the GPT": causal_mask(T, T, "cpu"),
        "causal = False: the diffusion model": torch.ones(T, T),
    }
    for ax, (title, mask) in zip(axes, sees.items(), strict=True):
        grid(ax, mask.long(), [WHITE, BLUE])
        ax.set(title=title, xlabel="is seen", ylabel="sees", aspect="equal")
        ax.set_xticks([i + 0.5 for i in range(T)], WORDS, rotation=45)
        ax.set_yticks([i + 0.5 for i in range(T)], WORDS)
    return fig


def noise(plt):
    """One sentence at rising noise levels, and the weight of each level in the loss."""
    t = torch.tensor([[0.1], [0.3], [0.5], [0.7], [0.9]])
    # one for each token: it is masked if u < t
    u = uniform((1, len(WORDS)), seeded("noise"), "cpu")
    masked = u < t  # (levels, words)
    words = []
    for row in masked.tolist():
        words.append(["" if hidden else word for word, hidden in zip(WORDS, row, strict=True)])

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2))
    grid(left, masked.long(), [WHITE, GRAY], words)
    left.set_yticks([i + 0.5 for i in range(len(t))], [f"t = {x:.1f}" for x in t[:, 0].tolist()])
    left.set(title="each token is masked with probability t", xticks=[])
    t = torch.linspace(0.02, 1, 200)
    for a, color in ((1, BLUE), (0.5, ORANGE), (0, GREEN)):
        right.plot(t, (2 - a) / t**a, color=color, label=f"t_weight = {a}")
    right.set(title="weight of a masked token", xlabel="t", ylim=(0, 12), xlim=(0, 1))
    right.legend()
    return fig


def orders(plt, T=32, n_steps=4):
    """A sequence being unmasked in a few steps, in the papers' order and in the default one."""
    fig, axes = plt.subplots(2, 1, figsize=(10, 4.2))
    masked = torch.ones(1, T, dtype=torch.bool)
    steps = range(1, n_steps + 1)
    for ax, sampler in zip(axes, ("ancestral", "spread"), strict=True):
        step_of = unmask_steps(masked, n_steps, sampler, seeded("orders", 2))[0]  # (T)
        after = torch.stack([step_of * (step_of <= k) for k in steps])  # (n_steps, T)
        grid(ax, after, STEPS)
        ax.set_yticks([k - 0.5 for k in steps], [f"after step {k}" for k in steps])
        ax.set(title=f"{sampler}: white is [MASK], a color is what one step unmasks", xticks=[])
    return fig


def two_means(plt):
    """
    What a student is to predict for a token for which the teacher predicts two things, depending on
    what else it unmasked.
    """
    first = torch.tensor([0.6, 0.05, 0.35])
    second = torch.tensor([0.05, 0.6, 0.35])
    geometric = (first * second).sqrt()
    distributions = {
        "teacher, if the other\nword became New": first,
        "teacher, if the other\nword became Los": second,
        "their mean: kl_fwd\n= what it predicts now": (first + second) / 2,
        "geometric mean:\nkl_bwd": geometric / geometric.sum(),
    }
    fig, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharey=True)
    colors = (GRAY, GRAY, ORANGE, BLUE)
    for ax, (title, p), color in zip(axes, distributions.items(), colors, strict=True):
        bars = ax.bar(["York", "Angeles", "(other)"], p.tolist(), color=color)
        ax.bar_label(bars, [f"{x:.2f}" for x in p.tolist()], fontsize=9)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(0, 0.75))
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def speculation(plt):
    """How p and q make one token, and where a round of three drafts may end."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    q = torch.tensor([0.3, 0.45, 0.05, 0.2])
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 3))
    one_token(left, p, q)
    tree(right, round_ends(p, q, gamma=3))
    return fig


def one_token(ax, p, q):
    """(V), (V) -> bars of what is drafted and accepted, and of what is resampled, on ax."""
    both = torch.minimum(p, q)
    residual = (p - q).clamp(min=0)  # divided by its sum, and drawn from as often as its sum
    x = torch.arange(len(p)).numpy()
    rejected = {"color": WHITE, "edgecolor": ORANGE, "hatch": "///"}
    ax.bar(x - 0.2, q.numpy(), 0.36, label="q: of it, rejected", **rejected)
    ax.bar(x - 0.2, both.numpy(), 0.36, color=GREEN, label="min(p, q): accepted")
    ax.bar(x + 0.2, both.numpy(), 0.36, color=GREEN)
    ax.bar(x + 0.2, residual.numpy(), 0.36, both.numpy(), color=BLUE, label="resampled")
    title = "left: the draft's q; right: what comes out, p"
    ax.set(title=title, xticks=x, xticklabels="abcd", ylim=(0, 0.62))
    ax.legend(fontsize=8)


def round_ends(p, q, gamma, n=20_000):
    """-> [how often 0, 1, ... gamma drafts are accepted], counted in n runs of verify."""
    generator = seeded("verify")
    drafts = torch.multinomial(q, n * gamma, replacement=True, generator=seeded("drafts"))
    counts = [0] * (gamma + 1)
    for row in drafts.view(n, gamma):
        new = verify(row, p.expand(gamma + 1, -1), q.expand(gamma, -1), generator)
        counts[len(new) - 1] += 1
    return [count / n for count in counts]


def tree(ax, ends):
    """ends[k]: how often the first k drafts are accepted and no more. Draws how a round may go."""
    gamma = len(ends) - 1
    for k, fraction in enumerate(ends):
        reached = sum(ends[k:])  # how often k drafts are accepted at least
        if k:
            ax.plot((k - 1, k), (1, 1), color=GREEN, lw=8 * reached, zorder=1)
            box(ax, k, 1, f"draft {k}", GREEN)
        x, y = (k + 1, 1) if k == gamma else (k + 0.7, 0)
        ax.plot((k, x), (1, y), color=BLUE, lw=8 * fraction, zorder=1)
        box(ax, x, y, "bonus" if k == gamma else f"token {k + 1}", BLUE)
        n_tokens = f"{k + 1} token{'s' if k else ''}"
        ax.text(x, y - 0.42, f"{fraction:.0%}: {n_tokens}", ha="center", fontsize=9)
    box(ax, 0, 1, "the text", "#707070")
    title = "green: accepted; blue: the target's own"
    ax.set(title=title, xlim=(-0.5, gamma + 1.6), ylim=(-0.7, 1.5))
    ax.axis("off")


def box(ax, x, y, text, color):
    """Text in a rounded box."""
    ax.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        color=WHITE,
        bbox={"boxstyle": "round", "fc": color, "ec": "none"},
    )


PICTURES = {f.__name__: f for f in (attention, noise, orders, two_means, speculation)}


def draw_all(folder):
    """Writes each picture to folder/name.png. -> their paths."""
    plt = pyplot()
    paths = []
    for name, picture in PICTURES.items():
        fig = picture(plt)
        fig.tight_layout()
        paths.append(os.path.join(folder, f"{name}.png"))
        fig.savefig(paths[-1], dpi=110, facecolor=WHITE)
        plt.close(fig)
    return paths


if __name__ == "__main__":
    prepare_console()
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        raise UserError("Where to? python lessons/pictures.py FOLDER, of the repository: assets.")
    print("\n".join(draw_all(sys.argv[1])))
