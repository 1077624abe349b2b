"""
How good a text is, and how fast it was written: the numbers of eval.py, one function each.
"""

import itertools
import math
import time

import torch
from tqdm import tqdm

import data
import speculative
from configurator import UserError
from model import ar_loss, nelbo, probabilities, rank_in_row
from plumbing.parallel import map_over_ranks
from plumbing.randomness import seeded
from plumbing.scores import but_repeated_ends, retokenized


@torch.no_grad()
def likelihood(model, x, cfg):
    """(n, T + 1 if causal else T) int64 -> nats per token and its standard error over batches (None if there is one).

    A causal model sees each block from its own beginning; the first of the T + 1 tokens is context only.
    """
    ar, device = model.config.causal, model.wte.weight.device

    def nats_of(i):
        b, noise = batches[i].to(device), seeded(cfg.seed, "nelbo", i, device=device)
        return (ar_loss(model, b) if ar else nelbo(model, b, noise)).item()

    batches = [b for _ in range(1 if ar else cfg.draws) for b in x.split(cfg.batch_size)]
    values = torch.tensor(map_over_ranks(nats_of, range(len(batches)), "likelihood"))
    weights = torch.tensor([float(len(b)) for b in x.split(cfg.batch_size)])
    values = values.view(-1, len(weights)).mean(0)  # over the draws: only other text is independent
    mean = (values * weights).sum() / weights.sum()
    if len(weights) == 1:
        return mean.item(), None
    error = ((values - mean).square() * weights).sum() / weights.sum() / (len(weights) - 1)
    return mean.item(), error.sqrt().item()


@torch.no_grad()
def judge_nats(judge, x, counted, batch_size):
    """(n, L) int64, (n, L) bool -> (n) nats of each text's counted tokens, in windows of the judge's context.

    The first token has nothing before it and must not be counted.
    """
    size, device = judge.config.block_size, judge.wte.weight.device

    def nats_of(i):
        rows, total = slice(i, i + batch_size), 0.0
        for start in range(0, x.size(1) - 1, size):
            window, weights = (a[rows, start : start + size + 1].to(device) for a in (x, counted))
            h = judge.hidden(window[:, :-1])  # (b, T, C)
            parts = zip(h, window[:, 1:], weights[:, 1:].float(), strict=True)
            total = total + torch.stack([judge.nll(*part) for part in parts]).cpu()
        return total

    return torch.cat(map_over_ranks(nats_of, range(0, len(x), batch_size), "judging"))


def judged(x, judge, metas, cfg, prefix=0):
    """(n, L) int64 -> (n) nats of each text under the judge, (n) of how many of its tokens.

    After the `prefix`, which is real text, every token counts but the first of all and, as in MDLM's code, each
    end-of-text after the first of the sample, which may be its first token: a model may not win by writing nothing.
    retokenize: the judge reads the text as its own tokenizer cuts it; the nats are still of so many of x's tokens.
    """
    meta, judge_meta = metas
    counted = but_repeated_ends(x, torch.arange(x.size(1)).expand_as(x) >= max(prefix, 1), meta)
    y, read = x, counted  # (n, M), as the judge reads them
    if cfg.retokenize:
        y, read = retokenized(x, prefix, data.encoder(meta)[1], data.encoder(judge_meta)[0])
        read = but_repeated_ends(y, read, judge_meta)
    return judge_nats(judge, y, read, cfg.batch_size).double(), counted.sum(1)


def word_log_p(model, x, m):
    """(S, n) int64 -> (S, m, V) log-probabilities at the last m places; logits in float32, as large ones need."""
    h = model.hidden(x)[:, -m:]
    with torch.autocast(h.device.type, enabled=False):
        return model.head(h.float()).log_softmax(-1)


def masked_word(model, x, masked):
    """x (n,) int64 ends with a word of m tokens, masked (S, m) bool tells which of them are hidden

    -> (S,) mean over the hidden tokens of -log p; (m,) bool: whether each is the most probable one, given masked[-1].
    """
    word, xt = x[-masked.size(1) :], x.repeat(len(masked), 1)
    xt[:, -len(word) :].masked_fill_(masked, model.mask_id)
    log_p = word_log_p(model, xt, len(word))  # (S, m, V)
    nats = -log_p.gather(2, word.expand(len(masked), -1)[..., None]).squeeze(2)  # (S, m)
    return (nats * masked).sum(1) / masked.sum(1), log_p[-1].argmax(1) == word


