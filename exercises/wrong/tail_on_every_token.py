# distill.py:soft_cross_entropy, exercise 17: the tail is put on all tokens, also on the named ones


def soft_cross_entropy(logits, ids, logp, missing="none"):
    lse, w = logits.logsumexp(-1), logp.exp()  # (n), (n, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":  # everything not named, as one more token
        others = lse
        gone = 1 - w.sum(-1)
        loss = loss + torch.where(gone > 1e-6, gone, 0) * (lse - others)  # below is rounding
    return loss
