# speculative.py:predicted_speedup, exercise 16: the token that the target adds is not counted


def predicted_speedup(alpha, c, gamma, call=1.0):
    tokens = gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return (tokens - 1) / (gamma * c + call)
