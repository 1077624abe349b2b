# model.py:unmask_steps, exercise 5: first_hitting takes n_steps steps at most


def unmask_steps(masked, n_steps, sampler, generator):
    B, T = masked.shape
    u = uniform((B, T), generator, masked.device)
    if sampler in ("ancestral", "analytic"):
        # analytic is SEDD's name: its step unmasks (e^(sigma_t - sigma_s) - 1) / (e^sigma_t - 1) of
        # the masked, and with sigma = -log(1 - t) that is (t - s) / t. One sampler, two papers
        step_of = ancestral_steps(u, t=1, dt=1 / n_steps, n_steps=n_steps)
    elif sampler == "first_hitting":
        # infinitely many steps: each unmasks at most one position of a row (Zheng et al. 2024)
        step_of = (1 + rank_in_row(u.masked_fill(~masked, 2))).clamp(max=n_steps)
    elif sampler == "spread":
        # positions unmasked in one step do not see each other's tokens: keep them far apart
        noise = uniform((B, n_steps), generator, masked.device)
        order = rank_in_row(noise)  # (B, K) in 0 ... K - 1
        number = masked.cumsum(dim=1) - 1  # (B, T): 0, 1, 2 ... at the masked positions
        number = number.clamp(min=0)  # -1 before the first masked one; such positions get 0 below
        step_of = 1 + order.gather(1, number % n_steps)
    else:
        raise UserError(f"sampler is {sampler!r}; choose ancestral, first_hitting or spread.")
    return step_of.masked_fill(~masked, 0)
