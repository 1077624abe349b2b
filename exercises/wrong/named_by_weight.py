# extras/soft_labels.py:soft_cross_entropy, exercise 17: an id of -inf does not count as named
def soft_cross_entropy(logits, ids, logp, missing="none"):
    w = logp.exp()
    lse = logits.logsumexp(-1)
    gone = 1 - w.sum(-1)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True).clamp(min=1e-9)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":
        named = torch.zeros_like(logits).scatter_add(1, ids, w) > 0
        unnamed = logits.masked_fill(named, torch.finfo(logits.dtype).min).logsumexp(-1)
        loss = loss + torch.where(gone < 1e-6, 0, gone * (lse - unnamed))
    return loss