def last_word(model, x, m, draws, noise, largest):
    """(n,) int64 that ends with a word of m tokens -> whether it is guessed, its nats, and the same by Monte Carlo.

    None for nats where m > largest, and for Monte Carlo also of a causal model.
    """
    word = x[-m:]
    if model.config.causal:
        log_p = word_log_p(model, x[None, :-1], m)[0]  # (m, V)
        nats = -log_p.gather(1, word[:, None]).sum().item()
        return (log_p.argmax(1) == word).all().item(), nats if m <= largest else None, None
    if m > largest:
        return (
            masked_word(model, x, torch.ones(1, m, dtype=torch.bool, device=x.device))[1]
            .all()
            .item(),
            None,
            None,
        )
    subsets = torch.tensor(
        list(itertools.product((False, True), repeat=m))[1:]
    )  # not the empty one; at last all m
    nats, hits = masked_word(model, x, subsets.to(x.device))  # (2^m - 1)
    # the bound of model.nelbo on m tokens: a sum over l = 1 ... m of the mean over the comb(m, l) sets of l tokens,
    # which is m times the mean over a random l and a random set
    ways = torch.tensor([math.comb(m, k) for k in subsets.sum(1).tolist()], device=x.device)
    n_masks = torch.randint(1, m + 1, (draws, 1), generator=noise)
    drawn = rank_in_row(torch.rand(draws, m, generator=noise)) < n_masks
    return (
        hits.all().item(),
        (nats / ways).sum().item(),
        m * masked_word(model, x, drawn.to(x.device))[0].mean().item(),
    )


@torch.no_grad()
def lambada(model, passages, cfg, largest=8):
    """[(context ids, word ids), ...] -> accuracy, and perplexity of the last words (per word, not per token).

    A word is right if each of its tokens is the most probable one; a diffusion model is shown all of them masked, in
    one forward. Its perplexity is the bound on the word's tokens: exact, over all 2^m - 1 sets of masked tokens, so
    words longer than `largest` tokens are left out of all perplexities; monte_carlo: of `draws` random sets instead. A
    passage whose word leaves no room for context is skipped.
    """
    causal, size, device = model.config.causal, model.config.block_size, model.wte.weight.device
    passages = [(context, word) for context, word in passages if len(word) < size]
    if not any(len(word) <= largest for _, word in passages):
        raise UserError(
            f"No passage ends with a word of at most {largest} tokens that leaves room for its context."
        )

    def one(i):
        context, word = passages[i]
        x = torch.tensor((context + word)[-size:], device=device)
        return last_word(model, x, len(word), cfg.draws, seeded(cfg.seed, "lambada", i), largest)

    rows = map_over_ranks(one, range(len(passages)), "lambada")
    exact = [r[1] for r in rows if r[1] is not None]
    row = {
        "accuracy": sum(r[0] for r in rows) / len(rows),
        "passages": len(rows),
        "words_in_ppl": len(exact),
    }
    row["ppl"] = math.exp(sum(exact) / len(exact))
    if not causal:
        row["ppl_monte_carlo"] = math.exp(sum(r[2] for r in rows if r[2] is not None) / len(exact))
    return row


def entropies(x):
    """(n, L) int64 -> (n) the entropy, in nats, of the token frequencies within each sample."""
    found = []
    for row in x:
        p = row.unique(return_counts=True)[1] / row.numel()
        found.append(-(p * p.log()).sum())
    return torch.stack(found)


def repeated(x, n=4):
    """(N, L) int64 -> the share of a sample's n-grams that it has had before, the mean over samples."""
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return 1 - sum(len(row.unique(dim=0)) for row in grams) / (grams.size(0) * grams.size(1))


