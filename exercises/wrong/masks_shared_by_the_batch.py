# model.py:add_noise, exercise 2: one uniform number for a place in all rows


def add_noise(x0, t, mask_id, generator):
    return torch.where(uniform(x0.shape[1:], generator, x0.device) < t, mask_id, x0)
