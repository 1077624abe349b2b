"""
MAUVE: how close the distribution of a model's samples is to that of real text; 1 is best.
$ python -m extras.mauve --samples=out/c.jsonl --ckpt= --evaluator=gpt2-large   (saved samples)
$ python -m extras.mauve --ckpt=out/pydoc/ckpt.pt --evaluator=out/pydoc_ar/ckpt.pt --steps=16,64
Pillutla et al. 2021, arXiv 2102.01454, by the package of its authors: pip install mauve-text

The features of a text are the evaluator's last hidden state at its last token. With a small
evaluator and a hundred texts it moves by up to 0.07 from seed to seed: the papers take gpt2-large.
"""

import importlib.util

import torch

import data
from configurator import UserError, configure
from eval import (
    check_sampling,
    common_meta,
    draw_texts,
    load_corpus,
    load_evaluator,
    load_files,
    load_models,
    real_texts,
    row_of,
    text_length,
)
from plumbing.parallel import is_first_process, join_processes, leave_processes, map_over_ranks
from plumbing.report import table

# --------------------------------------------------------------------------------------------------
ckpt = "out/pydoc/ckpt.pt"  # several (a,b or out/x/round_*.pt) side by side; '': only samples
samples = ""  # files of saved samples (a.jsonl,b.jsonl), evaluated beside those of ckpt
evaluator = ""  # an autoregressive checkpoint, also gpt2-large or hf:NAME, whose states are used
dataset = ""  # a name under data/, or a folder; '': what the checkpoint was trained on
num_samples = 256  # of each model, and texts of the dataset
length = 0  # tokens, with the prompt; 0: the context; longer is allowed
steps = [16]  # diffusion sampling steps, one row of the table each
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


def last_states(x, evaluator):
    """(B, L) int64 -> (B, C) on the CPU: the last hidden state at the last token."""
    return evaluator.hidden(x.to(evaluator.wte.weight.device))[:, -1].float().cpu()


@torch.no_grad()
def features(x, evaluator, batch_size):
    """(n, L) int64 -> (n, C), of the last tokens that fit the evaluator's context."""
    x = x[:, -evaluator.config.block_size :]
    return torch.cat(map_over_ranks(last_states, x.split(batch_size), "mauve", evaluator))


def mauve_score(real, written, seed):
    """(n, C), (n, C) features -> MAUVE."""
    import mauve

    found = mauve.compute_mauve(
        p_features=real.numpy(), q_features=written.numpy(), seed=seed, verbose=False
    )
    return float(found.mauve)


def evaluate(cfg):
    """-> {"rows": [...], and what they were measured on}."""
    if not importlib.util.find_spec("mauve"):
        raise UserError("MAUVE needs a package. Install it with: pip install mauve-text")
    check_sampling(cfg)
    device, note = join_processes(cfg)
    models = load_models(cfg, device)
    files = load_files(cfg)
    meta = common_meta(models, files)
    corpus = load_corpus(cfg, models, files, meta)
    evaluator = load_evaluator(cfg, meta, device)
    size = text_length(cfg, models, files, evaluator)

    real, _ = real_texts(corpus, size, files, cfg)
    real_features = features(real, evaluator, cfg.batch_size)
    drawn = draw_texts(models, size, cfg, [cfg.temperature], [cfg.cooling], [cfg.top_p])
    rows = []
    for x, about in [*drawn, *files]:
        written = features(x, evaluator, cfg.batch_size)
        row = row_of(about) | {"texts": len(x)}
        rows.append(row | {"mauve": mauve_score(real_features, written, cfg.seed)})
    return {"hardware": note, "seed": cfg.seed, "real_texts": len(real), "rows": rows}


def main(cfg):
    report = evaluate(cfg)
    if is_first_process():
        names = ["model", "steps", "temperature", "cooling", "texts", "mauve"]
        print("\n".join(table(names, [[row[k] for k in names] for row in report["rows"]])))
        print(f"beside {report['real_texts']} real texts, seed {report['seed']}")
        if cfg.out:
            data.write_json(cfg.out, report)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
