# model.py:unmask, exercise 6: it cools over the steps of the first row


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
    n_steps = int(step_of.max())  # empty steps are not taken
    for step in range(1, n_steps + 1):
        now = step_of == step  # (B, T)
        rows = now.any(dim=1)  # (B): no time input, so an unchanged row needs no forward pass
        h = model.hidden(xt[rows])[now[rows]]  # (N, C), in the same order as xt[now]
        n_first = int(step_of[0].max())
        temp = step_temperature(min(step, n_first), n_first, temperature, cooling)
        xt[now] = draw_tokens(model, h, generator, temp, top_p)
        if watch:
            watch(xt)
    return xt
