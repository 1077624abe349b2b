# metrics.py:predicted_speedup, exercise 16: a round without a draft costs no search for one
def predicted_speedup(alpha, c, gamma, verify=1.0, propose_rate=1.0):
    tokens = 1 + propose_rate * sum(alpha**i for i in range(1, gamma + 1))
    return tokens / (propose_rate * (gamma * c + verify) + 1 - propose_rate)
