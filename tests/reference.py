"""
Every algorithm of the project once more, slowly and literally from its paper. Read these first; the tests hold the fast
versions to them. Nothing here is used outside tests/.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from model import draw

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


@torch.no_grad()
def generate(model, idx, n_new, generator, **how):
    """(B, T) -> (B, T + n_new) without a cache, in windows that drop their older half when they are full."""
    start = 0
    for end in range(idx.size(1), idx.size(1) + n_new):
        if end - start > model.config.block_size:
            start = end - model.config.block_size // 2
        token = draw(model.head(model.hidden(idx[:, start:])[:, -1]), generator, **how)
        idx = torch.cat([idx, token[:, None]], 1)
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
    log_p = (
        subs_log_p(model, xt).gather(-1, x0[..., None]).squeeze(-1)
    )  # (B, T); 0 where carried over
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
        log_p = subs_log_p(model, x0.masked_fill(masked, model.mask_id)).gather(-1, x0[..., None])[
            0, :, 0
        ]
        total += (
            -log_p[masked].sum().item()
            * math.factorial(n - 1)
            * math.factorial(T - n)
            / math.factorial(T)
        )
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


@torch.no_grad()
def exact_spread_distribution(model, x, steps):
    """A list of tokens with mask_id at the blanks -> {tokens (tuple): probability} of the spread sampler."""
    where = [i for i, token in enumerate(x) if token == model.mask_id]
    K, after = min(steps, len(where)), {}
    for order in itertools.permutations(range(K)):  # call c reveals the blanks of class order[c]
        states = {tuple(x): 1 / math.factorial(K)}
        for c in order:
            together, new = where[c::K], {}
            for y, weight in states.items():
                p = subs_log_p(model, torch.tensor([y]))[0].exp()  # (T, V + 1)
                for values in itertools.product(range(model.mask_id), repeat=len(together)):
                    z = list(y)
                    for i, v in zip(together, values, strict=True):
                        z[i] = v
                    chance = math.prod(
                        p[i, v].item() for i, v in zip(together, values, strict=True)
                    )
                    new[tuple(z)] = new.get(tuple(z), 0.0) + weight * chance
            states = new
        for y, weight in states.items():
            after[y] = after.get(y, 0.0) + weight
    return after


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


def spread_targets(teacher, xt, parts, pick):
    """(1, T), [[places], ...]: the teacher reveals part after part -> (T, V): its log-probabilities when it did."""
    z, targets = xt.clone(), torch.zeros(xt.size(1), teacher.mask_id)
    for part in parts:
        logits = teacher(z)[0]  # (T, V)
        targets[part] = logits.log_softmax(-1)[part]
        z[0, part] = pick(logits)[part]
    return targets


@torch.no_grad()
def expected_spread_targets(teacher, xt, parts):
    """(T,), two parts -> (T, V): the mean of the targets, as probabilities, over both orders and all tokens drawn."""
    mean = torch.zeros(len(xt), teacher.mask_id)
    for first, second in (parts, parts[::-1]):
        p = teacher(xt[None])[0].softmax(-1)
        mean[first] += p[first] / 2
        for tokens in itertools.product(range(teacher.mask_id), repeat=len(first)):
            z = xt.clone()
            z[first] = torch.tensor(tokens)
            chance = math.prod(p[i, v].item() for i, v in zip(first, tokens, strict=True))
            mean[second] += chance * teacher(z[None])[0].softmax(-1)[second] / 2
    return mean


def divergence(kind, log_p, log_q):
    """Two lists of V log-probabilities, of the student and of the teacher -> float, term by term."""
    if kind == "nla":
        return -math.log(
            sum(min(math.exp(a), math.exp(b)) for a, b in zip(log_p, log_q, strict=True))
        )
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
    states = {
        (tuple(xt.tolist()), (None,) * len(xt)): 1.0
    }  # (z, the target of each position so far): probability
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
    return (
        F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * masked
    ).sum() / masked.sum()


def dimo_losses(student, fake, teacher, start, y, yt):
    """-> Di[M]O's two losses for a text y that the student wrote from `start`, and yt, y with masks, all B x T x V:

    sum over v of p(v) (log fake(v) - log teacher(v)), the bracket fixed; and the fake's cross-entropy.
    """
    masked = yt == student.mask_id
    log_fake, log_teacher = fake(yt).log_softmax(-1), teacher(yt).log_softmax(-1)
    gap = (student(start).softmax(-1) * (log_fake - log_teacher).detach()).sum(-1)
    nats = -log_fake.gather(-1, y[..., None]).squeeze(-1)
    return (gap * masked).sum() / masked.sum(), (nats * masked).sum() / masked.sum()


@torch.no_grad()
def exact_dimo_distribution(model, xt):
    """xt: a list, mask_id at the blanks -> {tokens: probability} of one call from a half random start."""
    V, law = model.config.vocab_size, {}
    noisy = [
        (model.mask_id, 0.5),
        *((w, model.frequency[w].item() / 2) for w in range(V)),
    ]  # what a blank may show
    shown = [noisy if v == model.mask_id else [(v, 1.0)] for v in xt]
    for start in itertools.product(*shown):
        p = model(torch.tensor([[v for v, _ in start]]))[0].softmax(-1)  # (T, V)
        chance = math.prod(c for _, c in start)
        for x in itertools.product(*([v] if v != model.mask_id else range(V) for v in xt)):
            at = [p[i, v].item() for i, v in enumerate(x) if xt[i] == model.mask_id]
            law[x] = law.get(x, 0) + chance * math.prod(at)
    return law


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
    grams = [
        [tuple(tokens[i : i + m]) for i in range(len(tokens) - m + 1)] for m in range(1, n + 1)
    ]

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


# ----------------------------------------------------------------------------------------------------------------------
# published layouts


def random_mdlm(V, C, L, E, gen):
    """-> weights in the layout of the published MDLM and SDTT files; the last of V + 1 tokens is [MASK]."""

    def r(*shape):
        return torch.randn(shape, generator=gen) * 0.3

    w = {"vocab_embed.embedding": r(V + 1, C)}
    w |= {"sigma_map.mlp.0.weight": r(E, 256), "sigma_map.mlp.0.bias": r(E)}
    w |= {"sigma_map.mlp.2.weight": r(E, E), "sigma_map.mlp.2.bias": r(E)}
    for i in range(L):
        b = {"norm1.weight": 1 + r(C), "norm2.weight": 1 + r(C), "attn_qkv.weight": r(3 * C, C)}
        b |= {"attn_out.weight": r(C, C), "mlp.0.weight": r(4 * C, C), "mlp.0.bias": r(4 * C)}
        b |= {"mlp.2.weight": r(C, 4 * C), "mlp.2.bias": r(C)}
        b |= {"adaLN_modulation.weight": r(6 * C, E), "adaLN_modulation.bias": r(6 * C)}
        w |= {f"blocks.{i}.{k}": v for k, v in b.items()}
    o = {"norm_final.weight": 1 + r(C), "linear.weight": r(V + 1, C), "linear.bias": r(V + 1)}
    o |= {"adaLN_modulation.weight": r(2 * C, E), "adaLN_modulation.bias": r(2 * C)}
    return w | {f"output_layer.{k}": v for k, v in o.items()}


def mdlm_forward(w, n_head, xt, sigma=0.0):
    """(B, T) -> (B, T, V + 1) logits of the published architecture: adaptive layer norms fed with the noise level."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x):
        return x / (1 + (-x).exp())

    def norm(x, weight):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    (B, T), C = xt.shape, w["vocab_embed.embedding"].size(1)
    D = C // n_head
    frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)])
    entering = torch.cat([(sigma * frequency).cos(), (sigma * frequency).sin()])
    c = silu(linear(silu(linear(entering, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)  # (T, D/2)

    def turn(x):
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    x = w["vocab_embed.embedding"][xt]
    for i in range(1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))):
        at = f"blocks.{i}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear(
            c, f"{at}.adaLN_modulation"
        ).chunk(6)
        y = norm(x, w[f"{at}.norm1.weight"]) * (1 + scale_1) + shift_1
        q, k, v = (y @ w[f"{at}.attn_qkv.weight"].T).view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4)
        y = (turn(q) @ turn(k).transpose(2, 3) / D**0.5).softmax(-1) @ v
        x = x + gate_1 * (y.transpose(1, 2).reshape(B, T, C) @ w[f"{at}.attn_out.weight"].T)
        y = norm(x, w[f"{at}.norm2.weight"]) * (1 + scale_2) + shift_2
        x = x + gate_2 * linear(F.gelu(linear(y, f"{at}.mlp.0"), approximate="tanh"), f"{at}.mlp.2")
    shift, scale = linear(c, "output_layer.adaLN_modulation").chunk(2)
    return linear(
        norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift, "output_layer.linear"
    )


