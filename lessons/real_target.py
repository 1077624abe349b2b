"""
How much faster do drafters make a real instruct model? Ten prompts, where text is copied and where
it is not, beside transformers' own generate and its prompt lookup.
$ python lessons/real_target.py --draft=lookup            (20 minutes on 2 cores; chapter 6)
"""

import os
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import check_at_least, configure
from data.tokenizers import import_transformers
from drafters import load_drafter, load_model
from metrics import Rounds, mean_and_error, tokens_per_forward
from plumbing.checkpoints import paths_of
from plumbing.hardware import prepare_for_sampling
from plumbing.randomness import seeded
from plumbing.report import table
from speculative import generate, speculate

# --------------------------------------------------------------------------------------------------
ckpt = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"  # an instruct model, hf:NAME_OR_FOLDER
draft = "lookup"  # drafters, side by side: lookup, ngram.txt, checkpoints, hf:NAME
gamma = 4  # tokens proposed at a time
n_new = 96  # tokens of an answer
temperature = 0.0  # 0: always the most probable token
seeds = 1  # answers to each prompt; at temperature 0 they are the same
n_prompts = 10
theirs = True  # also transformers' own generate, plain and with its prompt lookup
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

PASSAGE = (
    "The lighthouse at Gull Point was built in 1871 by the engineer Anna Marsh. It is 38 metres "
    "high and stands on a rock that the sea covers at high tide. Until 1962 two keepers lived in "
    "it for six weeks at a time, and a boat brought them bread, oil and letters. Since then its "
    "lamp has been automatic. In 2004 the village bought the lighthouse for one pound, and every "
    "summer some four thousand visitors climb its 199 steps."
)
LETTER = (
    "dear mr hall, we recieved your order of three chairs and a table on monday. the chairs will "
    "be send on wednesday, the table a week later, becaus the workshop is waiting for oak. please "
    "let us know if you want to wait or if we shuld send the money back. yours, the workshop"
)
PROMPTS = [
    ("copy", f"Repeat this text word for word: {PASSAGE}"),
    ("copy", f"Repeat this letter exactly, then say who wrote it: {LETTER}"),
    ("edit", f"Correct the spelling and the capital letters: {LETTER}"),
    ("edit", f"Write this again with the year 1871 changed to 1881: {PASSAGE}"),
    ("question", f"{PASSAGE} Who built the lighthouse, when, and how high is it?"),
    ("question", f"{PASSAGE} How did the keepers live until 1962?"),
    ("summary", f"Summarize in two sentences: {PASSAGE}"),
    ("summary", f"What does the workshop want to know? {LETTER}"),
    ("prose", "Tell a short story about a girl who finds a map in an old book."),
    ("prose", "Explain why leaves turn red in autumn."),
]


def timed(f):
    """-> f(), seconds."""
    began = time.perf_counter()
    result = f()
    return result, time.perf_counter() - began


def ours(target, drafter, x, seed, cfg):
    """x (T,) -> an answer (n,), seconds, tokens per forward pass. drafter None: plain decoding."""
    options = {"generator": seeded(seed), "temperature": cfg.temperature}
    if drafter is None:
        text, seconds = timed(lambda: generate(target, x[None], cfg.n_new, **options)[0])
        return text[len(x) :], seconds, 1.0
    rounds = Rounds(cfg.gamma)
    rounds.start(len(x))
    options |= {"gamma": cfg.gamma, "watch": rounds}
    text, seconds = timed(lambda: speculate(target, drafter, x, cfg.n_new, **options))
    return text[len(x) :], seconds, tokens_per_forward(rounds)


@torch.no_grad()
def of_transformers(model, lookup, x, seed, cfg):
    """As ours, by generate of transformers. lookup: with its prompt lookup."""
    torch.manual_seed(seed)
    options = {"do_sample": False}
    if cfg.temperature:
        options = {"do_sample": True, "temperature": cfg.temperature, "top_k": 0, "top_p": 1.0}
    if lookup:
        options |= {"prompt_lookup_num_tokens": cfg.gamma, "max_matching_ngram_size": 3}
    calls = []
    counter = model.register_forward_hook(lambda *args: calls.append(1))
    text, seconds = timed(
        lambda: model.generate(
            x[None],
            attention_mask=torch.ones_like(x[None]),
            max_new_tokens=cfg.n_new,
            eos_token_id=-1,  # all answers are equally long
            pad_token_id=0,
            **options,
        )[0]
    )
    counter.remove()
    return text[len(x) :], seconds, cfg.n_new / len(calls)


def methods_of(cfg):
    """-> {name: f(x (T,), seed) -> answer, seconds, tokens per forward pass}, and the meta."""
    target, checkpoint = load_model(cfg.ckpt)
    prepare_for_sampling(target)
    meta = checkpoint["meta"]
    methods = {"plain": lambda x, seed: ours(target, None, x, seed, cfg)}
    for path in paths_of(cfg.draft):
        drafter = load_drafter(path, target, meta)
        methods[path] = lambda x, seed, drafter=drafter: ours(target, drafter, x, seed, cfg)
    if cfg.theirs:
        package = import_transformers()
        name = cfg.ckpt.removeprefix("hf:").partition("@")[0]
        model = package.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        methods["transformers"] = lambda x, seed: of_transformers(model, False, x, seed, cfg)
        methods["its lookup"] = lambda x, seed: of_transformers(model, True, x, seed, cfg)
    return methods, meta


def main(cfg):
    check_at_least(cfg, gamma=1, n_new=2, temperature=0, seeds=1, n_prompts=1)
    methods, meta = methods_of(cfg)
    names = list(methods)
    rows = []
    ratios = {name: [] for name in names}
    n_equal = 0
    for kind, text in PROMPTS[: cfg.n_prompts]:
        x = torch.tensor(data.chat_prompt(meta, text))
        cells = {name: [] for name in names}
        for seed in range(cfg.seeds):
            found = {name: methods[name](x, seed) for name in names}
            _, plain, _ = found["plain"]
            n_equal += all(torch.equal(found[name][0], found["plain"][0]) for name in names)
            for name, (_, seconds, per_forward) in found.items():
                ratios[name].append(plain / seconds)
                cells[name].append((plain / seconds, per_forward))
        row = [kind, f"{1e3 * plain / cfg.n_new:.0f}"]
        for name in names[1:]:
            speed, per_forward = torch.tensor(cells[name]).mean(0).tolist()
            row.append(f"{speed:.2f} ({per_forward:.2f})")
        rows.append(row)
        print(kind, *row[1:], flush=True)
    last = ["all", ""]
    for name in names[1:]:
        mean, error = mean_and_error(torch.tensor(ratios[name]))
        last.append(f"{mean:.2f}" + (f" +- {error:.2f}" if error is not None else ""))
    print("\nspeed over plain decoding (tokens per forward pass of the target)")
    print("\n".join(table(["prompt", "plain ms", *names[1:]], [*rows, last])))
    if not cfg.temperature:
        print(f"{n_equal} of {len(ratios['plain'])} answers are the same by every method")


if __name__ == "__main__":
    main(cfg)
