# model.py:unmask, exercise 6: every step draws all positions


def unmask(
    model,
    xt,
    n_steps,
    sampler="spread",
    *,
    temperature=1.0,
    cooling=1.0,
    top_p=1.0,
    generator=None,
    watch=None,
):
    xt = xt.clone()
    step_of = close_gaps(unmask_steps(xt == model.mask_id, n_steps, sampler, generator))  # (B, T)
    n_steps = int(step_of.max())
    for step in range(1, n_steps + 1):
        now = step_of == step  # (B, T)
        rows = now.any(dim=1)  # (B): the others need no forward pass
        h = model.hidden(xt).flatten(0, 1)  # (N, C), in the order of xt[now]
        temp = step_temperature(step, n_steps, temperature, cooling)
        xt = draw_tokens(model, h, generator, temp, top_p).view_as(xt)
        if watch:
            watch(xt)
    return xt
