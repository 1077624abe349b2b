"""
How far from the truth? For models of a language whose distribution is known exactly (data/markov):
the likelihood beside the entropy rate, and the perplexity of their samples under the true language.
$ python data/markov/prepare.py && python train.py config/train_markov.py
$ python -m extras.markov --ckpt=out/markov/ckpt.pt --steps=1,4,16,64

A bound below the truth would be a mistake in the measuring: no model beats the entropy of the
language that made the text.
"""

import math

import torch

import data
import metrics
from configurator import UserError, check_at_least, configure
from eval import (
    check_sampling,
    common_meta,
    draw_texts,
    likelihoods,
    load_corpus,
    load_files,
    load_models,
    real_texts,
    row_of,
    text_length,
)
from plumbing.parallel import is_first_process, join_processes, leave_processes
from plumbing.report import likelihood_line, table

# --------------------------------------------------------------------------------------------------
ckpt = "out/markov/ckpt.pt"  # several (a,b or out/x/round_*.pt) side by side; '': only samples
samples = ""  # files of saved samples (a.jsonl,b.jsonl), evaluated beside those of ckpt
dataset = ""  # a name under data/, or a folder; '': what the checkpoint was trained on
eval_blocks = 512  # for the likelihood: validation blocks at most, spread evenly over the text
draws = 4  # for the likelihood: noise draws per block
num_samples = 64  # of each model
length = 0  # tokens, with the prompt; 0: the context; longer is allowed
steps = [1, 4, 16, 64]  # diffusion sampling steps, one row of the table each
sampler = ""  # '' (own, or spread) | 'spread' | 'ancestral' | 'first_hitting' | 'confidence'
temperature = 1.0  # 0: always the most probable token
cooling = 1.0  # diffusion: the temperature of the last step over that of the first
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
batch_size = 16  # sequences per forward pass, on each process
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
compile = "off"  # 'off' | 'on': torch.compile, in half a minute; a GPT is 1.2 to 1.4 times as fast
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
out = ""  # a .json file for the numbers; '': they are only printed
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def markov_nats(x, meta):
    """(n, L) int64 -> exact nats per token, given the first, under the language of meta."""
    P = torch.tensor(meta["transition"], dtype=torch.float64)  # (V, V)
    return -P[x[:, :-1], x[:, 1:]].log().mean().item()


def true_nats(meta, T, causal):
    """-> the entropy per token of a block of T whose first token a GPT does not predict."""
    if causal:
        return meta["entropy_rate"]
    return (meta["stationary_entropy"] + (T - 1) * meta["entropy_rate"]) / T


def evaluate(cfg):
    """-> {"likelihood": {path: ...}, "rows": [...], and what they were measured on}."""
    check_sampling(cfg)
    check_at_least(cfg, eval_blocks=1, draws=1)
    device, note = join_processes(cfg)
    models = load_models(cfg, device)
    files = load_files(cfg)
    meta = common_meta(models, files)
    corpus = load_corpus(cfg, models, files, meta)
    if "transition" not in corpus.meta:
        raise UserError("The true distribution of this dataset is not known: use data/markov.")
    size = text_length(cfg, models, files)

    found = likelihoods(models, corpus, cfg)
    for path, (model, _) in models.items():
        config = model.config
        found[path]["truth"] = true_nats(corpus.meta, config.block_size, config.causal)

    drawn = draw_texts(models, size, cfg, [cfg.temperature], [cfg.cooling], [cfg.top_p])
    rows = []
    for x, about in [*drawn, *files, real_texts(corpus, size, files, cfg)]:
        prefix = about["prefix"]  # real text, which is not the model's
        entropy = metrics.entropies(x[:, prefix:]).mean().item()
        row = row_of(about) | {"texts": len(x), "entropy": entropy}
        # the first token that is scored follows the prefix's last
        nats = markov_nats(x[:, max(prefix - 1, 0) :], corpus.meta)
        rows.append(row | {"true_ppl": math.exp(nats)})
    return {"hardware": note, "seed": cfg.seed, "likelihood": found, "rows": rows}


def main(cfg):
    report = evaluate(cfg)
    if is_first_process():
        for path, row in report["likelihood"].items():
            print(f"{likelihood_line(path, row)}; the true entropy is {row['truth']:.4f}")
        names = ["model", "steps", "texts", "true_ppl", "entropy"]
        print("\n".join(table(names, [[row[k] for k in names] for row in report["rows"]])))
        print(f"{report['hardware']}, seed {report['seed']}")
        if cfg.out:
            data.write_json(cfg.out, report)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
