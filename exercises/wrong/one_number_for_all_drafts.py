# speculative.py:verify, exercise 14: one uniform number for all drafts
def verify(drafts, p, q, generator):
    u = uniform((1,), generator, p.device)
    for i, draft in enumerate(drafts.tolist()):
        if u * q[i][draft] >= p[i, draft]:
            residual = (p[i] - q[i]).clamp(min=0)
            if not residual.any():
                residual = p[i]
            return torch.cat([drafts[:i], draw(residual, generator)[None]])
    return torch.cat([drafts, draw(p[-1], generator)[None]])
