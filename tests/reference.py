"""
Every algorithm of the project once more, slow and literal, from its paper. Read it last, as the
answer book: the tests hold the plain and the fast versions to these. Nothing here is used outside
tests/.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from model import draw, probabilities

# --------------------------------------------------------------------------------------------------
# the transformer


def attention(q, k, v, causal):
    """(B, H, T, D) x 3 -> (B, H, T, D), one query at a time."""
    B, H, T, D = q.shape
    out = torch.zeros_like(q)
    for b, h, i in itertools.product(range(B), range(H), range(T)):
        n = i + 1 if causal else T  # keys that it sees
        scores = torch.stack([q[b, h, i] @ k[b, h, j] / math.sqrt(D) for j in range(n)])
        weights = scores.softmax(0)
        out[b, h, i] = sum(weights[j] * v[b, h, j] for j in range(n))
    return out


def rope(x, base=10000.0):
    """
    (T, D) -> (T, D): channels i and i + D/2 are one complex number, turned by an angle of position
    times base^(-2i/D).
    """
    T, D = x.shape
    out = x.clone()
    for t, i in itertools.product(range(T), range(D // 2)):
        angle = t * base ** (-2 * i / D)
        z = complex(x[t, i], x[t, i + D // 2]) * complex(math.cos(angle), math.sin(angle))
        out[t, i] = z.real
        out[t, i + D // 2] = z.imag
    return out


def generate_greedy(model, idx, n_new):
    """(1, T) -> (1, T + n_new): the whole text anew for every token. Within the context only."""
    for _ in range(n_new):
        best = model(idx)[:, -1:].argmax(-1)
        idx = torch.cat([idx, best], dim=1)
    return idx


@torch.no_grad()
def generate(model, idx, n_new, generator, **settings):
    """(B, T) -> (B, T + n_new) without a cache; a window that is full drops its older half."""
    size = model.config.block_size
    start = 0
    for end in range(idx.size(1), idx.size(1) + n_new):
        if end - start > size:
            start = end - size // 2
        logits = model.head(model.hidden(idx[:, start:])[:, -1])
        token = draw(probabilities(logits, **settings), generator)
        idx = torch.cat([idx, token[:, None]], dim=1)
    return idx


# --------------------------------------------------------------------------------------------------
# losses


def ar_loss(model, batch):
    """Next-token cross-entropy from the full (B, T, V) logits."""
    log_p = model(batch[:, :-1]).float().log_softmax(-1)
    return -log_p.gather(-1, batch[:, 1:, None]).mean()


def subs_log_p(model, xt):
    """
    (B, T) -> (B, T, V + 1) as MDLM writes it: [MASK] has probability zero, tokens that are not
    masked are carried over.
    """
    log_p = model(xt).float().log_softmax(-1)
    log_p = F.pad(log_p, (0, 1), value=-math.inf)
    carried = torch.full_like(log_p, -math.inf).scatter(-1, xt[..., None], 0.0)
    return torch.where((xt == model.mask_id)[..., None], log_p, carried)


def diffusion_loss(model, x0, xt, t):
    """MDLM eq. 10 for one draw of t and xt, dense: 1/t sum of -log p(x0 | xt), per token."""
    log_p = subs_log_p(model, xt).gather(-1, x0[..., None])[..., 0]  # (B, T); 0 where carried over
    return -(log_p / t).mean()


@torch.no_grad()
def exact_nelbo(model, x0):
    """
    (1, T) -> nats per token, the continuous-time bound as an expectation over all 2^T masks.

    A mask of n tokens has the weight integral_0^1 1/t t^n (1-t)^(T-n) dt = (n-1)! (T-n)! / T!.
    """
    T = x0.size(1)
    total = 0.0
    for mask in itertools.product([False, True], repeat=T):
        n = sum(mask)
        if n == 0:
            continue
        masked = torch.tensor(mask)
        log_p = subs_log_p(model, x0.masked_fill(masked, model.mask_id))
        log_p = log_p.gather(-1, x0[..., None])[0, :, 0]  # (T)
        weight = math.factorial(n - 1) * math.factorial(T - n) / math.factorial(T)
        total -= weight * log_p[masked].sum().item()
    return total / T


# --------------------------------------------------------------------------------------------------
# sampling


def categorical(p, generator):
    """(..., V) -> (...): Gumbel-max in float64."""
    u = torch.rand(p.shape, dtype=torch.float64, generator=generator)
    gumbel = -(-u.log()).log()
    return (p.double().log() + gumbel).argmax(-1)


def ancestral_step(p, t, s):
    """
    p (..., V), the predictions at masked positions -> (..., V + 1): MDLM's eq. 7, what a token that
    is masked at t is at s.
    """
    stays = torch.full_like(p[..., :1], s / t)
    return torch.cat([p * (t - s) / t, stays], dim=-1)


def analytic_step(p, t, s):
    """
    As ancestral_step: SEDD's Tweedie step (Lou et al. 2024, arXiv 2310.16834, theorem 4.2) with the
    scores of a model that predicts x0. sigma = -log(1 - t), so t < 1.
    """
    sigma = -math.log(1 - t)
    d_sigma = sigma + math.log(1 - s)
    of_tokens = p / math.expm1(sigma)
    score = torch.cat([of_tokens, torch.ones_like(p[..., :1])], dim=-1)  # (..., V + 1)
    staggered = score * math.exp(d_sigma)
    staggered[..., -1] += (1 - math.exp(d_sigma)) * score.sum(-1)
    transition = torch.full_like(score, 1 - math.exp(-d_sigma))  # from [MASK], backwards
    transition[..., -1] += math.exp(-d_sigma)
    return staggered * transition


@torch.no_grad()
def ancestral_sampler(model, xt, steps, generator):
    """
    MDLM's sampler, dense: in each of K steps a draw over V + 1 tokens at every position (eq. 7).

    Like MDLM's own code it keeps the last prediction while no token of the batch changes.
    """
    log_p = None
    for k in range(steps):
        t = 1 - k / steps
        s = 1 - (k + 1) / steps
        if log_p is None:
            log_p = subs_log_p(model, xt)
        q = ancestral_step(log_p[..., :-1].exp(), t, s)  # (B, T, V + 1)
        new = torch.where(xt == model.mask_id, categorical(q, generator), xt)
        if not torch.equal(new, xt):
            log_p = None
        xt = new
    return xt


def add(distribution, x, weight):
    distribution[x] = distribution.get(x, 0.0) + weight


@torch.no_grad()
def exact_ancestral_distribution(model, x, steps):
    """
    A list of tokens with mask_id at the masked positions -> {tokens (tuple): probability} of the
    ancestral sampler with K steps: every path of it.
    """
    V = model.mask_id
    states = {tuple(x): 1.0}
    for k in range(steps):
        t = 1 - k / steps
        s = 1 - (k + 1) / steps
        after = {}
        for y, weight in states.items():
            p = model(torch.tensor([y]))[0].softmax(-1)  # (T, V)
            q = ancestral_step(p, t, s).tolist()  # T lists of V + 1
            choices = []
            for token in y:
                choices.append(range(V + 1) if token == V else [token])
            for z in itertools.product(*choices):
                chance = math.prod(q[i][z[i]] for i in range(len(y)) if y[i] == V)
                add(after, z, weight * chance)
        states = after
    return {y: weight for y, weight in states.items() if weight > 0}


@torch.no_grad()
def exact_groups_distribution(model, x, groups, temperatures=None):
    """
    As above; groups: lists of positions that are unmasked one list after the other, each at a
    temperature of its own.
    """
    states = {tuple(x): 1.0}
    for group, temperature in zip(groups, temperatures or [1.0] * len(groups), strict=True):
        after = {}
        for y, weight in states.items():
            p = (model(torch.tensor([y]))[0] / temperature).softmax(-1)  # (T, V)
            for tokens in itertools.product(range(model.mask_id), repeat=len(group)):
                z = list(y)
                chance = weight
                for i, token in zip(group, tokens, strict=True):
                    z[i] = token
                    chance *= p[i, token].item()
                add(after, tuple(z), chance)
        states = after
    return states


def mean_over_orders(model, x, groups, temperatures=None):
    """As exact_groups_distribution, the mean over all orders of the groups."""
    mean = {}
    orders = list(itertools.permutations(groups))
    for order in orders:
        for y, weight in exact_groups_distribution(model, x, order, temperatures).items():
            add(mean, y, weight / len(orders))
    return mean


def exact_first_hitting_distribution(model, x):
    """One position a step, in a uniformly random order."""
    return mean_over_orders(model, x, [[i] for i, v in enumerate(x) if v == model.mask_id])


def exact_spread_distribution(model, x, steps):
    """Every K-th masked position in one step, in a uniformly random order of the K groups."""
    positions = [i for i, token in enumerate(x) if token == model.mask_id]
    n_groups = min(steps, len(positions))  # the steps that are left over have nothing to do
    return mean_over_orders(model, x, [positions[c::n_groups] for c in range(n_groups)])


@torch.no_grad()
def exact_confidence_distribution(model, x, steps):
    """Every step draws all masked positions and keeps the most probable draws (MaskGIT)."""
    V = model.mask_id
    n_masked = sum(token == V for token in x)
    states = {tuple(x): 1.0}
    for step in range(1, steps + 1):
        n_left = n_masked * (steps - step) // steps
        after = {}
        for y, weight in states.items():
            p = model(torch.tensor([y]))[0].softmax(-1)  # (T, V)
            masked = [i for i, token in enumerate(y) if token == V]
            for tokens in itertools.product(range(V), repeat=len(masked)):
                confidence = [p[i, v].item() for i, v in zip(masked, tokens, strict=True)]
                drawn = sorted(zip(confidence, masked, tokens, strict=True), reverse=True)
                z = list(y)
                for _, i, token in drawn[: len(masked) - n_left]:
                    z[i] = token
                add(after, tuple(z), weight * math.prod(confidence))
        states = after
    return states


def top_p_set(p, top_p):
    """[V probabilities] -> the smallest set of most probable tokens that holds top_p."""
    chosen = []
    total = 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total >= top_p and chosen:
            break
        chosen.append(i)
        total += p[i]
    return sorted(chosen)


# --------------------------------------------------------------------------------------------------
# SDTT


@torch.no_grad()
def sdtt_targets(teacher, xt, t, dt, k, unmasks, pick):
    """
    Algorithm 1, dense -> (B, T, V) log-probabilities, zeros where xt is not masked.

    The random numbers of a step from t_i to s_i: unmasks(t_i, s_i) -> (B, T) bool, for masked
    positions, and pick((B, T, V) log_p) -> (B, T).
    """
    V = teacher.mask_id
    z = xt.clone()
    targets = torch.zeros(*xt.shape, V)
    for i in range(k):
        t_i = t - i * dt
        log_p = teacher(z).log_softmax(-1)  # (B, T, V)
        now = unmasks(t_i, t_i - dt) & (z == V)
        targets = torch.where(now[..., None], log_p, targets)
        z = torch.where(now, pick(log_p), z)
    return torch.where((z == V)[..., None], log_p, targets)  # still masked: the last step's


@torch.no_grad()
def expected_sdtt_targets(teacher, xt, t, dt, k):
    """(T,) -> (T, V): the mean of Algorithm 1's targets, as probabilities, over all its paths."""
    V = teacher.mask_id
    T = len(xt)
    states = {(tuple(xt.tolist()), (None,) * T): 1.0}  # z, and the z that each target came from
    p_of = {}
    for i in range(k):
        t_i = t - i * dt
        rate = min(dt / t_i, 1) if t_i > 0 else 1  # eq. 7; the last step before 0 unmasks all
        after = {}
        for (z, sources), weight in states.items():
            if z not in p_of:
                p_of[z] = teacher(torch.tensor([z]))[0].softmax(-1)  # (T, V)
            choices = []
            for j, token in enumerate(z):
                if token != V:
                    choices.append([(token, sources[j], 1.0)])
                else:
                    drawn = [(v, z, rate * p_of[z][j, v].item()) for v in range(V)]
                    choices.append([(V, z, 1 - rate), *drawn])
            for path in itertools.product(*choices):
                tokens, new_sources, chances = zip(*path, strict=True)
                add(after, (tokens, new_sources), weight * math.prod(chances))
        states = after

    mean = torch.zeros(T, V)
    for (_, sources), weight in states.items():
        for j, z in enumerate(sources):
            if z is not None:
                mean[j] += weight * p_of[z][j]
    return mean


