"""
Everything that eval.py reports, one function for each number: how likely real text is, how good and
how varied a model's own text is, how fast it was written, and how many drafts a target accepts.

Likelihood and evaluator are computed in float32, without autocast: nobody calls them inside one.
"""

import collections
import itertools
import math
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import ar_loss, nelbo, probabilities
from plumbing.parallel import map_over_ranks
from plumbing.randomness import seeded
from speculative import draw_samples, generate, new_cache, speculate

# --------------------------------------------------------------------------------------------------
# likelihood of real text


def batch_nats(numbered, model, seed):
    """(i, (B, T + 1 if causal else T) int64) -> nats per token of the i-th batch."""
    i, batch = numbered
    device = model.wte.weight.device
    if model.config.causal:
        return ar_loss(model, batch.to(device)).item()
    return nelbo(model, batch.to(device), seeded(seed, "nelbo", i, device=device)).item()


@torch.no_grad()
def likelihood(model, x, *, draws, seed, batch_size):
    """
    (n, T + 1 if causal else T) int64 -> nats per token and its standard error over batches, None
    if there is one batch. Exact for a GPT, which sees each block from the block's own beginning
    (the first of the T + 1 tokens is context only); an upper bound for a diffusion model.
    """
    batches = x.split(batch_size)
    n_draws = 1 if model.config.causal else draws
    numbered = list(enumerate(batches * n_draws))  # the number seeds the noise
    values = map_over_ranks(batch_nats, numbered, "likelihood", model, seed)
    values = torch.tensor(values).view(n_draws, len(batches))

    # the error is over texts, not over draws: four noise draws of one text are one text
    values = values.mean(0)
    weights = torch.tensor([float(len(batch)) for batch in batches])
    weights = weights / weights.sum()
    mean = (values * weights).sum()
    if len(batches) == 1:
        return mean.item(), None
    variance = ((values - mean).square() * weights).sum() / (len(batches) - 1)
    return mean.item(), variance.sqrt().item()


# --------------------------------------------------------------------------------------------------
# how good and how varied samples are


def scored_positions(x, eot=None, prefix=0):
    """
    (n, L) int64 -> (n, L) bool: the tokens whose nats under the evaluator count.

    Not the prefix, which is real text, nor the first token, which has nothing before it, nor, as in
    MDLM's code, an end-of-text after the text's first: a model may not win by writing nothing.
    """
    scored = torch.arange(x.size(1)).expand_as(x) >= max(prefix, 1)
    if eot is None:
        return scored
    end = x == eot
    repeated_end = end & (end.cumsum(1) > 1)
    return scored & ~repeated_end


def text_nats(x_and_scored, evaluator):
    """(B, L) int64, (B, L) bool -> (B,) nats on the CPU, in windows of the evaluator's context."""
    x, scored = (part.to(evaluator.wte.weight.device) for part in x_and_scored)
    size = evaluator.config.block_size
    total = torch.zeros(len(x), device=x.device)
    for start in range(0, x.size(1) - 1, size):
        window = x[:, start : start + size + 1]  # a context, and the token after it
        targets = window[:, 1:]  # (B, T)
        logits = evaluator(window[:, :-1]).float()  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        total += (nats.view_as(targets) * scored[:, start + 1 : start + size + 1]).sum(1)
    return total.cpu()


@torch.no_grad()
def evaluator_nats(evaluator, x, scored, batch_size):
    """
    (n, L) int64, (n, L) bool -> (n,) float64: -log p of each text's scored tokens under the
    evaluator, an autoregressive model. Generative perplexity is exp(all nats / all scored tokens).
    The first token of a text must not be scored: nothing predicts it.
    """
    batches = list(zip(x.split(batch_size), scored.split(batch_size), strict=True))
    return torch.cat(map_over_ranks(text_nats, batches, "evaluator", evaluator)).double()


def entropies(x):
    """(n, L) int64 -> (n) the entropy, in nats, of the token frequencies within each sample."""
    found = []
    for row in x:
        p = row.unique(return_counts=True)[1] / row.numel()
        found.append(-(p * p.log()).sum())
    return torch.stack(found)


