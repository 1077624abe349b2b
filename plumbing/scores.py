"""
Scores that other papers report, by their own definitions: self-BLEU, MAUVE, ROUGE-2; and which tokens a judge counts.
"""

import collections
import math

import torch
from torch.nn.utils.rnn import pad_sequence

from plumbing.parallel import map_over_ranks


def self_bleu(rows, longest=4):
    """Lists of tokens, all of one length -> the mean BLEU of each of them against all others, without smoothing.

    An n-gram's count is clipped at its count in that other row which has most of it: one of the two highest counts.
    """
    log_precision = [0.0] * len(rows)
    for n in range(1, longest + 1):
        # the n-grams of a row: n copies of it side by side, each begun one token later
        counts = [
            collections.Counter(zip(*(row[i:] for i in range(n)), strict=False)) for row in rows
        ]
        best = {}  # n-gram -> its highest count in a row, how many rows have that, the next count
        for c in counts:
            for gram, k in c.items():
                top, rows_with_it, second = best.get(gram, (0, 0, 0))
                if k > top:
                    best[gram] = k, 1, top
                elif k == top:
                    best[gram] = top, rows_with_it + 1, second
                else:
                    best[gram] = top, rows_with_it, max(second, k)
        for i, c in enumerate(counts):
            hits = 0
            for gram, k in c.items():
                top, rows_with_it, second = best[gram]
                hits += min(k, second if k == top and rows_with_it == 1 else top)
            log_precision[i] += math.log(hits / c.total()) / longest if hits else -math.inf
    return sum(map(math.exp, log_precision)) / len(rows)


@torch.no_grad()
def judge_features(judge, x, batch_size):
    """(n, L) int64 -> (n, C) on the CPU: the judge's last hidden state, as MAUVE takes it from GPT-2."""
    x = x[:, -judge.config.block_size :]

    def states_of(i):
        return judge.hidden(x[i : i + batch_size].to(judge.wte.weight.device))[:, -1].cpu()

    parts = map_over_ranks(states_of, range(0, len(x), batch_size), "mauve")
    return torch.cat(parts).float().numpy()


def mauve_score(real, written, seed):
    """(n, C), (n, C) features -> MAUVE by the package of its authors."""
    import mauve

    return float(
        mauve.compute_mauve(p_features=real, q_features=written, seed=seed, verbose=False).mauve
    )


def rouge_2_f1(references, texts):
    """-> the mean F1 of ROUGE-2 of the texts against their references, its standard error."""
    from rouge_score import rouge_scorer

    scorer, pairs = (
        rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True),
        zip(references, texts, strict=True),
    )
    f1 = torch.tensor(
        [scorer.score(reference, text)["rouge2"].fmeasure for reference, text in pairs]
    )
    return f1.mean().item(), (f1.std() / len(f1) ** 0.5).item()


def but_repeated_ends(x, counted, meta):
    """(n, L) int64, (n, L) bool -> (n, L) bool: those counted, but no end-of-text after a row's first."""
    end = x == meta.get("eot", -1)
    return counted & ~(end & (end.cumsum(1) > 1))


def retokenized(x, prefix, decode, encode):
    """(n, L) int64 -> (n, M) int64, padded at the end, (n, M) bool: which tokens count. End-of-text stays one token."""
    texts = [[encode(decode(part)) for part in (row[:prefix], row[prefix:])] for row in x.tolist()]
    y = [torch.tensor(known + new) for known, new in texts]
    counted = [torch.arange(len(known) + len(new)) >= max(len(known), 1) for known, new in texts]
    return pad_sequence(y, batch_first=True), pad_sequence(counted, batch_first=True)


def characters(x, prefix, decode):
    """(n, L) int64 -> how many characters the texts have after the prefix."""
    return sum(len(decode(row)) for row in x[:, prefix:].tolist())