@torch.no_grad()
def spread_targets(teacher, xt, parts, pick):
    """
    (1, T), [[positions], ...]: the teacher unmasks part after part -> (T, V): its log-probabilities
    when it did.
    """
    z = xt.clone()
    targets = torch.zeros(xt.size(1), teacher.mask_id)
    for part in parts:
        log_p = teacher(z)[0].log_softmax(-1)  # (T, V)
        targets[part] = log_p[part]
        z[0, part] = pick(log_p)[part]
    return targets


@torch.no_grad()
def expected_spread_targets(teacher, xt, parts):
    """
    (T,), two parts -> (T, V): the mean of the targets, as probabilities, over both orders and all
    tokens drawn.
    """
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


def divergence(log_student, log_teacher, name):
    """Two lists of V log-probabilities -> float, term by term."""
    pairs = [(math.exp(a), math.exp(b)) for a, b in zip(log_student, log_teacher, strict=True)]
    if name == "kl_bwd":
        return sum(p * math.log(p / q) for p, q in pairs)
    if name == "kl_fwd":
        return sum(q * math.log(q / p) for p, q in pairs)
    if name == "tvd":
        return sum(abs(p - q) for p, q in pairs) / 2
    if name == "mse":
        return sum((math.log(p) - math.log(q)) ** 2 for p, q in pairs)
    if name == "nla":
        return -math.log(sum(min(p, q) for p, q in pairs))
    if name == "jsd":
        to_mean = [(p, q, (p + q) / 2) for p, q in pairs]
        return sum(p * math.log(p / m) + q * math.log(q / m) for p, q, m in to_mean) / 2
    raise ValueError(name)


