# model.py:ancestral_steps, exercise 5: a step takes what the one before it unmasks


def ancestral_steps(u, t, dt, n_steps):
    # step j unmasks t - j dt <= u < t - (j - 1) dt; u >= t gives 0; the last step takes the rest
    return ((t - u) / dt).add(1).floor().clamp(0, n_steps).long()
