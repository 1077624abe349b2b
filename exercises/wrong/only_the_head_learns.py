# model.py:masked_nll, exercise 2: only the head gets a gradient


def masked_nll(model, x0, masked, weight):
    xt = x0.masked_fill(masked, model.mask_id)  # (B, T), N of them masked
    with torch.no_grad():
        h = model.hidden(xt)[masked]  # (N, C)
    logits = model.head(h).float()  # (N, V)
    losses = F.cross_entropy(logits, x0[masked], reduction="none")  # (N)
    weights = weight.expand_as(masked)[masked]  # (N): each token has the weight of its row
    return (weights * losses).sum() / x0.numel()
