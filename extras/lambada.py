"""
LAMBADA: does a model predict the last word of a passage, which needs more than its last sentence?
$ python -m extras.lambada --ckpt=mdlm-owt,gpt2 --passages=lambada   (after data/lambada/prepare.py)
Paperno et al. 2016, arXiv 1606.06031.

A word is right if each of its tokens is the most probable one; a diffusion model sees all of them
masked, in one forward pass. Perplexity is per word, not per token: exact for a GPT; for a diffusion
model the bound on the word's tokens.
"""

import itertools
import math
import os

import torch

import data
from configurator import UserError, check_at_least, configure
from drafters import load_model
from model import rank_in_row
from plumbing.checkpoints import paths_of
from plumbing.parallel import is_first_process, join_processes, leave_processes, map_over_ranks
from plumbing.randomness import seeded

# --------------------------------------------------------------------------------------------------
ckpt = "out/pydoc/ckpt.pt"  # several (a,b or out/x/round_*.pt) one after the other
passages = "lambada"  # a name under data/, or a folder that data/lambada/prepare.py wrote
draws = 4  # for a diffusion model: random sets of masked tokens in the Monte Carlo estimate
longest = 8  # longer words count for the accuracy only: a bound of m tokens reads 2^m - 1 texts
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
out = ""  # a .json file for the numbers; '': they are only printed
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def load_passages(folder):
    """
    What data/lambada/prepare.py wrote -> [(context ids, word ids), ...], meta. Raises UserError if
    it is missing or damaged.
    """
    folder, meta = data.load_meta(folder, "passages.jsonl")
    encode = data.encoder(meta)[0]
    try:
        lines = data.read_jsonl(os.path.join(folder, "passages.jsonl"))
        return [(encode(line["context"]), encode(line["word"])) for line in lines], meta
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/passages.jsonl is damaged ({str(error)[:80]}). Run data/lambada/prepare.py."
        ) from None


def log_p_of_last(model, x, m):
    """(S, n) int64 -> (S, m, V) log-probabilities at the last m positions."""
    return model.head(model.hidden(x)[:, -m:]).float().log_softmax(-1)


def causal_word(model, x, m):
    """(n,) int64 that ends with a word of m tokens -> whether it is predicted, its nats."""
    word = x[-m:]  # (m)
    log_p = log_p_of_last(model, x[None, :-1], m)[0]  # (m, V)
    predicted = (log_p.argmax(1) == word).all().item()
    return predicted, -log_p.gather(1, word[:, None]).sum().item()


def masked_word(model, x, sets):
    """
    x (n,) int64 ends with a word of m tokens; sets (S, m) bool: S sets of masked ones -> (S,) the
    mean over a set's tokens of -log p; (m,) bool: is each the most probable one, with the last set.
    """
    m = sets.size(1)
    word = x[-m:]
    means = []
    for masked in sets.split(32):  # not all of them at once in memory: (s, m) bool
        xt = x.repeat(len(masked), 1)  # (s, n)
        xt[:, -m:].masked_fill_(masked, model.mask_id)
        log_p = log_p_of_last(model, xt, m)  # (s, m, V)
        nats = -log_p.gather(2, word.expand(len(masked), -1)[..., None])[..., 0]  # (s, m)
        means.append((nats * masked).sum(1) / masked.sum(1))
    return torch.cat(means), log_p[-1].argmax(1) == word


def all_sets(m):
    """-> (2^m - 1, m) bool: every set of masked tokens but the empty one; the last one has all."""
    return torch.tensor(list(itertools.product((False, True), repeat=m))[1:])


def random_sets(m, n_draws, generator):
    """-> (n_draws, m) bool: a random number of tokens from 1 to m, then a random set of them."""
    n_masked = torch.randint(1, m + 1, (n_draws, 1), generator=generator)
    return rank_in_row(torch.rand(n_draws, m, generator=generator)) < n_masked


