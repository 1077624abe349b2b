# model.py:diffusion_loss, exercise 3: a mean over the masked tokens alone: no bound on the likelihood


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    # E over t in (eps, 1) of 1/t * sum over masked tokens of -log p(x0 | xt), from one t and one xt a sequence
    t = (1 - eps) * stratified(x0.size(0), generator, x0.device) + eps  # (B, 1)
    xt = add_noise(x0, t, model.mask_id, generator)
    masked = xt == model.mask_id  # (B, T), N of them
    h = model.hidden(xt)[masked]  # (N, C)
    weights = ((2 - t_weight) / t**t_weight).expand(xt.shape)[masked] / masked.sum()  # (N)
    # the sum of weights * F.cross_entropy(model.head(h), x0[masked], reduction="none"), without N x V logits at once
    return model.nll(h, x0[masked], weights)