def sdtt_loss(student, x0, generator, teacher, dt, k=2):
    """
    KL(student || teacher) against Algorithm 1's targets, everything B x T x V and in float32, as
    in the released code.
    """
    V = student.mask_id
    t = 1 - torch.rand(x0.size(0), 1, generator=generator)
    xt = torch.where(torch.rand(x0.shape, generator=generator) < t, V, x0)
    z = xt
    log_teacher = torch.zeros(*xt.shape, V)
    with torch.no_grad():
        for i in range(k):
            t_i = t - i * dt
            log_p = teacher(z).float().log_softmax(-1)  # (B, T, V)
            log_teacher = torch.where((z == V)[..., None], log_p, log_teacher)
            now = torch.rand(x0.shape, generator=generator) < dt / t_i
            u = torch.rand(log_p.shape, generator=generator)
            gumbel = -(1e-10 - (u + 1e-10).log()).log()
            z = torch.where(now & (z == V), (log_p + gumbel).argmax(-1), z)
    log_student = student(xt).float().log_softmax(-1)
    kl = (log_student.exp() * (log_student - log_teacher)).sum(-1)  # (B, T)
    masked = xt == V
    return (kl * masked).sum() / masked.sum()


# --------------------------------------------------------------------------------------------------
# speculation


def speculative_step(drafts, p, q, r, pick):
    """
    Leviathan et al. 2023, Algorithm 1, after the drafts x_1 ... x_g: [token], p (g + 1, V),
    q (g, V), r [g uniform numbers], pick((V,) distribution) -> token -> [n accepted drafts, one].
    """
    n = len(drafts)
    for i, x in enumerate(drafts):
        if r[i] > p[i, x] / q[i, x]:
            n = i
            break
    if n == len(drafts):
        return [*drafts, pick(p[n])]
    residual = (p[n] - q[n]).clamp(min=0)
    return [*drafts[:n], pick(residual / residual.sum())]


