# model.py:unmask, exercise 6: the temperature falls by an equal factor, not by an equal amount
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
    step_of = close_gaps(unmask_steps(xt == model.mask_id, n_steps, sampler, generator))
    n_steps = int(step_of.max())
    for step in range(1, n_steps + 1):
        now = step_of == step
        h = model.hidden(xt)[now]
        temp = temperature * cooling ** ((step - 1) / max(n_steps - 1, 1))
        xt[now] = draw_tokens(model, h, generator, temp, top_p)
        if watch:
            watch(xt)
    return xt
