# model.py:masked_nll, exercise 2: the network reads x0 instead of the masked text


def masked_nll(model, x0, masked, weight):
    xt = x0.masked_fill(masked, model.mask_id)  # (B, T), N of them masked
    h = model.hidden(x0)[masked]  # (N, C): only masked positions are predicted
    logits = model.head(h).float()  # (N, V)
    losses = F.cross_entropy(logits, x0[masked], reduction="none")  # (N)
    return (weight.expand_as(masked)[masked] * losses).sum() / x0.numel()
