# model.py:ancestral_steps, exercise 5: what is masked after the last step is given to none


def ancestral_steps(u, t, dt, n_steps):
    # step j unmasks t - j dt <= u < t - (j - 1) dt; u >= t gives 0; the last step takes the rest
    step_of = ((t - u) / dt).ceil().clamp(min=0).long()
    return step_of.masked_fill(step_of > n_steps, 0)