def repeated(x, n=4):
    """
    (N, L) int64 -> the fraction of a sample's L - n + 1 n-grams that occur earlier in it, a mean
    over the samples.
    """
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return 1 - sum(len(row.unique(dim=0)) for row in grams) / (grams.size(0) * grams.size(1))


def count_ngrams(row, n):
    """[token, ...] -> Counter of its n-grams: n copies of it side by side, each a token later."""
    return collections.Counter(zip(*(row[i:] for i in range(n)), strict=False))


def highest_counts(counts):
    """
    [Counter of a row, ...] -> {n-gram: (its highest count in a row, in how many rows it has that,
    its next lower count)}. This gives the highest count among all rows except any one of them.
    """
    best = {}
    for row in counts:
        for gram, count in row.items():
            top, n_rows, second = best.get(gram, (0, 0, 0))
            if count > top:
                best[gram] = (count, 1, top)
            elif count == top:
                best[gram] = (top, n_rows + 1, second)
            else:
                best[gram] = (top, n_rows, max(second, count))
    return best


def self_bleu(rows, longest=4):
    """
    [[token, ...], ...], all of one length -> the mean BLEU of each against all others, without
    smoothing (Texygen, Zhu et al. 2018): 1 is one text over and over. The plain way, every pair of
    rows, is in tests/reference.py.
    """
    log_precision = [0.0] * len(rows)
    for n in range(1, longest + 1):
        counts = [count_ngrams(row, n) for row in rows]
        best = highest_counts(counts)
        for i, row in enumerate(counts):
            hits = 0
            for gram, count in row.items():
                top, n_rows, second = best[gram]
                is_its_own = count == top and n_rows == 1
                hits += min(count, second if is_its_own else top)
            log_precision[i] += math.log(hits / row.total()) / longest if hits else -math.inf
    return sum(math.exp(value) for value in log_precision) / len(rows)


# --------------------------------------------------------------------------------------------------
# the frontier: perplexity at equal entropy


def mean_point(texts):
    """(n, 3) nats, scored tokens and entropy of each text -> mean entropy, nats per token."""
    nats, n_tokens, entropy = texts.unbind(1)
    return entropy.mean().item(), (nats.sum() / n_tokens.sum()).item()


def bootstrap_sample(texts, generator):
    """(n, 3) -> as many of its rows, drawn with replacement."""
    return texts[torch.randint(len(texts), (len(texts),), generator=generator)]


def over_frontier(student, teacher, extend=False):
    """
    student (n, 3), teacher [(n, 3) at each temperature]: nats, scored tokens and entropy of each
    text -> the student's perplexity over the teacher's at the same entropy. The teacher's log
    perplexity is interpolated linearly between its two temperatures whose entropies enclose the
    student's. None if there are no such two; extend: extrapolates from the ends instead.
    """
    entropy, nats = mean_point(student)
    line = sorted(mean_point(texts) for texts in teacher)
    if not extend and not line[0][0] <= entropy <= line[-1][0]:
        return None
    segments = list(itertools.pairwise(line))
    enclosing = [segment for segment in segments if entropy <= segment[1][0]] or segments[-1:]
    (low, nats_low), (high, nats_high) = enclosing[0]
    fraction = (entropy - low) / max(high - low, 1e-9)  # between the two: from 0 to 1
    # Extrapolate by at most one length of the segment: if its two entropies are almost equal, its
    # slope is noise, and one far point would dominate the bootstrap interval.
    fraction = min(max(fraction, -1), 2)
    return math.exp(nats - nats_low - (nats_high - nats_low) * fraction)


def over_best_line(student, lines, extend=False):
    """
    over_frontier of the line with the lowest perplexity. Of noisy lines that is a little too low,
    which errs against the student.
    """
    return max(over_frontier(student, line, extend) for line in lines)


