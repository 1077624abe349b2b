# speculative.py:residual, exercise 15: a refused token is drawn from p itself: the drafter's favourites come too often


def residual(p, q):
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return p + 0 * total  # p = q: nothing was refused but by rounding
