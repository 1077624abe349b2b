# speculative.py:verify, exercise 15: drafts after the first refusal are counted as well


def verify(drafts, p, q, generator):
    B, g = drafts.shape
    if not g:
        return drafts.new_zeros(B), draw_from(p[:, 0], generator)
    # Token x, which came with chance q(x), stays with chance min(1, p(x) / q(x)): so it stays min(p, q) of the time ...
    p_x, q_x = (d[:, :g].gather(2, drafts[..., None]).squeeze(2) for d in (p, q))  # (B, g)
    accepted = bernoulli((p_x / q_x).clamp(max=1), generator)
    n_accepted = accepted.long().sum(
        1
    )  # those before the first refusal: later ones were never judged
    # ... and where it does not, the rest of p, norm(max(p - q, 0)), makes up for it exactly.
    row, refused = (
        torch.arange(B, device=drafts.device),
        n_accepted.clamp(max=g - 1),
    )  # if all are accepted: not used
    rest = residual(p[row, refused], q[row, refused])  # (B, V)
    p_next = torch.where(
        (n_accepted < g)[:, None], rest, p[:, g]
    )  # all accepted: the target's next token for free
    return n_accepted, draw_from(p_next, generator)
