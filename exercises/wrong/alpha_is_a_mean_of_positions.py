# metrics.py:acceptance, exercise 16: the mean of each position's fraction


def acceptance(rounds):
    return (rounds.accepted / rounds.tested.clamp(min=1)).mean().item()
