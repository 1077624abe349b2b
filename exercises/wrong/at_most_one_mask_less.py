# model.py:nelbo, exercise 4: 0 ... T - 1 masks instead of 1 ... T


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masks = (stratified(B, generator, x0.device) * T).long()  # (B, 1) in 1 ... T
    masked = (
        ranks(uniform(x0.shape, generator, x0.device)) < n_masks
    )  # (B, T): each set of that size equally likely
    h = model.hidden(x0.masked_fill(masked, model.mask_id))[masked]
    return model.nll(
        h, x0[masked], (1 / n_masks.clamp(min=1)).expand(B, T)[masked] / B
    )  # T / l, over all B T tokens
