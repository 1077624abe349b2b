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
from drafters import Diffusion, Lookup
from model import ar_loss, nelbo, probabilities, ranks
from plumbing.parallel import share_out
from plumbing.randomness import seeded
from plumbing.scores import but_repeated_ends, retokenized, rouge_2_f1


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
    values = torch.tensor(share_out(nats_of, range(len(batches)), "likelihood"))
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

    return torch.cat(share_out(nats_of, range(0, len(x), batch_size), "judging"))


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
    drawn = ranks(torch.rand(draws, m, generator=noise)) < n_masks
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

    rows = share_out(one, range(len(passages)), "lambada")
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


@torch.no_grad()
def overlap(target, drafter, text, prompt, cfg):
    """(n, L) int64 written by the target after `prompt` tokens -> (n) mean over its tokens of sum_x min(p, q).

    The chance that a draft is accepted, without the noise of drawing it. For diffusion and lookup: at 16 places.
    """
    if len(text) > cfg.batch_size:
        return torch.cat(
            [overlap(target, drafter, part, prompt, cfg) for part in text.split(cfg.batch_size)]
        )
    settings, size = (cfg.temperature, cfg.top_k, cfg.top_p), text.size(1)
    h, skip = target.hidden(text[:, :-1]), speculative.unseen(target, drafter)
    p = probabilities(
        target.head(h[:, prompt - 1 :]), *settings
    )  # (n, L - prompt, V), of the target's own tokens
    if isinstance(drafter, (Diffusion, Lookup)):
        noise, q = seeded(cfg.seed, "overlap", device=text.device), []
        places = torch.linspace(prompt, size - cfg.gamma, 16).long().unique()
        for n in places.to(text.device)[:, None].expand(-1, len(text)):
            seen = text[:, skip:].clone()
            q.append(
                speculative.propose(drafter, None, seen, n - skip, cfg.gamma, settings, noise)[1][
                    :, 0
                ]
            )
        p, q = p[:, places - prompt], torch.stack(q, 1)
    else:
        q = probabilities(drafter(text[:, skip:-1])[:, prompt - skip - 1 :], *settings)
    return torch.minimum(p, q).sum(-1).mean(1)


def mean_and_error(values):
    """(n) -> mean, half the width of its 95 % confidence interval by Student's t."""
    t = 1.96 + 2.5 / (len(values) - 1)  # the quantile, to 2 % for n > 6
    return values.mean().item(), t * (values.std() / len(values) ** 0.5).item()


def rouge_2(texts, P, references, meta):
    """{who: (n, L) int64, the first P a prompt} -> {who: (mean ROUGE-2 F1 against references, its standard error)}."""
    decode, scores = data.encoder(meta)[1], {}
    for who, x in texts.items():
        ended = (x[:, P:] == meta.get("eot", -1)).cumsum(1) > 0
        written = [decode(row[~end].tolist()) for row, end in zip(x[:, P:], ended, strict=True)]
        scores[who] = rouge_2_f1(references, written)
    return scores


def drafters_table(target, drafters, prompts, size, cfg):
    """(n, P) int64 prompts -> a dict a drafter: acceptance on n texts of `size` tokens, speed one text at a time; and
    {who: (n, size) int64}, the texts that the target wrote, alone and with each of them.
    """
    settings, n_new = (cfg.temperature, cfg.top_k, cfg.top_p), size - prompts.size(1)
    device, rows = prompts.device, []
    text = speculative.generate(
        target, prompts, n_new, *settings, seeded(cfg.seed, "target", device=device)
    )
    texts = {"the target alone": text}
    for path, drafter in tqdm(drafters.items(), desc="drafters", leave=False):
        row = {"drafter": path}
        row["alpha"], row["alpha_error"] = mean_and_error(
            overlap(target, drafter, text, prompts.size(1), cfg)
        )
        noise = seeded(cfg.seed, "speculate", device=device)
        texts[path], counts = speculative.speculate(
            target, drafter, prompts, n_new, cfg.gamma, *settings, noise
        )
        row["counted"] = speculative.acceptance(counts)
        places = zip(counts.accepted.tolist(), counts.tested.tolist(), strict=True)
        row["counted_at"] = [a / t if t else None for a, t in places]
        row["tokens_per_call"] = speculative.tokens_per_call(counts)
        measured = speculative.time_gammas(target, drafter, prompts[:1], n_new, settings, noise)
        gamma, predicted = speculative.best_gamma(drafter, counts, row["alpha"], measured)
        c, call = measured[gamma]
        row |= {"gamma": gamma, "predicted": predicted, "c": c, "call": call}
        ratios = []
        for i, one in enumerate(
            prompts[:24].split(1)
        ):  # the same prompt with and without, one after the other
            began = time.perf_counter()
            speculative.generate(
                target, one, n_new, *settings, seeded(cfg.seed, i, device=device)
            ).cpu()
            plain = time.perf_counter()
            speculative.speculate(
                target, drafter, one, n_new, gamma, *settings, seeded(cfg.seed, i, device=device)
            )
            ratios.append((plain - began) / (time.perf_counter() - plain))
        row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(ratios))
        rows.append(row)
    return rows, texts
