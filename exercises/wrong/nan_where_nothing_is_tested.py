# metrics.py:acceptance, exercise 16: 0 / 0 where nothing was tested
def acceptance(rounds):
    return (rounds.accepted.sum() / rounds.tested.sum()).item()
