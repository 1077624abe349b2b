# speculative.py:speculate, exercise 15: an eos in the known text ends it


def speculate(
    target,
    drafter,
    x,
    n_new,
    *,
    gamma=4,
    generator=None,
    eos=None,
    watch=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
):
    end = len(x) + n_new
    if end > target.config.block_size:
        size = target.config.block_size
        raise UserError(f"{end} tokens do not fit the context of {size}. Use --length={size}.")

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    cache = new_cache(target)
    while len(x) < end:
        n = min(gamma, end - len(x) - 1)  # the round's last token is the target's own
        drafts, q = drafter.propose(x, n, settings, generator)
        unread = torch.cat([x[cache.length :], drafts])
        h = target.hidden(unread[None], cache)[0, -len(drafts) - 1 :]  # (g + 1, C)
        p = probabilities(target.head(h), **settings)  # (g + 1, V): at each draft, and after them
        new = verify(drafts, p, q, generator)
        ids = new.tolist()
        if eos in ids:
            new = new[: ids.index(eos) + 1]
        x = torch.cat([x, new])
        cache.length = len(x) - 1  # forget rejected drafts; the last token of x is not read yet
        if watch:
            watch(x, drafts)
        if eos is not None and (x == eos).any():
            break
    return x
