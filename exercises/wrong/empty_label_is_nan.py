# extras/soft_labels.py:soft_cross_entropy, exercise 17: 0 / 0 where all labels are -inf
def soft_cross_entropy(logits, ids, logp, missing="none"):
    w = logp.exp()
    lse = logits.logsumexp(-1)
    gone = 1 - w.sum(-1)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":
        unnamed = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)
        loss = loss + torch.where(gone < 1e-6, 0, gone * (lse - unnamed))
    return loss
