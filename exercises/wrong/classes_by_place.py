# model.py:spread_order, exercise 7: classes by place in the row, not by number among the blanks


def spread_order(blank, steps, generator):
    K = blank.sum(1, keepdim=True).clamp(min=1, max=steps)  # (B, 1)
    u = uniform((len(blank), int(K.max())), generator, blank.device)
    u = u.masked_fill(
        torch.arange(u.size(1), device=u.device) >= K, 2
    )  # above any u: a row's own classes rank below
    number = torch.arange(blank.size(1)).expand(blank.shape)  # (B, T), of each blank
    return torch.where(
        blank, ranks(u).gather(1, number % K) + 1, 0
    )  # the rank of its class, from 1
