# model.py:unmask_steps, exercise 5: the classes keep their order and begin at a random one
def unmask_steps(masked, n_steps, sampler, generator):
    B, T = masked.shape
    if sampler in ("ancestral", "analytic"):
        u = uniform((B, T), generator, masked.device)
        step_of = ancestral_steps(u, t=1, dt=1 / n_steps, n_steps=n_steps)
    elif sampler == "first_hitting":
        u = uniform((B, T), generator, masked.device)
        step_of = 1 + rank_in_row(u.masked_fill(~masked, 2))
    else:
        shift = (uniform((B, 1), generator, masked.device) * n_steps).long()
        number = (masked.cumsum(dim=1) - 1).clamp(min=0)
        step_of = 1 + (shift + number) % n_steps
    return step_of.masked_fill(~masked, 0)
