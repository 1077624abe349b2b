# model.py:draw, exercise 4: p that adds up to less than 1 gives its last token too often


def draw(p, generator=None):
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    cdf = p.cumsum(-1, dtype=torch.float64)
    u = uniform(p.shape[:-1], generator, p.device, torch.float64)
    u = u[..., None]  # the sum is 1 only up to rounding
    tokens = torch.searchsorted(cdf, u, right=True).squeeze(-1)
    return tokens.clamp(max=p.size(-1) - 1).to(device)
