# model.py:nelbo, exercise 4: a mean over masked tokens, whatever their number: long masks weigh most


def nelbo(model, x0, generator):
    B, T = x0.shape
    n_masks = (stratified(B, generator, x0.device) * T).long() + 1  # (B, 1) in 1 ... T
    masked = (
        ranks(uniform(x0.shape, generator, x0.device)) < n_masks
    )  # (B, T): each set of that size equally likely
    h = model.hidden(x0.masked_fill(masked, model.mask_id))[masked]
    return model.nll(
        h, x0[masked], torch.ones_like(x0[masked]) / masked.sum()
    )  # T / l, over all B T tokens
