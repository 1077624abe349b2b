# model.py:draw_from, exercise 5: one uniform number for all rows: their tokens depend on each other


def draw_from(p, generator=None):
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform((1,) * p.dim(), generator, p.device, torch.float64) * cdf[..., -1:]
    return torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp(max=p.size(-1) - 1).to(device)
