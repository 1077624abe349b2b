# model.py:diffusion_loss, exercise 2: a fraction t of a row, not each token with probability t


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    t = eps + (1 - eps) * stratified(len(x0), generator, x0.device)  # (B, 1)
    # (B, T)
    masked = rank_in_row(uniform(x0.shape, generator, x0.device)) < (t * x0.size(1)).round()
    return masked_nll(model, x0, masked, weight=(2 - t_weight) / t**t_weight)