def random_gpt2(V, C, L, T, gen):
    """-> weights in the layout of the published GPT-2 files: matrices are (in, out)."""

    def r(*shape):
        return torch.randn(shape, generator=gen) * 0.3

    w = {"wte.weight": r(V, C), "wpe.weight": r(T, C), "ln_f.weight": 1 + r(C), "ln_f.bias": r(C)}
    for i in range(L):
        b = {"ln_1.weight": 1 + r(C), "ln_1.bias": r(C), "ln_2.weight": 1 + r(C), "ln_2.bias": r(C)}
        for name, size in {
            "attn.c_attn": (C, 3 * C),
            "attn.c_proj": (C, C),
            "mlp.c_fc": (C, 4 * C),
        }.items():
            b |= {f"{name}.weight": r(*size), f"{name}.bias": r(size[1])}
        b |= {"mlp.c_proj.weight": r(4 * C, C), "mlp.c_proj.bias": r(C)}
        b |= {"attn.bias": torch.ones(1, 1, T, T).tril()}  # the files hold this mask too
        w |= {f"h.{i}.{k}": v for k, v in b.items()}
    return w


def gpt2_forward(w, n_head, x):
    """(B, T) -> (B, T, V) logits, as published: x W + b with (in, out) matrices."""

    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    B, T = x.shape
    hidden = w["wte.weight"][x] + w["wpe.weight"][:T]
    C = hidden.size(2)
    for i in range(1 + max(int(k.split(".")[1]) for k in w if k.startswith("h."))):
        y = conv1d(norm(hidden, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.view(B, T, n_head, C // n_head).transpose(1, 2) for part in y.chunk(3, -1))
        scores = q @ k.transpose(2, 3) / (C // n_head) ** 0.5
        y = (
            scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf")).softmax(
                -1
            )
            @ v
        )
        hidden = hidden + conv1d(y.transpose(1, 2).reshape(B, T, C), f"h.{i}.attn.c_proj")
        y = F.gelu(conv1d(norm(hidden, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        hidden = hidden + conv1d(y, f"h.{i}.mlp.c_proj")
    return norm(hidden, "ln_f") @ w["wte.weight"].T


# ----------------------------------------------------------------------------------------------------------------------
# evaluation


def self_bleu(rows, longest=4):
    """Lists of tokens of one length -> the mean BLEU of each against all others, as in Papineni et al. 2002."""

    def grams(row, n):
        return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]

    scores = []
    for i, row in enumerate(rows):
        others, log_precision = rows[:i] + rows[i + 1 :], 0.0
        for n in range(1, longest + 1):
            mine, hits = grams(row, n), 0
            for gram in set(mine):
                hits += min(mine.count(gram), max(grams(other, n).count(gram) for other in others))
            log_precision += (math.log(hits / len(mine)) if hits else -math.inf) / longest
        scores.append(math.exp(log_precision))
    return sum(scores) / len(scores)


def last_word(model, tokens, m, V):
    """-> is each of the last m tokens the most probable (diffusion: all masked at once), nats of the word.

    Nats of a diffusion model: the bound, subset after subset of the word.
    """
    T, word = len(tokens), tokens[len(tokens) - m :]
    if model.config.causal:
        p = model(torch.tensor([tokens[:-1]]))[0, -m:].softmax(-1)
        return p.argmax(1).tolist() == word, -sum(math.log(p[i, word[i]]) for i in range(m))
    guess = model(torch.tensor([tokens[: T - m] + [V] * m]))[0, -m:].argmax(1).tolist()
    nats = 0.0
    for size in range(1, m + 1):
        subsets = list(itertools.combinations(range(T - m, T), size))
        for subset in subsets:
            x = torch.tensor([[V if i in subset else token for i, token in enumerate(tokens)]])
            log_p = model(x)[0].log_softmax(-1)
            nats -= sum(log_p[i, tokens[i]].item() for i in subset) / size / len(subsets)
    return guess == word, nats
