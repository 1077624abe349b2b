# model.py:diffusion_loss, exercise 3: .item() cuts the loss off from the weights


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    t = (1 - eps) * stratified(x0.size(0), generator, x0.device) + eps  # (B, 1)
    xt = add_noise(x0, t, model.mask_id, generator)
    masked = xt == model.mask_id  # (B, T), N of them
    h = model.hidden(xt)[masked]  # (N, C)
    weights = ((2 - t_weight) / t**t_weight).expand(xt.shape)[masked] / x0.numel()  # (N)
    return model.nll(h, x0[masked], weights).item()
