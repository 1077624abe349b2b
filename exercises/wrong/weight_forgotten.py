# model.py:diffusion_loss, exercise 3: the weight 1/t is forgotten


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    # E over t in (eps, 1) of 1/t * sum over masked tokens of -log p(x0 | xt), from one t and one xt a sequence
    t = (1 - eps) * stratified(x0.size(0), generator, x0.device) + eps  # (B, 1)
    xt = add_noise(x0, t, model.mask_id, generator)
    masked = xt == model.mask_id  # (B, T), N of them
    h = model.hidden(xt)[masked]  # (N, C)
    weights = (torch.ones_like(t)).expand(xt.shape)[masked] / x0.numel()  # (N)
    # the sum of weights * F.cross_entropy(model.head(h), x0[masked], reduction="none"), without N x V logits at once
    return model.nll(h, x0[masked], weights)
