"""
A random Markov language whose entropy rate is known exactly: how far from the truth is your NELBO?
$ python data/markov/prepare.py                                                          (2 seconds)

Each of V letters is followed by one of `successors` letters (random probabilities) or, once in 50
times, by any. No model can have fewer nats per token than the entropy in meta.json, and a diffusion
model's bound lies above it.
"""

import bisect
import os
import string
import sys

import numpy as np

# so that it runs from anywhere
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import data
from configurator import UserError, configure

# --------------------------------------------------------------------------------------------------
out_dir = os.path.dirname(os.path.abspath(__file__))  # where train.bin, val.bin and meta.json go
vocab_size = 26  # V letters, 2 to 52
successors = 4  # likely next letters of each letter
n_tokens = 2_000_000
seed = 1337
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def transition_matrix(V, successors, rng):
    """-> (V, V) rows of next-letter probabilities: a sparse part and a floor of 0.02 / V."""
    P = np.zeros((V, V))
    for row in P:
        row[rng.choice(V, successors, replace=False)] = rng.dirichlet(np.ones(successors))
    return 0.98 * P + 0.02 / V


def stationary(P):
    """(V, V) -> (V,): the distribution with pi P = pi, the left eigenvector of the eigenvalue 1."""
    values, vectors = np.linalg.eig(P.T)
    pi = vectors[:, np.argmax(values.real)].real
    return pi / pi.sum()


def entropy_rate(P, pi):
    """Nats per letter of a long text: sum_i pi_i H(P_i)."""
    return -(pi[:, None] * P * np.log(P)).sum()


def walk(P, pi, n, rng):
    """-> (n,) letters of one text that starts from pi."""
    rows = [list(r) for r in P.cumsum(1)]
    state = int(rng.choice(len(pi), p=pi))
    ids = []
    for u in rng.random(n).tolist():
        ids.append(state)
        state = min(bisect.bisect(rows[state], u), len(pi) - 1)
    return np.array(ids)


if __name__ == "__main__":
    if not (1 <= successors <= vocab_size and 2 <= vocab_size <= 52):
        raise UserError(
            f"vocab_size {vocab_size} must be from 2 to 52, successors {successors} from 1 to "
            "vocab_size."
        )
    rng = np.random.default_rng(seed)
    P = transition_matrix(vocab_size, successors, rng)
    pi = stationary(P)
    ids = walk(P, pi, n_tokens, rng)
    meta = {
        "tokenizer": "char",
        "vocab_size": vocab_size,
        "itos": list(string.ascii_letters[:vocab_size]),
        "source": f"random Markov chain, seed {seed}",
        "entropy_rate": entropy_rate(P, pi),
        "stationary_entropy": -(pi * np.log(pi)).sum(),
        "stationary": pi.tolist(),
        "transition": P.tolist(),
    }
    data.write(out_dir, ids[: int(0.9 * n_tokens)], ids[int(0.9 * n_tokens) :], meta)
    print(f"entropy rate {meta['entropy_rate']:.4f} nats per token")
