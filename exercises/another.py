"""
Every exercise once more as a student may write it: plain, slow, with its random numbers drawn in
another order. The graders must accept it (tests/test_exercises.py). Each function is a body for
the one of its name in the project's file.
"""


def attend(q, k, v, causal):
    Tq = q.size(2)
    Tk = k.size(2)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.size(3) ** 0.5
    for i in range(Tq):
        for j in range(Tk):
            if causal and j > i + Tk - Tq:
                scores[:, :, i, j] = -math.inf
    return torch.softmax(scores, -1) @ v


def stratified(B, generator, device):
    u = torch.rand(1, generator=generator).item()
    return torch.tensor([[(u + i / B) % 1] for i in range(B)], device=device)


def masked_nll(model, x0, masked, weight):
    xt = torch.where(masked, model.mask_id, x0)
    losses = F.cross_entropy(model(xt).transpose(1, 2), x0, reduction="none")  # (B, T)
    return (masked * weight * losses).sum(1).mean() / x0.size(1)


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    B, T = x0.shape
    offset = torch.rand(1, generator=generator)
    t = torch.stack([(offset + i / B) % 1 for i in range(B)]) * (1 - eps) + eps
    masked = torch.bernoulli(t.expand(B, T), generator=generator).bool()
    xt = x0.masked_fill(masked, model.mask_id)
    losses = F.cross_entropy(model(xt).transpose(1, 2), x0, reduction="none")
    return (masked * losses * (2 - t_weight) / t**t_weight).sum() / (B * T)


