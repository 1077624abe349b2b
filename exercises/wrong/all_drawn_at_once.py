# model.py:unmask, exercise 6: every step predicts from the first state


def unmask(
    model,
    xt,
    n_steps,
    sampler="spread",
    *,
    temperature=1.0,
    top_p=1.0,
    generator=None,
    watch=None,
):
    xt = xt.clone()
    step_of = close_gaps(unmask_steps(xt == model.mask_id, n_steps, sampler, generator))  # (B, T)
    first = xt.clone()
    for step in range(1, int(step_of.max()) + 1):
        now = step_of == step  # (B, T)
        rows = now.any(dim=1)  # (B): nothing changes in the others, and the network sees no time
        h = model.hidden(first[rows])[now[rows]]  # (N, C), row by row, as xt[now] is
        xt[now] = draw_tokens(model, h, generator, temperature, top_p)
        if watch:
            watch(xt)
    return xt
