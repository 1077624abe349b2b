# speculative.py:verify, exercise 14: the generator that is given is not used
def verify(drafts, p, q, generator):
    u = torch.rand(len(drafts))
    for i, draft in enumerate(drafts.tolist()):
        if u[i] * q[i][draft] >= p[i, draft]:
            residual = (p[i] - q[i]).clamp(min=0)
            if not residual.any():
                residual = p[i]
            return torch.cat([drafts[:i], draw(residual, None)[None]])
    return torch.cat([drafts, draw(p[-1], None)[None]])
