# distill.py:kd_loss, exercise 13: the drafter learns without dropout


def kd_loss(
    drafter, batch, generator, teacher, divergence="kl_fwd", temperature=1.0, ce_weight=0.0
):
    x = batch[:, :-1]  # (B, T)
    y = batch[:, 1:]  # (B, T)
    drafter.eval()
    logits = drafter(x).float()  # (B, T, V)
    log_drafter = (logits / temperature).log_softmax(-1)
    with torch.no_grad():
        log_teacher = (teacher(x).float() / temperature).log_softmax(-1)
    # gradients scale with 1 / temperature^2, which this undoes (Hinton et al. 2015)
    loss = temperature**2 * divergence_between(log_drafter, log_teacher, divergence).mean()
    if ce_weight:
        loss = loss + ce_weight * F.cross_entropy(logits.flatten(0, 1), y.flatten())
    return loss
