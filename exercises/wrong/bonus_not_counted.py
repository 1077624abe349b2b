# metrics.py:predicted_speedup, exercise 16: the token that the target adds is not counted


def predicted_speedup(alpha, c, gamma, verify=1.0):
    if alpha == 1:
        tokens = gamma + 1
    else:
        tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)  # 1 + alpha + ... + alpha^gamma
    return (tokens - 1) / (gamma * c + verify)