def nelbo(model, x0, generator):
    B, T = x0.shape
    masked = torch.zeros(B, T, dtype=torch.bool)
    number = torch.randint(1, T + 1, (B,), generator=generator)
    number[: B // T * T] = torch.arange(1, T + 1).repeat(B // T)
    order = torch.rand(B, T, generator=generator).argsort(1)
    for i in range(T):
        masked[torch.arange(B), order[:, i]] = number > i
    return masked_nll(model, x0, masked, T / number[:, None])


def draw(p, generator=None):
    flat = p.reshape(-1, p.size(-1)).double()
    return torch.multinomial(flat, 1, generator=generator).reshape(p.shape[:-1])


def ancestral_steps(u, t, dt, n_steps):
    t = torch.as_tensor(t).expand(u.shape)
    step_of = (u < t).long()
    for i in range(1, n_steps):
        step_of[u < t - i * dt] += 1
    return step_of


def unmask_steps(masked, n_steps, sampler, generator):
    step_of = torch.zeros(masked.shape, dtype=torch.int64)
    for b in range(len(masked)):
        positions = masked[b].nonzero().flatten()
        if sampler == "spread":
            order = torch.randperm(n_steps, generator=generator)
            steps = [order[i % n_steps] for i in range(len(positions))]
        elif sampler == "first_hitting":
            steps = torch.randperm(len(positions), generator=generator)
        elif sampler in ("ancestral", "analytic"):
            steps = torch.randint(n_steps, (len(positions),), generator=generator)
        else:
            raise UserError(f"There is no sampler {sampler}.")
        for position, step in zip(positions, steps, strict=True):
            step_of[b, position] = 1 + step
    return step_of


def close_gaps(step_of):
    out = torch.zeros_like(step_of)
    for b, row in enumerate(step_of.tolist()):
        occurring = sorted(set(row) - {0})
        for i, step in enumerate(row):
            out[b, i] = occurring.index(step) + 1 if step else 0
    return out


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
    step_of = close_gaps(unmask_steps(xt == model.mask_id, n_steps, sampler, generator))
    last = step_of.max().item()
    temperatures = torch.linspace(temperature, temperature * cooling, last).tolist()
    for step, now in enumerate(temperatures, 1):
        p = probabilities(model(xt), now, top_p=top_p)
        xt = torch.where(step_of == step, draw(p, generator), xt)
        if watch is not None:
            watch(xt)
    return xt


def entropies(x):
    found = []
    for row in x.tolist():
        p = [row.count(token) / len(row) for token in set(row)]
        found.append(-sum(one * math.log(one) for one in p))
    return torch.tensor(found)


def repeated(x, n=4):
    fractions = []
    for row in x.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        fractions.append(1 - len(set(grams)) / len(grams))
    return sum(fractions) / len(fractions)


def divergence_between(log_student, log_teacher, divergence):
    p = torch.exp(log_student)
    q = torch.exp(log_teacher)
    if divergence == "kl_bwd":
        return F.kl_div(log_teacher, log_student, reduction="none", log_target=True).sum(-1)
    if divergence == "kl_fwd":
        return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    if divergence == "tvd":
        return 1 - torch.minimum(p, q).sum(-1)
    if divergence == "mse":
        return ((log_student - log_teacher) ** 2).sum(-1)
    if divergence == "nla":
        return -torch.logsumexp(torch.minimum(log_student, log_teacher), -1)
    if divergence != "jsd":
        raise UserError("no such divergence")
    log_m = torch.stack([log_student, log_teacher]).logsumexp(0) - math.log(2)
    return (p * (log_student - log_m) + q * (log_teacher - log_m)).sum(-1) / 2


def ancestral_state(x0, dt, k, mask_id, generator):
    B, T = x0.shape
    u = torch.rand(B, T, generator=generator)
    t = 1 - (torch.rand(1, generator=generator) + torch.arange(B)[:, None] / B) % 1
    xt = torch.where(u < t, mask_id, x0)
    step_of = (u < t).long()
    for i in range(1, k):
        step_of[u < t - i * dt] += 1
    return xt, step_of


def spread_state(x0, dt, k, mask_id, generator):
    B, T = x0.shape
    K = round(1 / (k * dt))
    present = torch.randperm(B, generator=generator) % K  # all alike, if K divides B
    xt = torch.full_like(x0, mask_id)
    step_of = torch.zeros_like(x0)
    for b in range(B):
        order = torch.randperm(K, generator=generator).tolist()
        parts = torch.randperm(k, generator=generator).tolist()
        for i in range(T):
            if order[i % K] < present[b]:
                xt[b, i] = x0[b, i]
            if order[i % K] == present[b]:
                step_of[b, i] = 1 + parts[i // K % k]
    return xt, step_of


def sdtt_targets(teacher, xt, step_of, k, generator):
    z = xt
    targets = torch.zeros(*xt.shape, teacher.config.n_embd)
    for step in range(1, k + 1):
        h = teacher.hidden(z)
        now = step_of == step
        targets[now] = h[now]
        tokens = draw_tokens(teacher, h.flatten(0, 1), generator).view_as(z)
        z = torch.where(now, tokens, z)
    return targets


def sdtt_loss(student, x0, generator, teacher, dt, sampler, *, k=2, divergence="kl_bwd"):
    if sampler == "spread":
        xt, step_of = spread_state(x0, dt, k, student.mask_id, generator)
    else:
        xt, step_of = ancestral_state(x0, dt, k, student.mask_id, generator)
    h_teacher = sdtt_targets(teacher, xt, step_of, k, generator)
    log_teacher = teacher.head(h_teacher).log_softmax(-1).detach()
    log_student = student(xt).log_softmax(-1)
    losses = divergence_between(log_student, log_teacher, divergence)[step_of > 0]
    return losses.mean() if len(losses) else losses.sum()


def probs(self, text):
    p = self.unigram.astype(np.float64)
    for m in range(2, self.n + 1):
        if m - 1 > len(text):
            continue
        number = self.index_of(text[len(text) - m + 1 :])
        if number is None:
            continue
        first, end = self.start[m - 1][number], self.start[m - 1][number + 1]
        if end > first:
            backoff = float(self.backoff[m - 1][number])
            p = np.full_like(p, backoff) if self.smoothing == "laplace" else p * backoff
            for i in range(first, end):
                p[self.keys[m - 1][i] % self.V] += float(self.fraction[m - 1][i])
    return p.astype(np.float32)


def kd_loss(
    drafter, batch, generator, teacher, divergence="kl_fwd", temperature=1.0, ce_weight=0.0
):
    logits = drafter(batch)[:, :-1]
    wanted = teacher(batch).detach()[:, :-1]
    log_p = F.log_softmax(logits / temperature, -1)
    log_q = F.log_softmax(wanted / temperature, -1)
    kd = temperature**2 * divergence_between(log_p, log_q, divergence)  # (B, T)
    ce = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")  # (B, T)
    return (kd + ce_weight * ce).mean()


def verify(drafts, p, q, generator):
    tokens = []
    for i in range(len(drafts)):
        x = drafts[i].item()
        if torch.rand(1, generator=generator) < p[i][x] / q[i][x]:
            tokens.append(x)
            continue
        rest = torch.relu(p[i] - q[i])
        if rest.sum() == 0:
            rest = p[i]
        tokens.append(draw(rest / rest.sum(), generator).item())
        return torch.tensor(tokens)
    tokens.append(draw(p[len(drafts)], generator).item())
    return torch.tensor(tokens)


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
    T = len(x)
    if T + n_new > target.config.block_size:
        raise UserError("too long")
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    while len(x) < T + n_new:
        drafts, q = drafter.propose(x, min(gamma, T + n_new - len(x) - 1), settings, generator)
        logits = target(torch.cat([x, drafts])[None])[0]  # the whole text, without a cache
        p = probabilities(logits[len(x) - 1 :], **settings)
        tokens = verify(drafts, p, q, generator).tolist()
        if eos in tokens:
            tokens = tokens[: tokens.index(eos) + 1]
        x = torch.cat([x, torch.tensor(tokens)])
        if watch is not None:
            watch(x, drafts)
        if tokens[-1] == eos:
            break
    return x


def acceptance(rounds):
    accepted = int(rounds.accepted.sum())
    return accepted / (accepted + rounds.n_rejected) if accepted else 0.0


def tokens_per_forward(rounds):
    return rounds.n_tokens / rounds.n_forwards


def predicted_speedup(alpha, c, gamma, verify=1.0, propose_rate=1.0):
    accepted = sum(alpha**i for i in range(1, gamma + 1))
    round_cost = gamma * c + propose_rate * verify + 1 - propose_rate
    return (1 + propose_rate * accepted) / round_cost


def soft_cross_entropy(logits, ids, logp, missing="none"):
    w = torch.exp(logp)
    log_p = logits.log_softmax(-1)
    if missing == "renorm":
        w = torch.nan_to_num(w / w.sum(1, keepdim=True))
    loss = -(w * torch.gather(log_p, 1, ids)).sum(1)
    if missing == "tail":
        named = torch.zeros_like(log_p).scatter(1, ids, 1.0) > 0
        gone = 1 - w.sum(1)
        tail = torch.where(gone < 1e-6, 0, gone * log_p.masked_fill(named, -1e9).logsumexp(1))
        loss = loss - tail
    return loss
