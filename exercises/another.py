"""
Every exercise once more as a student may write it: plain, slow, with its random numbers drawn in another order. The
graders must accept it (tests/test_exercises.py). Each function is a body for the one of its name in the project's file.
"""


def attend(q, k, v, causal, attention, mask=None):
    Tq, Tk = q.size(2), k.size(2)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.size(3) ** 0.5
    for i in range(Tq):
        for j in range(Tk):
            if mask is not None:
                scores[:, :, i, j].masked_fill_(~mask[:, :, i, j], -math.inf)
            elif causal and j > i + Tk - Tq:
                scores[:, :, i, j] = -math.inf
    return torch.softmax(scores, -1) @ v


def stratified(B, generator, device):
    u = torch.rand(1, generator=generator).item()
    return torch.tensor([[(u + i / B) % 1] for i in range(B)], device=device)


def add_noise(x0, t, mask_id, generator):
    hidden = torch.bernoulli(t.expand(x0.shape), generator=generator).bool()
    return x0.masked_fill(hidden, mask_id)


def diffusion_loss(model, x0, generator, t_weight=1.0, eps=1e-3):
    B, T = x0.shape
    t = eps + (1 - eps) * torch.rand(B, 1, generator=generator)
    xt = add_noise(x0, t, model.mask_id, generator)
    nats = F.cross_entropy(model.head(model.hidden(xt)).transpose(1, 2), x0, reduction="none")
    return ((xt == model.mask_id) * nats * (2 - t_weight) / t**t_weight).sum() / (B * T)


def nelbo(model, x0, generator):
    B, T = x0.shape
    masked = torch.zeros(B, T, dtype=torch.bool)
    number = torch.randint(1, T + 1, (B,), generator=generator)
    number[: B // T * T] = torch.arange(1, T + 1).repeat(B // T)
    order = torch.rand(B, T, generator=generator).argsort(1)
    for i in range(T):
        masked[torch.arange(B), order[:, i]] = number > i
    nats = F.cross_entropy(
        model(torch.where(masked, model.mask_id, x0)).transpose(1, 2), x0, reduction="none"
    )
    return ((nats * masked).sum(1) / number).mean()


def draw_from(p, generator=None):
    flat = p.reshape(-1, p.size(-1)).double()
    return torch.multinomial(flat, 1, generator=generator).reshape(p.shape[:-1])


def reveal_rate(t, s, sampler="ancestral"):
    return 1 - s / t


def spread_order(blank, steps, generator):
    call = torch.zeros(blank.shape, dtype=torch.int64)
    for b in range(len(blank)):
        places = blank[b].nonzero().flatten().tolist()
        K = min(steps, len(places))
        order = torch.randperm(K, generator=generator).tolist()
        for number, place in enumerate(places):
            call[b, place] = order[number % K] + 1
    return call


def reveal_order(blank, times, sampler, generator):
    if sampler in ("spread", "dimo"):
        return spread_order(blank, times.size(-1) - 1, generator)
    B, T = blank.shape
    times = times.expand(B, -1)
    if sampler == "first_hitting":
        step = torch.rand(B, T, dtype=torch.float64, generator=generator)
    else:
        step = torch.full((B, T), -1.0, dtype=torch.float64)
        for k in range(times.size(1) - 1):
            rate = reveal_rate(times[:, k], times[:, k + 1], sampler)[:, None]
            now = torch.rand(B, T, dtype=torch.float64, generator=generator) < rate
            step[now & (step < 0)] = k
        step[step < 0] = times.size(1) - 2
    call = torch.zeros(B, T, dtype=torch.int64)
    for b in range(B):
        seen = sorted(set(step[b][blank[b]].tolist()))
        for i in blank[b].nonzero().flatten().tolist():
            call[b, i] = seen.index(step[b, i].item()) + 1
    return call


def fill_at_random(model, xt, steps, sampler, temperature, top_p, generator, watch):
    masked = xt == model.mask_id
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    call = reveal_order(masked, times, sampler, generator)
    for i in range(1, call.max().item() + 1):
        tokens = draw(model(xt), generator, temperature, top_p=top_p)
        xt.copy_(torch.where(call == i, tokens, xt))
        if watch is not None:
            watch()


def divergence_between(divergence, log_p, log_q):
    p, q = torch.exp(log_p), torch.exp(log_q)
    m = (p + q) / 2
    if divergence == "kl_bwd":
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if divergence == "kl_fwd":
        return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    if divergence == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    if divergence == "mse":
        return ((log_p - log_q) ** 2).sum(-1)
    if divergence == "nla":
        return -torch.log(torch.minimum(p, q).sum(-1))
    return 0.5 * ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1))


