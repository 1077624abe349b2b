# model.py:unmask, exercise 6: a row with fewer steps than another waits at first


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
        now = (step_of > 0) & (step_of == step_of.amax(1, keepdim=True) - n_steps + step)
        rows = now.any(dim=1)  # (B): no time input, so an unchanged row needs no forward pass
        h = model.hidden(xt[rows])[now[rows]]  # (N, C), in the same order as xt[now]
        temp = step_temperature(step, n_steps, temperature, cooling)
        xt[now] = draw_tokens(model, h, generator, temp, top_p)
        if watch:
            watch(xt)
    return xt
