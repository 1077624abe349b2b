# model.py:nelbo, exercise 4: independent numbers of masks


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masks = (uniform((B, 1), generator, x0.device) * T).long() + 1
    masked = ranks(uniform(x0.shape, generator, x0.device)) < n_masks
    h = model.hidden(x0.masked_fill(masked, model.mask_id))[masked]
    return model.nll(h, x0[masked], (1 / n_masks).expand(B, T)[masked] / B)
