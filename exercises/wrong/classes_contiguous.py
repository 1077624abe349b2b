# model.py:spread_order, exercise 7: classes of neighbours instead of every K-th blank


def spread_order(blank, steps, generator):
    K = blank.sum(1, keepdim=True).clamp(min=1, max=steps)  # (B, 1)
    u = uniform((len(blank), int(K.max())), generator, blank.device)
    u = u.masked_fill(
        torch.arange(u.size(1), device=u.device) >= K, 2
    )  # above any u: a row's own classes rank below
    number = blank.cumsum(1) - 1  # (B, T), of each blank
    return torch.where(
        blank,
        ranks(u).gather(1, (number * K // blank.sum(1, keepdim=True).clamp(min=1)).clamp(min=0))
        + 1,
        0,
    )  # the rank of its class, from 1
