# model.py:unmask_steps, exercise 5: classes by position in the row, not by number among the masked


def unmask_steps(masked, n_steps, sampler, generator):
    B, T = masked.shape
    u = uniform((B, T), generator, masked.device)
    if sampler in ("ancestral", "analytic"):
        # analytic, SEDD's Tweedie step, unmasks (e^ds - 1) / (e^sigma_t - 1) of them, where sigma
        # is -log(1 - t): that is (t - s) / t, too. One sampler, two papers
        step_of = ancestral_steps(u, t=1, dt=1 / n_steps, n_steps=n_steps)
    elif sampler == "first_hitting":
        # infinitely many steps: each unmasks at most one position of a row (Zheng et al. 2024)
        step_of = 1 + rank_in_row(u.masked_fill(~masked, 2))  # 2 is above any u: these come last
    elif sampler == "spread":
        # Positions unmasked in one step do not see each other's tokens: keep them far apart. The
        # masked positions of a row, from the left, go round robin to K steps in random order.
        # (B, T): 0, 1, 2 ... at the masked positions
        number = torch.arange(T, device=masked.device).expand(B, T)
        u = uniform((B, n_steps), generator, masked.device)  # (B, K)
        step_of = 1 + rank_in_row(u).gather(1, number.clamp(min=0) % n_steps)
    else:
        raise UserError(f"sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    return step_of.masked_fill(~masked, 0)
