# model.py:add_noise, exercise 2: the text itself is overwritten


def add_noise(x0, t, mask_id, generator):
    x0[uniform(x0.shape, generator, x0.device) < t] = mask_id
    return x0
