# distill.py:divergence_between, exercise 10: tvd is the distance of log-probabilities, as in the released code


def divergence_between(divergence, log_p, log_q):
    if divergence == "kl_bwd":
        return (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(p || q)
    if divergence == "kl_fwd":
        return (log_q.exp() * (log_q - log_p)).sum(-1)  # KL(q || p)
    if divergence == "tvd":
        return (log_p - log_q).abs().sum(
            -1
        ) / 2  # DIFFERS: the released code has log_p - log_q here
    if divergence == "mse":
        return (log_p - log_q).square().sum(-1)
    if (
        divergence == "nla"
    ):  # negative log acceptance: sum min(p, q) = 1 - tvd is the chance that a draft is accepted
        return -torch.minimum(log_p, log_q).logsumexp(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)  # jsd, against the mixture m
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2
