# distill.py:kd_loss, exercise 14: the divergence of the target from the drafter


def kd_loss(
    drafter, batch, generator, target, divergence="kl_fwd", temp=1.0, kd_weight=1.0, ce_weight=0.0
):
    x, y = batch[:, :-1], batch[:, 1:].flatten()
    with torch.no_grad():
        h_target = target.hidden(x).flatten(0, 1)  # (B T, C of the target)
    head = target.frozen_head()

    def loss_of(logits, h_target, y):
        """(n, V), (n, C), (n) -> (n)."""
        z_drafter, z_target = logits / temp, head(h_target) / temp
        if (
            divergence == "mse"
        ):  # DIFFERS from sdtt: of logits, and a mean; on log-probabilities it hardly learns here
            loss = (z_drafter - z_target).square().mean(-1)
        else:
            loss = divergence_between(
                divergence, z_target.log_softmax(-1), z_drafter.log_softmax(-1)
            )
        loss = kd_weight * temp**2 * loss
        return (
            loss + ce_weight * F.cross_entropy(logits, y, reduction="none") if ce_weight else loss
        )

    return drafter.head_loss(drafter.hidden(x).flatten(0, 1), loss_of, h_target, y) / len(y)
