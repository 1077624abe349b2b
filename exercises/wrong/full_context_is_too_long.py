# speculative.py:speculate, exercise 15: a text that fills the context is turned down


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
    if end >= target.config.block_size:
        size = target.config.block_size
        raise UserError(f"{end} tokens do not fit the context of {size}. Use --length={size}.")

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    cache = new_cache(target)
    while len(x) < end:
        n = min(gamma, end - len(x) - 1)  # the round's last token is the target's own
        drafts, q = drafter.propose(x, n, settings, generator)
        unread = torch.cat([x[cache.length :], drafts])
        h = target.hidden(unread[None], cache)[0]
        h = h[-len(drafts) - 1 :]  # (g + 1, C): the first round has read the prompt, too
        p = probabilities(target.head(h), **settings)  # (g + 1, V): at each draft, and after them
        new = verify(drafts, p, q, generator)
        ids = new.tolist()
        if eos in ids:
            new = new[: ids.index(eos) + 1]
        x = torch.cat([x, new])
        # target.hidden cached all drafts: forget the rejected ones. The last token of x is not
        # cached yet
        cache.length = len(x) - 1
        if watch:
            watch(x, drafts)
        if eos in ids:
            break
    return x
