# model.py:unmask_steps, exercise 5: first_hitting unmasks two positions in one step
def unmask_steps(masked, n_steps, sampler, generator):
    B, T = masked.shape
    u = uniform((B, T), generator, masked.device)
    if sampler in ("ancestral", "analytic"):
        step_of = ancestral_steps(u, t=1, dt=1 / n_steps, n_steps=n_steps)
    elif sampler == "first_hitting":
        step_of = 1 + (u * masked.sum(1, keepdim=True)).long()
    else:
        order = rank_in_row(uniform((B, n_steps), generator, masked.device))
        number = (masked.cumsum(dim=1) - 1).clamp(min=0)
        step_of = 1 + order.gather(1, number % n_steps)
    return step_of.masked_fill(~masked, 0)
