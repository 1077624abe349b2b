# distill.py:sdtt_targets, exercise 11: all targets come from the teacher's last step


def sdtt_targets(teacher, xt, call, generator):
    wanted, last = call > 0, call.amax(1, keepdim=True)  # (B, T), N of them; (B, 1)
    z, targets = xt.clone(), torch.empty(int(wanted.sum()), teacher.config.n_embd, device=xt.device)
    for i in range(1, int(last.max()) + 1):
        reveal = call == i
        told = (call > 0) & (i >= last) if i == last.max() else call == i
        rows = (reveal | told).any(1)
        full = z.new_zeros(*z.shape, teacher.config.n_embd).float()
        full[rows] = teacher.hidden(z[rows])
        targets[told[wanted]] = full[told].float()
        h = full[reveal]
        needed = reveal & (i < last)  # another call will look at them
        h = h[needed[reveal]]  # needed[reveal] (n,): the hidden states of these
        z[needed] = in_chunks(
            lambda part: draw(teacher.head(part), generator), h, teacher.config.vocab_size
        )
    return targets
