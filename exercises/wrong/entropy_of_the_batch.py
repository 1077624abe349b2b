# metrics.py:entropies, exercise 7: the frequencies of all texts together


def entropies(x):
    found = []
    for _ in x:
        p = x.unique(return_counts=True)[1] / x.numel()
        found.append(-(p * p.log()).sum())
    return torch.stack(found)
