# metrics.py:acceptance, exercise 16: drafts after a rejection count as tested


def acceptance(rounds):
    return (rounds.accepted.sum() / (rounds.tested[0] * len(rounds.tested)).clamp(min=1)).item()
