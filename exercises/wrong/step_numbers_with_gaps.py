# model.py:reveal_order, exercise 8: the number of the step, not of the call: steps that reveal nothing leave gaps


def reveal_order(blank, times, sampler, generator):
    if sampler in ("spread", "dimo"):
        return spread_order(blank, times.size(-1) - 1, generator)
    device = "cpu" if blank.device.type == "mps" else blank.device
    u = uniform(blank.shape, generator, device, torch.float64)  # (B, T)
    if sampler == "first_hitting":
        step = u + 1  # a reveal time of its own for every token
    else:
        # The step that reveals a token: invert the distribution function of that step, 1 - P(still masked after it).
        times = times.to(device)
        kept = (1 - reveal_rate(times[..., :-1], times[..., 1:], sampler)).cumprod(
            -1
        )  # (K) or (B, K), falls to 0
        step = (
            torch.searchsorted(1 - kept[..., :-1], u, right=True).double() + 1
        )  # (B, T); K takes all that is left
    step = step.masked_fill(~blank.to(device), 0)
    # Number the steps that do occur in a row 1, 2, ...: one more wherever the sorted steps rise, put back in place.
    # Steps 7 0 3 7, sorted 0 3 7 7: calls 0 1 2 2, in place 2 0 1 2.
    ordered, where = step.sort(1)
    call = ordered.long()
    return torch.zeros_like(call).scatter(1, where, call).to(blank.device)
