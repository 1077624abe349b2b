# metrics.py:tokens_per_forward, exercise 16: accepted + 1, which an eos may have cut
def tokens_per_forward(rounds):
    return 1 + rounds.accepted.sum().item() / rounds.n_forwards
