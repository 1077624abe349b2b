# speculative.py:verify, exercise 14: the bonus token is drawn where the last draft was


def verify(drafts, p, q, generator):
    u = uniform((len(drafts),), generator, p.device)
    for i, x in enumerate(drafts.tolist()):
        if u[i] * q[i][x] >= p[i, x]:  # rejected
            residual = (p[i] - q[i]).clamp(min=0)
            if not residual.any():  # p = q: nothing is ever rejected, except by rounding
                residual = p[i]
            token = draw(residual, generator)  # draw takes it relative to its sum
            return torch.cat([drafts[:i], token[None]])
    # all accepted: the same forward pass gives one token more
    bonus = draw(p[-2] if len(drafts) else p[-1], generator)
    return torch.cat([drafts, bonus[None]])
