# metrics.py:tokens_per_forward, exercise 16: only accepted drafts are counted


def tokens_per_forward(rounds):
    return int(rounds.accepted.sum()) / max(rounds.n_forwards, 1)
