# metrics.py:predicted_speedup, exercise 16: propose_rate is ignored
def predicted_speedup(alpha, c, gamma, verify=1.0, propose_rate=1.0):
    tokens = sum(alpha**i for i in range(gamma + 1))
    return tokens / (gamma * c + verify)
