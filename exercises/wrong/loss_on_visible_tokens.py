# model.py:masked_nll, exercise 2: the loss of all tokens, also of those that the network sees


def masked_nll(model, x0, masked, weight):
    xt = x0.masked_fill(masked, model.mask_id)  # (B, T), N of them masked
    h = model.hidden(xt).flatten(0, 1)  # (N, C): only masked positions are predicted
    logits = model.head(h).float()  # (N, V)
    losses = F.cross_entropy(logits, x0.flatten(), reduction="none")  # (N)
    return (weight.expand_as(masked).flatten() * losses).sum() / x0.numel()