def diffusion_word(model, x, m, n_draws, generator):
    """
    (n,) int64 that ends with a word of m tokens -> whether it is predicted, its nats, and the same
    nats by Monte Carlo.

    The bound of model.nelbo on m tokens is a sum over l = 1 ... m of the mean over all sets of l
    tokens (there are comb(m, l)): it is computed exactly. It is also m times the mean over
    a random l and a random set, which is the estimate.
    """
    sets = all_sets(m)
    nats, predicted = masked_word(model, x, sets.to(x.device))
    n_alike = torch.tensor([math.comb(m, size) for size in sets.sum(1).tolist()])
    exact = (nats.cpu() / n_alike).sum().item()
    drawn = random_sets(m, n_draws, generator)
    estimate = m * masked_word(model, x, drawn.to(x.device))[0].mean().item()
    return predicted.all().item(), exact, estimate


def one_passage(numbered, model, n_draws, seed, longest):
    """(i, (context ids, word ids)) -> predicted, nats, nats by Monte Carlo; None: unknown."""
    i, (context, word) = numbered
    m = len(word)
    x = torch.tensor((context + word)[-model.config.block_size :], device=model.wte.weight.device)
    if model.config.causal:
        predicted, nats = causal_word(model, x, m)
        return predicted, nats if m <= longest else None, None
    if m > longest:
        every = torch.ones(1, m, dtype=torch.bool, device=x.device)
        return masked_word(model, x, every)[1].all().item(), None, None
    return diffusion_word(model, x, m, n_draws, seeded(seed, "lambada", i))


@torch.no_grad()
def lambada(model, passages, *, draws, seed, longest=8):
    """
    [(context ids, word ids), ...] -> accuracy; perplexity of the words of at most `longest` tokens,
    by Monte Carlo too. A passage whose word leaves no room for context is skipped.
    """
    fitting = [(c, word) for c, word in passages if len(word) < model.config.block_size]
    if not any(len(word) <= longest for _, word in fitting):
        raise UserError(
            f"No passage ends with a word of at most {longest} tokens that leaves room for its "
            "context."
        )
    rows = map_over_ranks(
        one_passage, list(enumerate(fitting)), "lambada", model, draws, seed, longest
    )
    known = [nats for _, nats, _ in rows if nats is not None]
    found = {
        "accuracy": sum(predicted for predicted, _, _ in rows) / len(rows),
        "passages": len(rows),
        "words_in_ppl": len(known),
        "ppl": math.exp(sum(known) / len(known)),
    }
    if not model.config.causal:
        drawn = [estimate for _, _, estimate in rows if estimate is not None]
        found["ppl_monte_carlo"] = math.exp(sum(drawn) / len(drawn))
    return found


def line_of(path, r):
    monte_carlo = f" (Monte Carlo {r['ppl_monte_carlo']:.2f})" if "ppl_monte_carlo" in r else ""
    return (
        f"{path}: LAMBADA accuracy {r['accuracy']:.1%} of {r['passages']} words, perplexity "
        f"{r['ppl']:.2f}{monte_carlo} per word, of {r['words_in_ppl']} words"
    )


def main(cfg):
    check_at_least(cfg, draws=1, longest=1)
    cfg.dtype = "float32"  # as all likelihoods that are reported
    device, note = join_processes(cfg)
    models = {path: load_model(path, device, cfg.attention) for path in paths_of(cfg.ckpt)}
    texts, meta = load_passages(cfg.passages)
    for path, (_, checkpoint) in models.items():
        if not data.same_vocabulary(meta, checkpoint["meta"]):
            raise UserError(f"The passages have another vocabulary than {path}. Prepare others.")
    report = {}
    for path, (model, _) in models.items():
        report[path] = lambada(model, texts, draws=cfg.draws, seed=cfg.seed, longest=cfg.longest)
    if is_first_process():
        for path, row in report.items():
            print(line_of(path, row))
        print(f"{note}, seed {cfg.seed}")
        if cfg.out:
            data.write_json(cfg.out, report)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