# --------------------------------------------------------------------------------------------------
# n-grams


class DictNGram:
    """
    Dictionaries: for every context of up to n - 1 tokens, how often which token followed. Laplace
    smoothing.
    """

    def __init__(self, n, vocab_size, alpha=0.1):
        self.n = n
        self.V = vocab_size
        self.alpha = alpha
        self.after = {}

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


def grams_of(tokens, m):
    """-> the m-grams, one at each position."""
    return [tuple(tokens[i : i + m]) for i in range(len(tokens) - m + 1)]


def kneser_ney_count(tokens, gram, n):
    """Of an n-gram how often it occurs; of a shorter one how many different tokens preceded it."""
    m = len(gram)
    if m == n:
        return grams_of(tokens, n).count(gram)
    return len({longer[0] for longer in grams_of(tokens, m + 1) if longer[1:] == gram})


def kneser_ney_p(tokens, context, w, n, V, discount):
    """-> interpolated Kneser-Ney's probability of token w after the context, by recursion."""
    counts = [kneser_ney_count(tokens, (*context, v), n) for v in range(V)]
    shorter = 1 / V
    if context:
        shorter = kneser_ney_p(tokens, context[1:], w, n, V, discount)
    if sum(counts) == 0:
        return shorter
    kinds = sum(c > 0 for c in counts)
    return (max(counts[w] - discount, 0) + discount * kinds * shorter) / sum(counts)


