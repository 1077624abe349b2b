# model.py:nelbo, exercise 3: one order for the whole batch


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masked = 1 + (stratified(B, generator, x0.device) * T).long()  # (B, 1), uniform in 1 ... T
    u = uniform((1, T), generator, x0.device)
    masked = rank_in_row(u) < n_masked  # (B, T)
    return masked_nll(model, x0, masked, weight=T / n_masked)