def over_frontier(student, teacher, noise=None):
    """student (n, 3), teacher [(n, 3) at each temperature]: nats, tokens and entropy of each text -> the student's
    perplexity over the one that the teacher has at the same entropy, or None where no temperature gives it that.

    On the log scale, between the two nearest temperatures. noise: the texts are drawn anew, with replacement, and the
    line is extended where it ends a little early.
    """

    def point(texts):
        """-> entropy, nats per token."""
        if noise is not None:
            texts = texts[torch.randint(len(texts), (len(texts),), generator=noise)]
        return texts[:, 2].mean().item(), (texts[:, 0].sum() / texts[:, 1].sum()).item()

    (entropy, nats), line = point(student), sorted(map(point, teacher))
    if noise is None and not line[0][0] <= entropy <= line[-1][0]:
        return None
    pieces = list(itertools.pairwise(line))
    (low, a), (high, b) = next((piece for piece in pieces if entropy <= piece[1][0]), pieces[-1])
    way = min(max((entropy - low) / max(high - low, 1e-9), -1), 2)  # between the two: from 0 to 1
    return math.exp(nats - a - (b - a) * way)


def gain(student, teacher, seed, draws=400):
    """-> over_frontier, "low" and "high", its 95 % interval by bootstrap over the texts of both; None where outside."""
    ratio, noise = over_frontier(student, teacher), seeded(seed, "bootstrap")
    if ratio is None:
        return {"ratio": None, "low": None, "high": None}
    drawn = torch.tensor([over_frontier(student, teacher, noise) for _ in range(draws)])
    return {
        "ratio": ratio,
        "low": drawn.quantile(0.025).item(),
        "high": drawn.quantile(0.975).item(),
    }


def markov_nats(x, meta):
    """(n, L) int64 -> exact nats per token, given the first, under the true language of data/markov."""
    P = torch.tensor(meta["transition"], dtype=torch.float64)
    return -P[x[:, :-1], x[:, 1:]].log().mean().item()


def seconds_per_sample(model, meta, cfg, n_steps, size, batch, repeats=3):
    """-> the median over repeats of the seconds that `batch` samples of `size` tokens take at once, over batch."""
    template, times = (
        speculative.empty_pages(model, meta, batch, size).to(model.wte.weight.device),
        [],
    )
    for i in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        speculative.draw_samples(
            model, template, cfg, n_steps, seeded(cfg.seed, i, device=template.device)
        ).cpu()
        times.append((time.perf_counter() - began) / batch)
    return sorted(times[1:])[repeats // 2]


# --------------------------------------------------------------------------------------------------
# drafters: how many of their tokens a target accepts, and how much faster they make it


class Rounds:
    """What speculate does, counted: give it as `watch`, start afresh for each text."""

    def __init__(self, gamma):
        self.tested = torch.zeros(gamma, dtype=torch.int64)  # drafts, by their position in a round
        self.accepted = torch.zeros(gamma, dtype=torch.int64)
        self.n_forwards = 0  # of the target
        self.n_tokens = 0  # new ones
        self.drafted = []  # of the present text: whether each new token was a draft

    def start(self, n_known):
        """A new text, of which n_known tokens are given."""
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
        self.n_tokens += len(new)
        self.drafted += [True] * n_accepted + [False] * (len(new) - n_accepted)
        self.length = len(x)


def acceptance(rounds):
    """
    -> alpha, accepted / (accepted + first rejections). What follows a rejection was never tested:
    counting it would make alpha too small.
    """
    return (rounds.accepted.sum() / rounds.tested.sum().clamp(min=1)).item()


def tokens_per_forward(rounds):
    return rounds.n_tokens / max(rounds.n_forwards, 1)


def predicted_speedup(alpha, c, gamma, verify=1.0):
    """
    Tokens per round over the round's cost in plain steps (Leviathan et al., theorem 3.8).

    c: what a draft costs. verify: what the target's forward pass over the gamma drafts costs: in
    theory one step, on a CPU it grows with the tokens.
    """
    if alpha == 1:
        tokens = gamma + 1
    else:
        tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)  # 1 + alpha + ... + alpha^gamma
    return tokens / (gamma * c + verify)


GAMMAS = (1, 2, 3, 4, 6, 8)  # that are tried