def gain(student, lines, seed, n_resamples=400):
    """
    student (n, 3), the teacher's lines [[(n, 3) at each temperature], ...], one for each way in
    which the temperature falls -> "ratio": over_best_line at this entropy, and
    "low" and "high", its 95 % interval by bootstrap over the texts of both. All are None where the
    teacher has no such entropy.
    """
    lines = [line for line in lines if over_frontier(student, line) is not None]
    if not lines:
        return {"ratio": None, "low": None, "high": None}
    ratio = over_best_line(student, lines)
    generator = seeded(seed, "bootstrap")
    ratios = []
    for _ in range(n_resamples):
        student_sample = bootstrap_sample(student, generator)
        samples = [[bootstrap_sample(texts, generator) for texts in line] for line in lines]
        # a sampled line may end a little before the sampled entropy, so it is extended
        ratios.append(over_best_line(student_sample, samples, extend=True))
    low, high = torch.tensor(ratios).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"ratio": ratio, "low": low, "high": high}


# --------------------------------------------------------------------------------------------------
# speed


def median_seconds(f, *args, repeats=5):
    """-> seconds of f(*args), the median of the repeats; a first call warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        f(*args)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def draw_and_wait(model, template, options):
    draw_samples(model, template, **options).cpu()  # waits for the device


def seconds_per_sample(model, template, seed, **options):
    """
    (B, L) int64, -1 at the blanks -> seconds that B samples take at once, over B. options: those of
    draw_samples.
    """
    device = model.wte.weight.device
    template = template.to(device)
    options["generator"] = seeded(seed, "latency", device=device)  # every repeat draws others
    return median_seconds(draw_and_wait, model, template, options, repeats=3) / len(template)


# --------------------------------------------------------------------------------------------------
# drafters: how many of their tokens a target accepts, and how much faster they make it


class Rounds:
    """What speculate does, counted: give it as `watch`, start afresh for each text."""

    def __init__(self, gamma):
        self.tested = torch.zeros(gamma, dtype=torch.int64)  # drafts, by their position in a round
        self.accepted = torch.zeros(gamma, dtype=torch.int64)
        self.n_forwards = 0  # of the target
        self.n_rounds_with_drafts = 0
        self.n_drafts = 0  # proposed in all
        self.n_rejected = 0  # tested and rejected; what follows a rejection is neither
        self.n_tokens = 0  # new ones
        self.length = 0  # tokens of the present text
        self.drafted = []  # of the present text: whether each new token was a draft

    def start(self, n_known):
        """A new text, whose first n_known tokens are given."""
        self.length = n_known
        self.drafted = []

    def __call__(self, x, drafts):
        """x (n,): the text after a round, drafts (g,): what was verified in it."""
        new = x[self.length :]
        m = min(len(new), len(drafts))
        n_accepted = int((new[:m] == drafts[:m]).cumprod(0).sum())
        # drafts after the first rejection, or after an end of text, were never tested
        n_tested = n_accepted + (n_accepted < m)
        self.tested[:n_tested] += 1
        self.accepted[:n_accepted] += 1
        self.n_forwards += 1
        self.n_rounds_with_drafts += len(drafts) > 0
        self.n_drafts += len(drafts)
        self.n_rejected += n_tested - n_accepted
        self.n_tokens += len(new)
        self.drafted += [True] * n_accepted + [False] * (len(new) - n_accepted)
        self.length = len(x)


def acceptance(rounds):
    """
    A Rounds -> alpha, accepted / (accepted + first rejections), 0 if nothing was tested. What
    follows a rejection was never tested: counting it would make alpha too small.
    """
    return (rounds.accepted.sum() / rounds.tested.sum().clamp(min=1)).item()


def tokens_per_forward(rounds):
    """A Rounds -> new tokens for each forward pass of the target, over all rounds."""
    return rounds.n_tokens / max(rounds.n_forwards, 1)


def predicted_speedup(alpha, c, gamma, verify=1.0, propose_rate=1.0):
    """
    -> the speedup: tokens per round, divided by the cost of a round in plain steps (Leviathan et
    al., theorem 3.8). alpha may be 1.

    c: what a draft costs. verify: what the target's forward pass over the gamma drafts costs: in
    theory one step, on a CPU it grows with the tokens. propose_rate: the fraction of rounds in
    which the drafter has something to propose. The others verify nothing: one step, one token. But
    looking for a draft costs gamma c in them, too.
    """
    if alpha == 1:
        tokens = gamma + 1
    else:
        tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)  # 1 + alpha + ... + alpha^gamma
    tokens = 1 + propose_rate * (tokens - 1)
    cost = gamma * c + propose_rate * verify + (1 - propose_rate)
    return tokens / cost


GAMMAS = (1, 2, 3, 4, 6, 8)  # the gammas to choose from


def read_again(target, cache, x, n):
    """The target reads the last n of x (T,) once more, with its head; waits for the device."""
    cache.length = len(x) - n
    target.head(target.hidden(x[None, len(x) - n :], cache)).sum().item()


def draft_again(drafter, x, n, settings, generator):
    drafts, _ = drafter.propose(x, n, settings, generator)
    return drafts.tolist()  # waits for the device


@torch.no_grad()
def measure_costs(target, drafter, x, settings, generator):
    """
    x (T,) int64, a text of the target, longer than the largest gamma -> {gamma: (c, verify)}, in
    plain steps of the target: see predicted_speedup.
    """
    cache = new_cache(target)
    target.hidden(x[None], cache)
    step = median_seconds(read_again, target, cache, x, 1)
    costs = {}
    for gamma in GAMMAS:
        known = x[: len(x) - gamma]
        draft = median_seconds(draft_again, drafter, known, gamma, settings, generator)
        verify = median_seconds(read_again, target, cache, x, gamma + 1)
        costs[gamma] = (draft / gamma / step, verify / step)
    return costs


def best_gamma(alpha, costs, propose_rate=1.0):
    """-> the gamma with the highest predicted speed, and that speed."""
    speeds = {}
    for gamma, (c, verify) in costs.items():
        speeds[gamma] = predicted_speedup(alpha, c, gamma, verify, propose_rate)
    return max(speeds.items(), key=lambda pair: pair[1])


def trial(target, drafter, x, n_new, settings, generator):
    """-> a text that begins with x (T,), and the Rounds of its speculation."""
    gamma = max(GAMMAS)
    rounds = Rounds(gamma)
    rounds.start(len(x))
    options = {"gamma": gamma, "generator": generator, "watch": rounds, **settings}
    text = speculate(target, drafter, x, n_new, **options)
    return text, rounds


def choose_gamma(target, drafter, x, n_new, settings, generator):
    """
    x (T,) int64, known text -> the gamma that is fastest in a short trial, or 0 if plain decoding
    is faster.
    """
    n_trial = min(64, n_new)
    if n_trial <= max(GAMMAS):
        return min(4, n_new)
    text, rounds = trial(target, drafter, x, n_trial, settings, generator)
    costs = measure_costs(target, drafter, text, settings, generator)
    propose_rate = rounds.n_rounds_with_drafts / rounds.n_forwards
    gamma, speed = best_gamma(acceptance(rounds), costs, propose_rate)
    return gamma if speed > 1 else 0


@torch.no_grad()
def overlap(target, drafter, text, n_known, settings, batch_size):
    """
    text (n, L) int64, written by the target after n_known tokens -> (n,): for each, the mean over
    its tokens of sum_x min(p, q), the probability that a draft is accepted.

    For networks and n-grams all positions at once; a drafter that only proposes is asked at 16
    positions, and those count where it proposes something (nan: none).
    """
    found = []
    for part in text.split(batch_size):
        h = target.hidden(part[:, :-1])[:, n_known - 1 :]
        p = probabilities(target.head(h), **settings)  # (b, L - n_known, V), of the target's tokens
        if hasattr(drafter, "logits"):
            q = probabilities(drafter.logits(part[:, :-1])[:, n_known - 1 :], **settings)
            found.append(torch.minimum(p, q).sum(-1).mean(1))  # (b)
            continue
        for row, p_row in zip(part, p, strict=True):
            found.append(overlap_of_proposals(drafter, row, p_row, n_known, settings)[None])
    return torch.cat(found)


def overlap_of_proposals(drafter, row, p, n_known, settings):
    """row (L,), p (L - n_known, V) -> the mean of sum_x min(p, q) at those of 16 positions."""
    generator = seeded("overlap", device=row.device)
    accepted = []
    for n in torch.linspace(n_known, len(row) - 1, 16).long().unique().tolist():
        drafts, q = drafter.propose(row[:n], 1, settings, generator)
        if len(drafts):
            accepted.append(torch.minimum(p[n - n_known], q[0]).sum())
    return torch.stack(accepted).mean() if accepted else torch.tensor(math.nan, device=row.device)


def mean_and_error(values):
    """
    (n,) -> the mean of those that are known, half the width of its 95 % interval (Student's t).
    None stands for the mean of nothing, and for the interval of fewer than 6 values.
    """
    values = values[~values.isnan()]
    n = len(values)
    if n == 0:
        return None, None
    mean = values.mean().item()
    if n < 6:
        return mean, None
    df = n - 1
    t = 1.96 + 2.37 / df + 2.8 / df**2  # the 0.975 quantile, to 1 %
    return mean, t * (values.std() / n**0.5).item()


def race(target, drafter, x, n_new, gamma, settings, *, seed, rounds):
    """x (T,) -> how many times as fast the target writes n_new tokens with drafts as without."""
    generator = seeded(seed, device=x.device)
    began = time.perf_counter()
    generate(target, x[None], n_new, generator=generator, **settings).cpu()
    plain = time.perf_counter() - began

    generator = seeded(seed, device=x.device)
    rounds.start(len(x))
    began = time.perf_counter()
    speculate(target, drafter, x, n_new, gamma=gamma, generator=generator, watch=rounds, **settings)
    return plain / (time.perf_counter() - began)


def drafter_row(target, drafter, text, prompts, settings, *, seed, batch_size, n_races=24):
    """
    text (n, L) int64: what the target wrote after prompts (n, P) -> a dict: alpha on all texts,
    then costs, the best gamma, and speed and counts over n_races texts, one at a time.
    """
    n_new = text.size(1) - prompts.size(1)
    row = {}
    by_text = overlap(target, drafter, text, prompts.size(1), settings, batch_size)
    row["alpha"], row["alpha_error"] = mean_and_error(by_text)
    generator = seeded(seed, "costs", device=text.device)
    costs = measure_costs(target, drafter, text[0], settings, generator)
    _, rounds = trial(target, drafter, prompts[0], n_new, settings, generator)
    row["propose_rate"] = rounds.n_rounds_with_drafts / rounds.n_forwards
    alpha = row["alpha"] or 0.0  # None: it proposed nothing where it was asked
    gamma, predicted = best_gamma(alpha, costs, row["propose_rate"])
    c, verify = costs[gamma]
    row |= {"gamma": gamma, "predicted": predicted, "c": c, "verify": verify}

    rounds = Rounds(gamma)
    ratios = []
    for i, x in enumerate(prompts[:n_races]):
        ratio = race(target, drafter, x, n_new, gamma, settings, seed=seed + i, rounds=rounds)
        ratios.append(ratio)
    row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(ratios))
    row["alpha_counted"] = acceptance(rounds)
    counts = zip(rounds.accepted.tolist(), rounds.tested.tolist(), strict=True)
    row["counted_at"] = [accepted / tested if tested else None for accepted, tested in counts]
    row["tokens_per_forward"] = tokens_per_forward(rounds)
    row["drafts"] = rounds.n_drafts
    row["rejected"] = rounds.n_rejected
    return row


def drafter_rows(target, drafters, prompts, size, settings, seed, batch_size):
    """{name: drafter}, prompts (n, P) int64 -> a dict a drafter; their texts have `size` tokens."""
    generator = seeded(seed, "target", device=prompts.device)
    n_new = size - prompts.size(1)
    texts = []
    for part in prompts.split(batch_size):
        texts.append(generate(target, part, n_new, generator=generator, **settings))
    text = torch.cat(texts)
    rows = []
    for name, drafter in tqdm(drafters.items(), desc="drafters", leave=False):
        row = drafter_row(
            target, drafter, text, prompts, settings, seed=seed, batch_size=batch_size
        )
        rows.append({"drafter": name, **row})
    return rows
