# model.py:nelbo, exercise 3: each token with probability l / T, not exactly l of them


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masked = 1 + (stratified(B, generator, x0.device) * T).long()  # (B, 1), uniform in 1 ... T
    u = uniform(x0.shape, generator, x0.device)
    masked = u < n_masked / T  # (B, T)
    return masked_nll(model, x0, masked, weight=T / n_masked)
