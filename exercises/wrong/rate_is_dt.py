# model.py:reveal_rate, exercise 6: the reveal probability is t - s, as if the token were not known to be masked at t


def reveal_rate(t, s, sampler="ancestral"):
    if sampler == "ancestral":
        return t - s  # MDLM eq. 7: (alpha_s - alpha_t) / (1 - alpha_t)
    sigma_t, sigma_s = -torch.log1p(-t), -torch.log1p(-s)
    return ((-sigma_s).exp() - (-sigma_t).exp()) / -torch.expm1(-sigma_t)