def sdtt_targets(teacher, xt, call, generator):
    z, all_targets = xt.clone(), torch.zeros(*xt.shape, teacher.config.n_embd)
    for i in range(1, call.max().item() + 1):
        h = teacher.hidden(z)
        all_targets[call == i] = h[call == i]
        z = torch.where(call == i, draw(teacher.head(h), generator), z)
    return all_targets[call > 0]


def sdtt_loss(
    student,
    x0,
    generator,
    teacher,
    dt,
    k=2,
    divergence="kl_bwd",
    sampler="ancestral",
    dtype=torch.float32,
):
    states = spread_states if sampler == "spread" else ancestral_states
    xt, call = states(x0, dt, k, student.mask_id, generator)
    log_q = teacher.head(sdtt_targets(teacher, xt, call, generator)).log_softmax(-1)
    log_p = student(xt)[call > 0].log_softmax(-1)
    return divergence_between(divergence, log_p, log_q.detach()).mean()


def log_probs(self, context):
    rows = []
    for words in context.tolist():
        p = torch.from_numpy(self.unigram).double()
        for m in range(2, self.n + 1):
            number, found = self.find(np.array([words[self.n - m :]]))
            first, end = self.start[m - 1][number[0]], self.start[m - 1][number[0] + 1]
            if found[0] and end > first:
                backoff = float(self.backoff[m - 1][number[0]])
                p = torch.full_like(p, backoff) if self.smoothing == "laplace" else p * backoff
                for i in range(first, end):
                    p[self.keys[m - 1][i] % self.V] += float(self.share[m - 1][i])
        rows.append(p.float().log())
    return torch.stack(rows)


def __call__(self, idx):
    out = torch.zeros(*idx.shape, self.V)
    for b, row in enumerate(idx.tolist()):
        padded = [-1] * (self.n - 1) + row
        for i in range(len(row)):
            out[b, i] = self.log_probs(np.array([padded[i + 1 : i + self.n]]))[0]
    return out


def kd_loss(
    drafter, batch, generator, target, divergence="kl_fwd", temp=1.0, kd_weight=1.0, ce_weight=0.0
):
    x, y = batch[:, :-1], batch[:, 1:]
    logits, wanted = drafter(x), target(x).detach()
    if divergence == "mse":
        loss = F.mse_loss(logits / temp, wanted / temp)
    else:
        log_p, log_q = (logits / temp).log_softmax(-1), (wanted / temp).log_softmax(-1)
        loss = divergence_between(divergence, log_p, log_q).mean()
    return kd_weight * temp**2 * loss + ce_weight * F.cross_entropy(
        logits.flatten(0, 1), y.flatten()
    )


def residual(p, q):
    rest = torch.relu(p - q)
    out = p.clone()
    for i in range(len(p)):
        if rest[i].sum() > 0:
            out[i] = rest[i] / rest[i].sum()
    return out


def verify(drafts, p, q, generator):
    B, g = drafts.shape
    n, going, rows = (
        torch.zeros(B, dtype=torch.int64),
        torch.ones(B, dtype=torch.bool),
        torch.arange(B),
    )
    law = p[:, g].clone()
    for j in range(g):
        ratio = p[rows, j, drafts[:, j]] / q[rows, j, drafts[:, j]]
        kept = torch.rand(B, generator=generator) <= ratio
        refused = going & ~kept
        if refused.any():
            law[refused] = residual(p[refused, j], q[refused, j])
        going = going & kept
        n += going
    return n, draw_from(law, generator)


def acceptance(counts):
    return float(counts.accepted.sum()) / max(float(counts.tested.sum()), 1)


def tokens_per_call(counts, gamma=None):
    total = product = 1.0
    for a, n in list(zip(counts.accepted.tolist(), counts.tested.tolist(), strict=True))[:gamma]:
        product *= a / max(n, 1)
        total += product
    return total


def predicted_speedup(alpha, c, gamma, call=1.0):
    return sum(alpha**i for i in range(gamma + 1)) / (gamma * c + call)


def soft_cross_entropy(logits, ids, logp, missing="none"):
    w, log_p = torch.exp(logp), logits.log_softmax(-1)
    if missing == "renorm":
        w = w / w.sum(1, keepdim=True)
    loss = -(w * torch.gather(log_p, 1, ids)).sum(1)
    if missing == "tail":
        named = torch.zeros_like(log_p).scatter(1, ids, 1.0) > 0
        loss = loss - (1 - w.sum(1)) * log_p.masked_fill(named, -1e9).logsumexp(1)
    return loss


def entropies(x):
    found = []
    for row in x.tolist():
        shares = [row.count(token) / len(row) for token in set(row)]
        found.append(-sum(p * math.log(p) for p in shares))
    return torch.tensor(found)


def repeated(x, n=4):
    shares = []
    for row in x.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares)
