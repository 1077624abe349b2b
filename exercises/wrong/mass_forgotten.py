# distill.py:soft_cross_entropy, exercise 17: W, the mass that is shown, is forgotten: the loss is lse - sum w z


def soft_cross_entropy(logits, ids, logp, missing="none"):
    lse, w = logits.logsumexp(-1), logp.exp()  # (n), (n, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = lse - (w * logits.gather(1, ids)).sum(-1)
    if missing == "tail":  # everything not named, as one more token
        others = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)
        gone = 1 - w.sum(-1)
        loss = loss + torch.where(gone > 1e-6, gone, 0) * (lse - others)  # below is rounding
    return loss
