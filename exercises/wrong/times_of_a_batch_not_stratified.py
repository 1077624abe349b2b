# model.py:diffusion_loss, exercise 2: independent times in a batch


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    t = eps + (1 - eps) * uniform((len(x0), 1), generator, x0.device)  # (B, 1)
    masked = uniform(x0.shape, generator, x0.device) < t  # (B, T)
    return masked_nll(model, x0, masked, weight=(2 - t_weight) / t**t_weight)
