# model.py:add_noise, exercise 2: a share t of a row's tokens, instead of each with probability t


def add_noise(x0, t, mask_id, generator):
    n_masks = (t * x0.size(1)).round()
    return torch.where(ranks(uniform(x0.shape, generator, x0.device)) < n_masks, mask_id, x0)
