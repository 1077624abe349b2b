# distill.py:sdtt_loss, exercise 11: the mean of no losses, NaN
def sdtt_loss(student, x0, generator, teacher, dt, sampler, *, k=2, divergence="kl_bwd"):
    state = spread_state if sampler == "spread" else ancestral_state
    xt, step_of = state(x0, dt, k, student.mask_id, generator)
    targets = sdtt_targets(teacher, xt, step_of, k, generator)
    supervised = step_of > 0
    log_student = student.head(student.hidden(xt)[supervised]).float().log_softmax(-1)
    with torch.no_grad():
        log_teacher = teacher.head(targets[supervised]).float().log_softmax(-1)
    return divergence_between(log_student, log_teacher, divergence).mean()
