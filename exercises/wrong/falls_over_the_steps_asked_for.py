# model.py:unmask, exercise 6: it falls over all n_steps, also the empty ones
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
    step_of = unmask_steps(xt == model.mask_id, n_steps, sampler, generator)
    for step in range(1, int(step_of.max()) + 1):
        now = step_of == step
        if not now.any():
            continue
        h = model.hidden(xt)[now]
        temp = step_temperature(step, n_steps, temperature, cooling)
        xt[now] = draw_tokens(model, h, generator, temp, top_p)
        if watch:
            watch(xt)
    return xt
