# speculative.py:speculate, exercise 15: top_p is not passed on
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
        raise UserError(f"{end}")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    cache = new_cache(target)
    while len(x) < end:
        n = min(gamma, end - len(x) - 1)
        drafts, q = drafter.propose(x, n, {"temperature": temperature, "top_k": top_k}, generator)
        unread = torch.cat([x[cache.length :], drafts])
        h = target.hidden(unread[None], cache)[0]
        h = h[-len(drafts) - 1 :]
        p = probabilities(target.head(h), **settings)
        new = verify(drafts, p, q, generator)
        ids = new.tolist()
        if eos in ids:
            new = new[: ids.index(eos) + 1]
        x = torch.cat([x, new])
        cache.length = len(x) - 1
        if watch:
            watch(x, drafts)
        if eos in ids:
            break
    return x
