# metrics.py:repeated, exercise 7: the fraction of n-grams that are new instead of repeated


def repeated(x, n=4):
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return sum(len(row.unique(dim=0)) for row in grams) / (grams.size(0) * grams.size(1))
