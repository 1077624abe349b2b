# speculative.py:verify, exercise 14: 0 / 0 where rounding rejects and there is no residual
def verify(drafts, p, q, generator):
    u = uniform((len(drafts),), generator, p.device)
    for i, draft in enumerate(drafts.tolist()):
        if u[i] * q[i][draft] >= p[i, draft]:
            residual = (p[i] - q[i]).clamp(min=0)
            return torch.cat([drafts[:i], draw(residual / residual.sum(), generator)[None]])
    return torch.cat([drafts, draw(p[-1], generator)[None]])
