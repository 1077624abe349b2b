# model.py:draw, exercise 4: u = 0 draws the first token, also if its probability is 0


def draw(p, generator=None):
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform(p.shape[:-1], generator, p.device, torch.float64)
    u = u[..., None] * cdf[..., -1:]  # the sum is 1 only up to rounding
    tokens = torch.searchsorted(cdf, u).squeeze(-1)
    return tokens.clamp(max=p.size(-1) - 1).to(device)
