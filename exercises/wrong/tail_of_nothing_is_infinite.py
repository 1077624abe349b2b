# extras/soft_labels.py:soft_cross_entropy, exercise 17: 0 times infinity where all is named
def soft_cross_entropy(logits, ids, logp, missing="none"):
    w = logp.exp()
    lse = logits.logsumexp(-1)
    gone = (1 - w.sum(-1)).clamp(min=0)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True).clamp(min=1e-9)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":
        named = torch.zeros_like(logits).scatter(1, ids, 1.0) > 0
        unnamed = logits.masked_fill(named, -math.inf).logsumexp(-1)
        loss = loss + gone * (lse - unnamed)
    return loss