def kneser_ney(tokens, context, n, vocab, discount=0.75):
    """Interpolated Kneser-Ney by nested loops -> [p] of the next token."""
    return [kneser_ney_p(tokens, tuple(context), w, n, vocab, discount) for w in range(vocab)]


# --------------------------------------------------------------------------------------------------
# published layouts


def random_weights(gen, *shape):
    return torch.randn(shape, generator=gen) * 0.3


def random_mdlm(V, C, L, E, gen):
    """
    -> weights in the layout of the published MDLM and SDTT files; [MASK] is the last of V + 1.
    """
    shapes = {
        "vocab_embed.embedding": (V + 1, C),
        "sigma_map.mlp.0.weight": (E, 256),
        "sigma_map.mlp.0.bias": (E,),
        "sigma_map.mlp.2.weight": (E, E),
        "sigma_map.mlp.2.bias": (E,),
        "output_layer.norm_final.weight": (C,),
        "output_layer.linear.weight": (V + 1, C),
        "output_layer.linear.bias": (V + 1,),
        "output_layer.adaLN_modulation.weight": (2 * C, E),
        "output_layer.adaLN_modulation.bias": (2 * C,),
    }
    of_block = {
        "norm1.weight": (C,),
        "norm2.weight": (C,),
        "attn_qkv.weight": (3 * C, C),
        "attn_out.weight": (C, C),
        "mlp.0.weight": (4 * C, C),
        "mlp.0.bias": (4 * C,),
        "mlp.2.weight": (C, 4 * C),
        "mlp.2.bias": (C,),
        "adaLN_modulation.weight": (6 * C, E),
        "adaLN_modulation.bias": (6 * C,),
    }
    for i in range(L):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in of_block.items()}
    weights = {name: random_weights(gen, *shape) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name:
            weights[name] += 1
    return weights


def linear(w, x, name):
    """x W^T + b with (out, in) matrices."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x):
    return x / (1 + (-x).exp())


def scaled_norm(x, weight):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x, angle):
    """x (..., T, D), angle (T, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def noise_features(w, sigma):
    """-> (E,): what the published architecture makes of the noise level."""
    frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)])
    entering = torch.cat([(sigma * frequency).cos(), (sigma * frequency).sin()])
    return silu(linear(w, silu(linear(w, entering, "sigma_map.mlp.0")), "sigma_map.mlp.2"))


