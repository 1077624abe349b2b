# distill.py:sdtt_loss, exercise 12: the divergence of the teacher from the student: the arguments are swapped


def sdtt_loss(
    student,
    x0,
    generator,
    teacher,
    dt,
    k=2,
    divergence="kl_bwd",
    sampler="ancestral",
    dtype=torch.float32,
):
    given = x0, dt, k, student.mask_id, generator
    # (B, T) both; N places with call > 0 are learnt
    xt, call = spread_states(*given) if sampler == "spread" else ancestral_states(*given, sampler)
    targets = sdtt_targets(teacher, xt, call, generator)  # (N, C)
    h = student.hidden(xt)[call > 0]  # (N, C)
    head = teacher.frozen_head()

    def loss_of(logits, h_teacher):
        """(n, V), (n, C) -> (n): both distributions exist for a few positions at a time only."""
        log_p, log_q = (z.to(dtype).log_softmax(-1) for z in (logits, head(h_teacher)))
        return divergence_between(divergence, log_q, log_p)

    return student.head_loss(h, loss_of, targets) / max(len(h), 1)
