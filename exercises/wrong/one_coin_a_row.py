# model.py:add_noise, exercise 2: one uniform number for a whole row: all of its tokens are masked, or none


def add_noise(x0, t, mask_id, generator):
    return torch.where(uniform((len(x0), 1), generator, x0.device) < t, mask_id, x0)
