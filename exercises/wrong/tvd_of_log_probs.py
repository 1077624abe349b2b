# distill.py:divergence_between, exercise 8: tvd of log-probabilities, as in the released code


def divergence_between(log_student, log_teacher, divergence):
    if divergence == "kl_bwd":  # KL(student || teacher): mode-seeking, the paper's best
        return (log_student.exp() * (log_student - log_teacher)).sum(-1)
    if divergence == "kl_fwd":  # KL(teacher || student): mode-covering
        return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    if divergence == "tvd":  # DIFFERS: the released code has a difference of log-probabilities here
        return (log_student - log_teacher).abs().sum(-1) / 2
    if divergence == "mse":  # eq. 11. DIFFERS: the released code takes the mean over V, 1 / V of it
        return (log_student - log_teacher).square().sum(-1)
    if divergence == "nla":  # -log of the acceptance of a draft, sum min(p, q) = 1 - tvd
        return -torch.minimum(log_student, log_teacher).logsumexp(-1)
    if divergence == "jsd":  # the mean of both KL to m, their mean
        log_m = torch.logaddexp(log_student, log_teacher) - math.log(2)
        kl_student = log_student.exp() * (log_student - log_m)
        kl_teacher = log_teacher.exp() * (log_teacher - log_m)
        return (kl_student + kl_teacher).sum(-1) / 2
    raise UserError(f"divergence is {divergence!r}; choose kl_bwd, kl_fwd, tvd, mse, jsd or nla.")
