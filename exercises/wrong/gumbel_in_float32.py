# model.py:draw, exercise 4: Gumbel noise in float32, which cuts off the tail


def draw(p, generator=None):
    device = p.device
    if device.type == "mps":
        p = p.cpu()  # an Apple GPU has no float64
    gumbel = -(-uniform(p.shape, generator, p.device).log()).log()
    tokens = (p.log() + gumbel).argmax(-1)
    return tokens.clamp(max=p.size(-1) - 1).to(device)
