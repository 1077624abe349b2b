# distill.py:sdtt_targets, exercise 11: the teacher writes its best token down, and does not draw


def sdtt_targets(teacher, xt, call, generator):
    wanted, last = call > 0, call.amax(1, keepdim=True)  # (B, T), N of them; (B, 1)
    z, targets = xt.clone(), torch.empty(int(wanted.sum()), teacher.config.n_embd, device=xt.device)
    for i in range(1, int(last.max()) + 1):
        reveal = call == i
        rows = reveal.any(1)
        h = teacher.hidden(z[rows])[reveal[rows]]  # (n, C)
        targets[reveal[wanted]] = (
            h.float()
        )  # reveal[wanted] (N,): which of the N targets this call fills
        needed = reveal & (i < last)  # another call will look at them
        h = h[needed[reveal]]  # needed[reveal] (n,): the hidden states of these
        z[needed] = in_chunks(
            lambda part: teacher.head(part).argmax(-1), h, teacher.config.vocab_size
        )
    return targets
