# distill.py:sdtt_loss, exercise 11: only the student's head gets a gradient


def sdtt_loss(student, x0, generator, teacher, dt, sampler, *, k=2, divergence="kl_bwd"):
    state = spread_state if sampler == "spread" else ancestral_state
    xt, step_of = state(x0, dt, k, student.mask_id, generator)  # (B, T) each
    targets = sdtt_targets(teacher, xt, step_of, k, generator)  # (B, T, C)
    supervised = step_of > 0  # (B, T), N of them
    h = student.hidden(xt)[supervised].detach()  # (N, C)
    log_student = student.head(h).float().log_softmax(-1)  # (N, V)
    with torch.no_grad():
        log_teacher = teacher.head(targets[supervised]).float().log_softmax(-1)  # (N, V)
    losses = divergence_between(log_student, log_teacher, divergence)  # (N)
    return losses.sum() / max(len(losses), 1)  # a batch in which nothing is masked has loss 0
