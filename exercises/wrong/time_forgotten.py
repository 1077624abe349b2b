# model.py:ancestral_steps, exercise 5: counted from 1 instead of t


def ancestral_steps(u, t, dt, n_steps):
    # step j unmasks t - j dt <= u < t - (j - 1) dt; u >= t gives 0; the last step takes the rest
    return ((1 - u) / dt).ceil().clamp(0, n_steps).long()
