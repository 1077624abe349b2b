"""
Every algorithm of the project once more, slowly and literally from its paper. Read these first; the tests hold the fast
versions to them. Nothing here is used outside tests/.
"""

import itertools
import math

import torch
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# the transformer


def attention(q, k, v, causal):
    """(B, H, T, D) x 3 -> (B, H, T, D), one query at a time."""
    out = torch.zeros_like(q)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        n = i + 1 if causal else k.size(2)
        scores = torch.stack([q[b, h, i] @ k[b, h, j] / math.sqrt(q.size(3)) for j in range(n)])
        out[b, h, i] = sum(w * v[b, h, j] for j, w in enumerate(scores.softmax(0)))
    return out


def rope(x, base=10000.0):
    """(T, D) -> (T, D): channels i and i + D/2 are one complex number, turned by position * base^(-2i/D)."""
    T, D = x.shape
    out = x.clone()
    for t, i in itertools.product(range(T), range(D // 2)):
        angle = t * base ** (-2 * i / D)
        z = complex(x[t, i], x[t, i + D // 2]) * complex(math.cos(angle), math.sin(angle))
        out[t, i], out[t, i + D // 2] = z.real, z.imag
    return out


def generate_greedy(model, idx, n_new):
    """(1, T) -> (1, T + n_new): recomputes the whole text for every token. Within the context only."""
    for _ in range(n_new):
        idx = torch.cat([idx, model(idx)[:, -1:].argmax(-1)], 1)
    return idx


# ----------------------------------------------------------------------------------------------------------------------
# losses


def ar_loss(model, batch):
    """Next-token cross-entropy from the full (B, T, V) logits."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def subs_log_p(model, xt):
    """(B, T) -> (B, T, V + 1) as MDLM writes it: [MASK] has probability zero, unmasked tokens are carried over."""
    logits = model(xt).float()
    log_p = F.pad(logits.log_softmax(-1), (0, 1), value=-math.inf)
    carried = torch.full_like(log_p, -math.inf).scatter(-1, xt[..., None], 0.0)
    return torch.where((xt == model.mask_id)[..., None], log_p, carried)


def diffusion_loss(model, x0, xt, t):
    """MDLM eq. 10 for one draw of t and xt, dense: (1/t) sum over masked of -log p(x0 | xt), over all B T tokens."""
    log_p = subs_log_p(model, xt).gather(-1, x0[..., None]).squeeze(-1)  # (B, T); 0 where carried over
    return -(log_p / t).mean()


@torch.no_grad()
def exact_nelbo(model, x0):
    """(1, T) -> nats per token, the expectation over all 2^T masks of the continuous-time bound.

    A mask of l tokens has the weight integral_0^1 (1/t) t^l (1-t)^(T-l) dt = (l-1)! (T-l)! / T!.
    """
    T, total = x0.size(1), 0.0
    for mask in itertools.product([False, True], repeat=T):
        n = sum(mask)
        if n == 0:
            continue
        masked = torch.tensor(mask)
        log_p = subs_log_p(model, x0.masked_fill(masked, model.mask_id)).gather(-1, x0[..., None])[0, :, 0]
        total += -log_p[masked].sum().item() * math.factorial(n - 1) * math.factorial(T - n) / math.factorial(T)
    return total / T


# ----------------------------------------------------------------------------------------------------------------------
# sampling


def categorical(p, generator):
    """(..., V) -> (...): Gumbel-max in float64."""
    u = torch.rand(p.shape, dtype=torch.float64, generator=generator)
    return (p.double().log() - (-u.log()).log()).argmax(-1)


@torch.no_grad()
def ancestral_sampler(model, xt, steps, generator):
    """MDLM's sampler, dense: K forwards, a categorical draw over V + 1 at every position of every step (eq. 7).

    Like MDLM's own code it keeps the last prediction as long as no token of the batch has changed.
    """
    log_p = None
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        if log_p is None:
            log_p = subs_log_p(model, xt)
        q = log_p.exp() * (t - s) / t  # (B, T, V + 1)
        q[..., model.mask_id] = s / t
        new = torch.where(xt == model.mask_id, categorical(q, generator), xt)
        log_p = log_p if torch.equal(new, xt) else None
        xt = new
    return xt


@torch.no_grad()
def exact_ancestral_distribution(model, T, steps):
    """-> {tokens (tuple): probability} of the ancestral sampler with K steps, by enumerating every path."""
    states = {(model.mask_id,) * T: 1.0}
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        after = {}
        for x, weight in states.items():
            p = subs_log_p(model, torch.tensor([x]))[0].exp()  # (T, V + 1)
            choices = []
            for i, token in enumerate(x):
                if token != model.mask_id:
                    choices.append([(token, 1.0)])
                else:
                    reveal = [(v, (t - s) / t * p[i, v].item()) for v in range(model.mask_id)]
                    choices.append([*reveal, (model.mask_id, s / t)])
            for path in itertools.product(*choices):
                y, w = tuple(v for v, _ in path), weight * math.prod(q for _, q in path)
                after[y] = after.get(y, 0.0) + w
        states = after
    return {x: w for x, w in states.items() if w > 0}


def top_p_set(p, top_p):
    """(V,) -> the smallest set of most probable tokens whose probability reaches top_p."""
    chosen, total = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total >= top_p:
            break
        chosen.append(i)
        total += float(p[i])
    return sorted(chosen)


# ----------------------------------------------------------------------------------------------------------------------
# SDTT


@torch.no_grad()
def sdtt_targets(teacher, xt, t, dt, k, reveals, pick, eps=1e-5):
    """Algorithm 1, dense -> (B, T, V) log-probabilities, zeros where xt is not masked.

    reveals(i, t_i, s_i) -> (B, T) bool and pick((B, T, V) log_p) -> (B, T) are the random numbers of step i.
    """
    V = teacher.mask_id
    z, targets = xt.clone(), torch.zeros(*xt.shape, V)
    for i in range(k):
        t_i = (t - i * dt).clamp(min=eps)
        s_i = (t_i - dt).clamp(min=eps)
        log_p = teacher(z).log_softmax(-1)  # (B, T, V)
        revealed = reveals(i, t_i, s_i) & (z == V)
        targets = torch.where(revealed[..., None], log_p, targets)
        z = torch.where(revealed, pick(log_p), z)
    return torch.where((z == V)[..., None], log_p, targets)  # still masked: the last step's


def divergence(kind, log_p, log_q):
    """Two lists of V log-probabilities, of the student and of the teacher -> float, term by term."""
    if kind == "nla":
        return -math.log(sum(min(math.exp(a), math.exp(b)) for a, b in zip(log_p, log_q, strict=True)))
    total = 0.0
    for a, b in zip(log_p, log_q, strict=True):
        p, q = math.exp(a), math.exp(b)
        m = (p + q) / 2
        total += {
            "kl_bwd": p * math.log(p / q),
            "kl_fwd": q * math.log(q / p),
            "tvd": abs(p - q) / 2,
            "mse": (a - b) ** 2,
            "jsd": (p * math.log(p / m) + q * math.log(q / m)) / 2,
        }[kind]
    return total


@torch.no_grad()
def expected_sdtt_targets(teacher, xt, t, dt, k, eps=1e-5):
    """(T,) -> (T, V): the mean of Algorithm 1's targets, as probabilities, over every path of reveals and tokens."""
    V = teacher.mask_id
    states = {(tuple(xt.tolist()), (None,) * len(xt)): 1.0}  # (z, the target of each position so far): probability
    table = {}
    for i in range(k):
        t_i = max(t - i * dt, eps)
        rate = (t_i - max(t_i - dt, eps)) / t_i
        after = {}
        for (z, targets), weight in states.items():
            if z not in table:
                table[z] = teacher(torch.tensor([z]))[0].softmax(-1)  # (T, V)
            choices = []
            for j, token in enumerate(z):
                if token != V:
                    choices.append([(token, targets[j], 1.0)])
                else:
                    stays = [(V, z, 1 - rate)]
                    choices.append(stays + [(v, z, rate * table[z][j, v].item()) for v in range(V)])
            for path in itertools.product(*choices):
                key = tuple(c[0] for c in path), tuple(c[1] for c in path)
                after[key] = after.get(key, 0.0) + weight * math.prod(c[2] for c in path)
        states = after
    mean = torch.zeros(len(xt), V)
    for (_, targets), weight in states.items():
        for j, z in enumerate(targets):
            if z is not None:  # the state of the network's input that its target came from
                mean[j] += weight * table[z][j]
    return mean


def sdtt_loss(student, x0, generator, teacher, dt, k=2):
    """KL(student || teacher) against Algorithm 1's targets, everything B x T x V and in float32, as released."""

    def reveals(i, t_i, s_i):
        return torch.rand(x0.shape, generator=generator) < (t_i - s_i) / t_i

    def pick(log_p):
        gumbel = -(1e-10 - (torch.rand(log_p.shape, generator=generator) + 1e-10).log()).log()
        return (log_p + gumbel).argmax(-1)

    t = 1 - torch.rand(x0.size(0), 1, generator=generator)
    xt = torch.where(torch.rand(x0.shape, generator=generator) < t, student.mask_id, x0)
    log_q = sdtt_targets(teacher, xt, t, dt, k, reveals, pick)
    log_p = student(xt).float().log_softmax(-1)
    masked = xt == student.mask_id
    return (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * masked).sum() / masked.sum()


# ----------------------------------------------------------------------------------------------------------------------
# n-grams


class DictNGram:
    """Dictionaries: for every context of up to n - 1 tokens, how often which token followed. Laplace smoothing."""

    def __init__(self, n, vocab_size, alpha=0.1):
        self.n, self.V, self.alpha, self.after = n, vocab_size, alpha, {}

    def fit(self, tokens):
        tokens = [int(t) for t in tokens]
        for i, token in enumerate(tokens):
            for m in range(min(self.n - 1, i) + 1):
                followers = self.after.setdefault(tuple(tokens[i - m : i]), {})
                followers[token] = followers.get(token, 0) + 1
        return self

    def log_probs(self, context):
        """(n - 1) tokens -> (V): after the longest context that was seen."""
        context = tuple(int(t) for t in context)
        while context not in self.after:
            context = context[1:]
        followers = self.after[context]
        p = torch.full((self.V,), self.alpha)
        for token, count in followers.items():
            p[token] += count
        return (p / (sum(followers.values()) + self.alpha * self.V)).log()


def kneser_ney(tokens, context, n, vocab, discount=0.75):
    """Interpolated Kneser-Ney by nested loops -> [p] of the next token."""
    grams = [[tuple(tokens[i : i + m]) for i in range(len(tokens) - m + 1)] for m in range(1, n + 1)]

    def count(gram):
        m = len(gram)
        if m < n:  # how many different tokens came before it
            return len({g[0] for g in grams[m] if g[1:] == gram})
        return sum(g == gram for g in grams[m - 1])

    def p(context, w):
        counts = [count((*context, v)) for v in range(vocab)]
        shorter = p(context[1:], w) if context else 1 / vocab
        if sum(counts) == 0:
            return shorter
        kinds = sum(c > 0 for c in counts)
        return (max(counts[w] - discount, 0) + discount * kinds * shorter) / sum(counts)

    return [p(tuple(context), w) for w in range(vocab)]
