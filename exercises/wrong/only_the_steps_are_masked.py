# distill.py:ancestral_state, exercise 9: what is masked after k steps is shown


def ancestral_state(x0, dt, k, mask_id, generator):
    t = 1 - stratified(len(x0), generator, x0.device)  # (B, 1) in (0, 1]
    u = uniform(x0.shape, generator, x0.device)  # (B, T): when each token becomes masked
    step_of = ancestral_steps(u, t, dt, k)
    step_of = step_of.masked_fill(u < t - k * dt, 0)
    return x0.masked_fill(step_of > 0, mask_id), step_of
