# metrics.py:repeated, exercise 7: an n-gram of another text counts as repeated


def repeated(x, n=4):
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return 1 - len(grams.flatten(0, 1).unique(dim=0)) / (grams.size(0) * grams.size(1))
