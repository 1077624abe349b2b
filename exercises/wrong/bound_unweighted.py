# model.py:nelbo, exercise 3: a mean over all tokens, however many are masked


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masked = 1 + (stratified(B, generator, x0.device) * T).long()  # (B, 1), uniform in 1 ... T
    u = uniform(x0.shape, generator, x0.device)
    masked = rank_in_row(u) < n_masked  # (B, T)
    return masked_nll(model, x0, masked, weight=torch.ones_like(u[:, :1]))
