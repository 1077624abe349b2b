# extras/soft_labels.py:soft_cross_entropy, exercise 17: exp overflows where logits are large


def soft_cross_entropy(logits, ids, logp, missing="none"):
    lse = logits.exp().sum(-1).log()  # (N)
    w = logp.exp()  # (N, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":  # all tokens that are not named, as one more token
        unnamed = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)  # (N)
        gone = 1 - w.sum(-1)
        gone = gone.masked_fill(gone < 1e-6, 0)  # below is rounding
        loss = loss + gone * (lse - unnamed)
    return loss
