# model.py:fill_at_random, exercise 9: [MASK] is one more token to be drawn


def fill_at_random(model, xt, steps, sampler, temperature, top_p, generator, watch):
    mask_id, V = model.mask_id, model.config.vocab_size
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps  # 1 ... 0
    call = reveal_order(xt == mask_id, times, sampler, generator)  # (B, T)
    seen = (
        half_random(xt, model, generator) if sampler == "dimo" else xt
    )  # (B, T): what the network is shown
    for i in range(1, int(call.max()) + 1):
        reveal = call == i  # (B, T), N of them
        rows = reveal.any(1)
        h = model.hidden(seen[rows])[
            reveal[rows]
        ]  # (N, C): the head runs on what this step reveals
        tokens = in_chunks(
            lambda part: draw(F.pad(model.head(part), (0, 1)), generator, temperature, top_p=top_p),
            h,
            V,
        )  # (N)
        seen[reveal] = xt[reveal] = tokens
        if watch:
            watch()
