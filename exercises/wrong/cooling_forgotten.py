# model.py:unmask, exercise 6: the temperature does not fall


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
        h = model.hidden(xt[rows])[now[rows]]  # (N, C), in the order of xt[now]
        xt[now] = draw_tokens(model, h, generator, temperature, top_p)
        if watch:
            watch(xt)
    return xt
