# model.py:fill_at_random, exercise 9: every call guesses from the first state: what was revealed is not looked at


def fill_at_random(model, xt, steps, sampler, temperature, top_p, generator, watch):
    mask_id, V = model.mask_id, model.config.vocab_size
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps  # 1 ... 0
    first = xt.clone()
    call = reveal_order(xt == mask_id, times, sampler, generator)  # (B, T)
    seen = (
        half_random(xt, model, generator) if sampler == "dimo" else xt
    )  # (B, T): what the network is shown
    for i in range(1, int(call.max()) + 1):
        reveal = call == i  # (B, T), N of them
        rows = reveal.any(1)
        h = model.hidden(first[rows])[
            reveal[rows]
        ]  # (N, C): the head runs on what this step reveals
        tokens = in_chunks(
            lambda part: draw(model.head(part), generator, temperature, top_p=top_p), h, V
        )  # (N)
        seen[reveal] = xt[reveal] = tokens
        if watch:
            watch()