def mdlm_forward(w, n_head, xt, sigma=0.0):
    """
    (B, T) -> (B, T, V + 1) logits of the published architecture: adaptive layer norms, fed with
    the noise level.
    """
    B, T = xt.shape
    C = w["vocab_embed.embedding"].size(1)
    D = C // n_head
    c = noise_features(w, sigma)
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)  # (T, D/2)

    x = w["vocab_embed.embedding"][xt]  # (B, T, C)
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for i in range(n_layer):
        at = f"blocks.{i}"
        modulation = linear(w, c, f"{at}.adaLN_modulation").chunk(6)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        y = scaled_norm(x, w[f"{at}.norm1.weight"]) * (1 + scale_1) + shift_1
        qkv = (y @ w[f"{at}.attn_qkv.weight"].T).view(B, T, 3, n_head, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        scores = turn(q, angle) @ turn(k, angle).transpose(2, 3) / D**0.5
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + gate_1 * (y @ w[f"{at}.attn_out.weight"].T)
        y = scaled_norm(x, w[f"{at}.norm2.weight"]) * (1 + scale_2) + shift_2
        y = F.gelu(linear(w, y, f"{at}.mlp.0"), approximate="tanh")
        x = x + gate_2 * linear(w, y, f"{at}.mlp.2")
    shift, scale = linear(w, c, "output_layer.adaLN_modulation").chunk(2)
    x = scaled_norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return linear(w, x, "output_layer.linear")


def random_gpt2(V, C, L, T, gen):
    """-> weights in the layout of the published GPT-2 files: matrices are (in, out)."""
    shapes = {"wte.weight": (V, C), "wpe.weight": (T, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    of_block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "mlp.c_fc.weight": (C, 4 * C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (4 * C, C),
        "mlp.c_proj.bias": (C,),
    }
    for i in range(L):
        shapes |= {f"h.{i}.{name}": shape for name, shape in of_block.items()}
    weights = {name: random_weights(gen, *shape) for name, shape in shapes.items()}
    for name in weights:
        if "ln_" in name and name.endswith("weight"):
            weights[name] += 1
    for i in range(L):
        weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, T, T).tril()  # the files hold this mask too
    return weights


def conv1d(w, x, name):
    """x W + b with (in, out) matrices."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(w, x, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def gpt2_forward(w, n_head, x):
    """(B, T) -> (B, T, V) logits, as published."""
    B, T = x.shape
    h = w["wte.weight"][x] + w["wpe.weight"][:T]
    C = h.size(2)
    D = C // n_head
    sees = torch.ones(T, T, dtype=torch.bool).tril()
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("h."))
    for i in range(n_layer):
        y = conv1d(w, layer_norm(w, h, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.view(B, T, n_head, D).transpose(1, 2) for part in y.chunk(3, -1))
        scores = q @ k.transpose(2, 3) / D**0.5
        y = scores.masked_fill(~sees, -math.inf).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(B, T, C)
        h = h + conv1d(w, y, f"h.{i}.attn.c_proj")
        y = conv1d(w, layer_norm(w, h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = h + conv1d(w, F.gelu(y, approximate="tanh"), f"h.{i}.mlp.c_proj")
    return layer_norm(w, h, "ln_f") @ w["wte.weight"].T


# --------------------------------------------------------------------------------------------------
# evaluation


def bleu(row, others, longest):
    """A list of tokens, lists of as many -> BLEU of it against them, as in Papineni et al. 2002."""
    log_precision = 0.0
    for n in range(1, longest + 1):
        own = grams_of(row, n)
        hits = 0
        for gram in set(own):
            hits += min(own.count(gram), max(grams_of(o, n).count(gram) for o in others))
        if hits == 0:
            return 0.0
        log_precision += math.log(hits / len(own)) / longest
    return math.exp(log_precision)


def self_bleu(rows, longest=4):
    """Lists of tokens of one length -> the mean BLEU of each against all others."""
    scores = []
    for i, row in enumerate(rows):
        scores.append(bleu(row, rows[:i] + rows[i + 1 :], longest))
    return sum(scores) / len(scores)


def last_word(model, tokens, m, V):
    """
    -> whether each of the last m tokens is the most probable (diffusion: all masked at once), nats
    of the word.

    Nats of a diffusion model: the bound, subset after subset of the word.
    """
    T = len(tokens)
    word = tokens[T - m :]
    if model.config.causal:
        p = model(torch.tensor([tokens[:-1]]))[0, -m:].softmax(-1)
        nats = -sum(math.log(p[i, word[i]]) for i in range(m))
        return p.argmax(1).tolist() == word, nats
    best = model(torch.tensor([tokens[: T - m] + [V] * m]))[0, -m:].argmax(1).tolist()
    nats = 0.0
    for size in range(1, m + 1):
        subsets = list(itertools.combinations(range(T - m, T), size))
        for subset in subsets:
            x = torch.tensor([[V if i in subset else token for i, token in enumerate(tokens)]])
            log_p = model(x)[0].log_softmax(-1)
            nats -= sum(log_p[i, tokens[i]].item() for i in subset) / size / len(subsets)
    return best == word, nats