def median_seconds(f, *args, repeats=5):
    """-> seconds of f(*args), the median; a first call warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        f(*args)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


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
    cache = speculative.new_cache(target)
    target.hidden(x[None], cache)
    step = median_seconds(read_again, target, cache, x, 1)
    costs = {}
    for gamma in GAMMAS:
        known = x[: len(x) - gamma]
        draft = median_seconds(draft_again, drafter, known, gamma, settings, generator)
        verify = median_seconds(read_again, target, cache, x, gamma + 1)
        costs[gamma] = (draft / gamma / step, verify / step)
    return costs


def best_gamma(alpha, costs):
    """-> the gamma with the highest predicted speed, and that speed."""
    speeds = {gamma: predicted_speedup(alpha, c, gamma, v) for gamma, (c, v) in costs.items()}
    return max(speeds.items(), key=lambda pair: pair[1])


def choose_gamma(target, drafter, x, n_new, settings, generator):
    """x (T,) int64, known text -> the gamma that is fastest by what a short trial tells."""
    n_trial = min(64, n_new)
    if n_trial <= max(GAMMAS):
        return min(4, n_new)
    rounds = Rounds(max(GAMMAS))
    rounds.start(len(x))
    text = speculative.speculate(
        target,
        drafter,
        x,
        n_trial,
        gamma=max(GAMMAS),
        generator=generator,
        watch=rounds,
        **settings,
    )
    costs = measure_costs(target, drafter, text, settings, generator)
    return best_gamma(acceptance(rounds), costs)[0]


@torch.no_grad()
def overlap(target, drafter, text, n_known, settings, batch_size):
    """
    text (n, L) int64, written by the target after n_known tokens -> (n,): for each, the mean over
    its tokens of sum_x min(p, q), the probability that a draft is accepted.

    For networks and n-grams all positions at once; a drafter that only proposes is asked at 16, and
    counted where it proposes (nan: nowhere).
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
    """(n,) -> the mean of those that are known, half the width of its 95 % interval (Student's t)."""
    values = values[~values.isnan()]
    if len(values) < 3:
        return (values.mean().item() if len(values) else 0.0), math.nan
    t = 1.96 + 2.5 / (len(values) - 1)  # the quantile, to 2 % for n > 6
    return values.mean().item(), t * (values.std() / len(values) ** 0.5).item()


def race(target, drafter, x, n_new, gamma, settings, seed, rounds):
    """x (T,) -> how many times as fast the target writes n_new tokens with drafts as without."""
    generator = seeded(seed, device=x.device)
    began = time.perf_counter()
    speculative.generate(target, x[None], n_new, generator=generator, **settings).cpu()
    plain = time.perf_counter() - began

    generator = seeded(seed, device=x.device)
    rounds.start(len(x))
    began = time.perf_counter()
    speculative.speculate(
        target, drafter, x, n_new, gamma=gamma, generator=generator, watch=rounds, **settings
    )
    return plain / (time.perf_counter() - began)


def drafter_row(target, drafter, text, prompts, settings, seed, batch_size, n_races=24):
    """
    text (n, L) int64: what the target wrote after prompts (n, P) -> a dict: alpha on all texts, then
    costs, the best gamma, and speed and counts over n_races texts, one at a time.
    """
    n_new = text.size(1) - prompts.size(1)
    row = {}
    by_text = overlap(target, drafter, text, prompts.size(1), settings, batch_size)
    row["alpha"], row["alpha_error"] = mean_and_error(by_text)
    generator = seeded(seed, "costs", device=text.device)
    costs = measure_costs(target, drafter, text[0], settings, generator)
    gamma, predicted = best_gamma(row["alpha"], costs)
    c, verify = costs[gamma]
    row |= {"gamma": gamma, "predicted": predicted, "c": c, "verify": verify}

    rounds = Rounds(gamma)
    ratios = []
    for i, x in enumerate(prompts[:n_races]):
        ratios.append(race(target, drafter, x, n_new, gamma, settings, seed + i, rounds))
    row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(ratios))
    row["counted"] = acceptance(rounds)
    counts = zip(rounds.accepted.tolist(), rounds.tested.tolist(), strict=True)
    row["counted_at"] = [accepted / tested if tested else None for accepted, tested in counts]
    row["tokens_per_forward"] = tokens_per_forward(rounds)
    return row


def drafters_table(target, drafters, prompts, size, settings, seed, batch_size):
    """{name: drafter}, prompts (n, P) int64 -> a dict a drafter; their texts have `size` tokens."""
    generator = seeded(seed, "target", device=prompts.device)
    n_new = size - prompts.size(1)
    text = speculative.generate(target, prompts, n_new, generator=generator, **settings)
    rows = []
    for name, drafter in tqdm(drafters.items(), desc="drafters", leave=False):
        row = drafter_row(target, drafter, text, prompts, settings, seed, batch_size)
        rows.append({"drafter": name, **row})
    return rows
