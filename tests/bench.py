"""
How fast and how small, as ratios measured in one run: ours beside its reference implementation and
beside the floor.
$ python tests/bench.py                                        (under 10 minutes on 2 CPU cores)
$ python tests/bench.py --rows=diffusion_B,decode_A                             (some of its rows)
$ python tests/bench.py --device=cuda                              (under 10 minutes on one GPU)
$ python tests/bench.py --rows=memory                     (what published sizes need: arithmetic)

reference   tests/reference.py, written as the papers' own code computes it: dense B x T x V logits
            and losses, a draw at every position of every sampling step (with MDLM's cache), no KV
            cache, attention written out
floor       the operations (matrix products only) over the rate of a large product in training's
            number format, same run; for cached decoding the bytes of the weights over the rate of
            a matrix-vector product

A is 6 layers x 384, V 65, batch 16; B is 4 x 256, V 50304, batch 8; 256 tokens. Every CPU
measurement is a process of its own, so that peak memory (resident, of the whole process) is its
own.
"""

import contextlib
import copy
import functools
import gc
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import numpy as np
import reference
import torch

import distill
import loop
import train
from configurator import UserError, choose, configure, read_config
from drafters import Lookup, NGram
from metrics import Rounds, acceptance
from model import GPT, GPTConfig, ar_loss, diffusion_loss, masked_nll, unmask
from plumbing.hardware import (
    compile_trunk,
    dtype_of,
    pick_device,
    store_for_decoding,
    why_not_compile,
)
from plumbing.randomness import seeded
from plumbing.training import make_scaler
from speculative import Network, generate, speculate

# --------------------------------------------------------------------------------------------------
rows = "all"  # some of those that --rows=? prints, by name
device = "cpu"  # 'cpu' (beside the reference) | 'cuda' (GPT-2 small)
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
tflops = 66.0  # for memory's times: what one GPU is assumed to reach, as 40 % of an RTX 4090's 165
repeats = 7  # training steps measured; the median counts
toy = False  # sizes of a second, to see that it runs
profile = False  # say where the time of our training steps goes
who = "both"  # 'both' | 'ours' | 'reference': which of them this process measures
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

ROWS = {
    "ar_A": "a step of training a GPT on characters",
    "ar_B": "the same with GPT-2's vocabulary",
    "diffusion_A": "a step of training a diffusion model on characters",
    "diffusion_B": "the same with GPT-2's vocabulary: the head runs on masked positions",
    "sdtt_A": "a step of distillation on characters",
    "sdtt_B": "the same with GPT-2's vocabulary: hidden states stand for log-probabilities",
    "sample16_A": "4 texts of 256 characters in 16 steps",
    "sample64_A": "in 64 steps",
    "sample1024_A": "in more steps than tokens: steps that unmask nothing cost nothing",
    "sample16_B": "4 texts of 256 of GPT-2's tokens in 16 steps: one draw for each token",
    "decode_A": "a token of a GPT with its KV cache, one text at a time",
    "decode_B": "the same with GPT-2's vocabulary",
    "compiled_A": "decode_A with sample.py's --compile=on",
    "compiled_B": "decode_B with it",
    "speculate_A": "decode_A with 4 drafts of one layer; its reference has no cache",
    "speculate_B": "decode_B with them",
    "lookup_copied": "A's greedy text, which repeats itself, with lookup; reference: no drafts",
    "lookup_prose": "B's text at temperature 1, which does not",
    "ngram_copied": "A's greedy text with trigrams of the target's own texts",
    "ngram_prose": "B's text at temperature 1 with them",
    "counting": "the trigrams of a million tokens, counted",
    "memory": "what the published sizes need on 1, 8 and 64 GPUs",
}
SHAPES = {  # layers, width, V, batch size, length
    "A": (6, 384, 65, 16, 256),
    "B": (4, 256, 50304, 8, 256),
    "small": (12, 768, 50257, 16, 1024),  # GPT-2 small, for a GPU
}
if cfg.toy:
    SHAPES = {"A": (1, 64, 65, 2, 32), "B": (1, 64, 500, 2, 32), "small": (1, 64, 500, 2, 32)}


def wait():
    if cfg.device == "cuda":
        torch.cuda.synchronize()


def seconds(f, n, warm=2):
    """Median time of n calls after some to warm up."""
    times = []
    for _ in range(n + warm):
        began = time.perf_counter()
        f()
        wait()
        times.append(time.perf_counter() - began)
    return sorted(times[warm:])[n // 2]


@functools.cache
def matmul_rate():
    """
    -> operations per second of a product of the size that training makes, in the number format
    that it uses.
    """
    device, autocast, _ = pick_device(cfg.device, cfg.dtype)
    n = 8192 if cfg.device == "cuda" else 4096
    a = torch.ones((n, 1024), dtype=dtype_of(autocast), device=device)
    b = torch.ones((1024, 4096), dtype=dtype_of(autocast), device=device)
    return 2 * n * 1024 * 4096 / seconds(lambda: a @ b, 3 if cfg.toy else 9)


@functools.cache
def vector_rate():
    """-> bytes per second of a float32 matrix-vector product."""
    w = torch.randn(4096, 4096)
    x = torch.randn(1, 4096)
    return w.numel() * 4 / seconds(lambda: torch.nn.functional.linear(x, w), 9)


def make(name, causal, attention="sdpa", layers=0, device="cpu"):
    """
    -> a model of that shape (or with so many layers), and (B, T) random tokens, for a causal one
    (B, T + 1).
    """
    L, C, V, B, T = SHAPES[name]
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=T,
        vocab_size=V,
        n_layer=layers or L,
        n_head=C // 64,
        n_embd=C,
        causal=causal,
        attention=attention,
    )
    tokens = torch.randint(V, (B, T + causal), generator=seeded(1))
    return GPT(config).to(device), tokens.to(device)


def of_a_token(L, C, V, T, masked):
    """
    Multiply-adds x 2 of a forward pass: trunk and attention on every token, the head on a fraction
    `masked` of them.
    """
    return 2 * 12 * L * C * C + 4 * L * T * C + masked * 2 * V * C


def operations(name, masked):
    """Of one training step."""
    L, C, V, B, T = SHAPES[name]
    return 3 * of_a_token(L, C, V, T, masked) * B * T  # the backward pass takes twice the forward


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def bytes_of(model):
    return sum(4 * p.numel() for p in model.parameters())


# --------------------------------------------------------------------------------------------------
# one row on a CPU


def our_loss(work, model, x0, numbers):
    """-> a function without arguments: the loss of a step. numbers: seeds, one for each step."""

    def generator():
        return seeded(next(numbers), device=x0.device)

    if work == "sdtt":
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        return lambda: distill.sdtt_loss(model, x0, generator(), teacher, 1 / 1024, "ancestral")
    if work == "ar":
        return lambda: ar_loss(model, x0)
    return lambda: diffusion_loss(model, x0, generator())


def reference_loss(work, model, x0, numbers):
    """As our_loss, the literal one."""
    if work == "sdtt":
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        dt = 1 / 1024
        return lambda: reference.sdtt_loss(model, x0, seeded(next(numbers)), teacher, dt)
    if work == "ar":
        return lambda: reference.ar_loss(model, x0)

    def loss():
        generator = seeded(next(numbers))
        t = torch.rand(x0.size(0), 1, generator=generator) * 0.999 + 0.001
        masked = torch.rand(x0.shape, generator=generator) < t
        return reference.diffusion_loss(model, x0, x0.masked_fill(masked, model.mask_id), t)

    return loss


def stepper(model, loss, autocast):
    """-> a training step as loop.fit makes it."""
    optimizer = loop.make_optimizer(model, train.cfg)
    scaler = make_scaler(model.wte.weight.device, autocast)

    def step():
        with autocast:
            value = loss()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def training(work, name, who):
    """-> ms a step and, for ours, where it goes."""
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    model, x0 = make(name, work == "ar")
    make_loss = our_loss if who == "ours" else reference_loss
    step = stepper(model, make_loss(work, model, x0, itertools.count()), autocast)
    result = {"ms": 1e3 * seconds(step, cfg.repeats), "peak_mb": peak_mb()}
    flops = operations(name, 1.0 if work == "ar" else 0.5)
    if work == "sdtt":
        # the teacher's forward pass, again where its first step unmasks something, its head once
        again = 1 - (1 - 1 / 1024) ** x0.size(1)
        flops += (operations(name, 0.5) + again * operations(name, 0.0)) / 3
    result["floor_ms"] = 1e3 * flops / matmul_rate()
    if cfg.profile and who == "ours":
        with torch.profiler.profile() as p:
            step()
        result["goes"] = where_it_goes(p)
    return result


GROUPS = {
    "products": ("mm", "bmm", "addmm", "attention"),
    "softmax, norm": ("softmax", "layer_norm", "logsumexp"),
    "copies, casts": ("copy_", "cat", "fill_", "zero_"),
    "optimizer": ("adam", "vector_norm"),
}
REST = "elementwise and rest"


def group_of(operation):
    for group, names in GROUPS.items():
        if any(name in operation for name in names):
            return group
    return REST


def where_it_goes(profile):
    """-> "products 45 %, ...": the fraction of each kind in the time spent inside operations."""
    times = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in profile.key_averages():
        times[group_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return ", ".join(f"{group} {100 * t / total:.0f} %" for group, t in times.items())


def sampling(steps, name, who):
    """4 texts, of which nothing is known."""
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    model, _ = make(name, False)
    model.eval()
    L, C, V, _, T = SHAPES[name]
    xt = torch.full((4, T), model.mask_id)
    fill = unmask if who == "ours" else reference.ancestral_sampler
    with autocast, torch.no_grad():
        f = functools.partial(fill, model, xt, steps)
        ms = 1e3 * seconds(lambda: f(generator=seeded(0)), 1, warm=who == "ours")
    # forward passes of a row; the reference may need more, never fewer
    passes = steps * (1 - (1 - 1 / steps) ** T)
    flops = of_a_token(L, C, V, T, 0.0) * 4 * T * passes + 2 * V * C * 4 * T
    return {"ms": ms, "floor_ms": 1e3 * flops / matmul_rate(), "peak_mb": peak_mb()}


def decoding(name, who, compiled=False):
    """A whole context at batch 1 in float32, with our KV cache or without -> ms per token."""
    device, *_ = pick_device(cfg.device, cfg.dtype)
    model, x0 = make(name, True)
    model.eval()
    if who == "ours":
        store_for_decoding(model)  # as sample.py does
    if compiled and who == "ours" and not cfg.toy:  # half a minute
        compile_trunk(model, device)
    start = torch.zeros(1, 1, dtype=torch.long)
    n_new = x0.size(1) - 2
    write = generate if who == "ours" else reference.generate
    f = functools.partial(write, model, start, n_new)
    n = 3 if who == "ours" else 1
    ms = 1e3 * seconds(lambda: f(generator=seeded(0)), n, warm=who == "ours") / n_new
    return {"ms": ms, "floor_ms": 1e3 * bytes_of(model) / vector_rate(), "peak_mb": peak_mb()}


@torch.no_grad()
def speculate_uncached(target, small, x, n_new, gamma, generator):
    """(T,) -> (T + n_new,): Leviathan et al.'s Algorithm 1; all tokens are read in each round."""
    end = len(x) + n_new
    while len(x) < end:
        n = min(gamma, end - len(x) - 1)
        drafted = reference.generate(small, x[None], n, generator)[0]
        p = target(drafted[None])[0, len(x) - 1 :].softmax(-1)  # (n + 1, V)
        q = small(drafted[None])[0, len(x) - 1 : -1].softmax(-1)  # (n, V)
        r = torch.rand(n, generator=generator).tolist()
        pick = functools.partial(reference.categorical, generator=generator)
        drafts = drafted[len(x) :].tolist()
        new = reference.speculative_step(drafts, p, q, r, lambda p, pick=pick: int(pick(p)))
        x = torch.cat([x, torch.tensor(new)])
    return x


def speculation(name, who, gamma=4):
    """
    As decoding, with a drafter of one layer that has not learned anything either: most drafts are
    accepted. floor: a round reads the target once and the drafter gamma times.
    """
    pick_device(cfg.device, cfg.dtype)
    target, x0 = make(name, True)
    small, _ = make(name, True, layers=1)
    target.eval()
    small.eval()
    if who == "ours":
        store_for_decoding(target)
        store_for_decoding(small)
    start = torch.zeros(1, dtype=torch.long)
    n_new = x0.size(1) - 2
    rounds = Rounds(gamma)

    def write():
        if who == "reference":
            return speculate_uncached(target, small, start, n_new, gamma, seeded(0))
        rounds.start(1)
        options = {"gamma": gamma, "generator": seeded(0), "watch": rounds}
        return speculate(target, Network(small), start, n_new, **options)

    n = 3 if who == "ours" else 1
    ms = 1e3 * seconds(write, n, warm=who == "ours") / n_new
    a_round = (bytes_of(target) + gamma * bytes_of(small)) / vector_rate()
    floor = a_round * rounds.n_forwards / max(rounds.n_tokens, 1)
    return {"ms": ms, "floor_ms": 1e3 * floor, "peak_mb": peak_mb()}


def sharp_target(name):
    """
    -> a GPT of that shape with weights 5 times as large, so that it is far from uniform, and 40 of
    its texts. The greedy text of A soon repeats itself, B at temperature 1 has nothing to copy.
    """
    target, x0 = make(name, True)
    for p in target.eval().parameters():
        if p.dim() == 2:
            p.data.mul_(5)
    generator = seeded(1)
    starts = torch.randint(target.config.vocab_size, (40, 1), generator=generator)
    return target, generate(target, starts, x0.size(1) - 2, generator=generator)


@torch.no_grad()
def drafting(kind, text, who, gamma=4):
    """
    kind 'lookup' | 'ngram', text 'copied' | 'prose' -> as decoding. The reference decodes the same
    target without drafts, with the same KV cache.
    """
    pick_device(cfg.device, cfg.dtype)
    target, texts = sharp_target("A" if text == "copied" else "B")
    store_for_decoding(target)
    V = target.config.vocab_size
    drafter = Lookup(V) if kind == "lookup" else NGram(3, V).fit(texts.numpy())
    start = texts[0, :1]
    n_new = texts.size(1) - 1
    settings = {"temperature": 0.0 if text == "copied" else 1.0}
    rounds = Rounds(gamma)

    def write():
        if who == "reference":
            return generate(target, start[None], n_new, generator=seeded(0), **settings)
        rounds.start(1)
        options = {"gamma": gamma, "generator": seeded(0), "watch": rounds, **settings}
        return speculate(target, drafter, start, n_new, **options)

    ms = 1e3 * seconds(write, 3) / n_new
    floor = bytes_of(target) / vector_rate() * rounds.n_forwards / max(rounds.n_tokens, 1)
    measured = {"ms": ms, "floor_ms": 1e3 * floor, "peak_mb": peak_mb()}
    if who == "ours":
        per_text = n_new / rounds.n_tokens
        proposed, rejected = rounds.n_drafts * per_text, rounds.n_rejected * per_text
        measured["goes"] = (
            f"{n_new} tokens: {proposed:.0f} drafts proposed, {rejected:.0f} rejected"
        )
    return measured


def counting(who):
    """
    Trigrams of random tokens of V 50257, frequent ones more often. floor: numpy's sort of as many
    numbers.
    """
    V = 50257
    rng = np.random.default_rng(0)
    n_tokens = 10**4 if cfg.toy else 10**6
    frequency = 1 / np.arange(1, V + 1)
    cdf = frequency.cumsum() / frequency.sum()
    tokens = np.searchsorted(cdf, rng.random(n_tokens)).astype(np.uint16)
    model = NGram(3, V) if who == "ours" else reference.DictNGram(3, V)
    ms = 1e3 * seconds(lambda: model.fit(tokens), 1, warm=0)
    peak = peak_mb()
    keys = rng.integers(2**40, size=n_tokens)
    return {"ms": ms, "peak_mb": peak, "floor_ms": 1e3 * seconds(lambda: np.sort(keys), 3)}


def measure(row, who):
    """-> {"ms", "floor_ms", "peak_mb"} of one row, ours or the reference's."""
    work, _, name = row.partition("_")
    if work == "counting":
        return counting(who)
    if work in ("lookup", "ngram"):
        return drafting(work, name, who)
    if work in ("decode", "compiled"):
        return decoding(name, who, work == "compiled")
    if work == "speculate":
        return speculation(name, who)
    if work.startswith("sample"):
        return sampling(int(work.removeprefix("sample")), name, who)
    return training(work, name, who)


def in_a_process(row, who):
    """-> what measure returns, in a process of its own."""
    if cfg.toy:
        return measure(row, who)
    command = [sys.executable, __file__, f"--rows={row}", f"--who={who}"]
    command += [f"--{k}={getattr(cfg, k)}" for k in ("dtype", "repeats", "profile", "toy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def beside_the_reference(wanted):
    note = pick_device("cpu", cfg.dtype)[2]
    print(f"{note}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("               ref. ms    our ms  ratio / floor  ref. MB  our MB")
    for row in wanted:
        literal = in_a_process(row, "reference")
        ours = in_a_process(row, "ours")
        print(
            f"{row:13s}{literal['ms']:9.1f} {ours['ms']:9.1f} {literal['ms'] / ours['ms']:6.1f} "
            f"{ours['ms'] / ours['floor_ms']:7.2f} {literal['peak_mb']:8d} {ours['peak_mb']:7d}  "
            f"{ROWS[row]}",
            flush=True,
        )
        if "goes" in ours:
            print(f"{'':13s}{ours['goes']}")


# --------------------------------------------------------------------------------------------------
# a GPU (or, as a toy, a CPU)

LONGEST = 20  # seconds of a row of sampling: what is expected to take more is left out


def on_a_gpu():
    """GPT-2 small, context 1024: training, distillation, sampling, decoding, speculation."""
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    rate = matmul_rate()
    print(f"{note}, torch {torch.__version__}, a large product: {rate / 1e12:.3g} TFLOP/s")
    agree(device)
    kernels = ["sdpa"]
    if importlib.util.find_spec("flash_attn") and cfg.device == "cuda":
        kernels.append("flash_attn")
    compiles = (False,)
    if cfg.device == "cuda" and not cfg.toy:  # a GPU compiles by default
        lacking = why_not_compile(device)
        print(f"compiled: not here, {lacking}" if lacking else "compiled: it can be")
        compiles = (False,) if lacking else (False, True)
    for work, attention, compiled in itertools.product(("ar", "diffusion"), kernels, compiles):
        train_on_a_gpu(work, attention, compiled, device, autocast, rate)
    distill_on_a_gpu(device, autocast, rate)
    with fresh_memory(), torch.no_grad(), autocast:
        write_on_a_gpu(device, rate)


def batch_that_fits(work, free_gb, rate, low=2):
    """
    -> the largest batch, from the shape's down, that needs 80 % of the free memory at most and
    takes about a second a step at most; 0 where not even one sequence fits.
    """
    batch = SHAPES["small"][3]
    a_sequence = operations("small", 1.0 if work == "ar" else 0.5) / batch
    if work == "sdtt":
        a_sequence *= 5 / 3  # two of the teacher's forward passes, too
    while batch > 1 and batch * a_sequence / (rate / 2) > 1:
        batch //= 2
    L, C, V, _, T = SHAPES["small"]
    while batch and gb_of_a_step(work, L, C, V, T, batch, low) > 0.8 * free_gb:
        batch //= 2
    return batch


def make_what_fits(work, attention, device, autocast, rate):
    """-> a model, and as many texts as fit; a line and None, None where none does."""
    batch = SHAPES["small"][3]
    if cfg.device == "cuda" and not cfg.toy:
        free_gb = torch.cuda.mem_get_info()[0] / 1e9
        in_16_bits = dtype_of(autocast) != torch.float32
        batch = batch_that_fits(work, free_gb, rate, low=2 if in_16_bits else 4)
        if not batch:
            print(f"{work}: left out, {free_gb:.1f} GB are free")
            return None, None
    model, x0 = make("small", work == "ar", attention, device=device)
    return model, x0[:batch]


def train_on_a_gpu(work, attention, compiled, device, autocast, rate):
    with fresh_memory():
        model, x0 = make_what_fits(work, attention, device, autocast, rate)
        if model is None:
            return
        if compiled:
            compile_trunk(model, device)
        loss = our_loss(work, model, x0, itertools.count())
        try:
            s = seconds(stepper(model, loss, autocast), cfg.repeats, warm=3)
        except UserError as error:  # the compiler that seemed to be here does not work
            print(f"train {work}, {attention}: left out. {error}")
            return
        _, _, _, B, T = SHAPES["small"]
        n_operations = operations("small", 1.0 if work == "ar" else 0.5) * len(x0) / B
        fraction = n_operations / s / rate
        print(
            f"train {work}, {attention}, {'compiled' if compiled else 'eager'}, batch {len(x0)}: "
            f"{len(x0) * T / s:,.0f} tokens/s, {fraction:.0%} of the product's rate, "
            f"{peak_gb():.1f} GB",
            flush=True,
        )


def distill_on_a_gpu(device, autocast, rate):
    with fresh_memory():
        model, x0 = make_what_fits("sdtt", "sdpa", device, autocast, rate)
        if model is None:
            return
        loss = our_loss("sdtt", model, x0, itertools.count())
        s = seconds(stepper(model, loss, autocast), cfg.repeats)
        speed = x0.numel() / s
        said = f"SDTT step, batch {len(x0)}: {s:.3f} s, {speed:,.0f} tokens/s, {peak_gb():.1f} GB"
        print(said, flush=True)


def expected_seconds(batch, steps, rate):
    """-> what diffusion takes for so many texts if it reaches half of the product's rate."""
    L, C, V, _, T = SHAPES["small"]
    passes = min(steps, T)
    head = 2 * V * C * batch * T  # once for each token
    return (of_a_token(L, C, V, T, 0.0) * batch * T * passes + head) / (rate / 2)


def write_on_a_gpu(device, rate):
    """Texts of a whole context by the GPT and by diffusion, and by the GPT with drafts."""
    diffusion, _ = make("small", False, device=device)
    gpt, _ = make("small", True, device=device)
    diffusion.eval()
    gpt.eval()
    T = gpt.config.block_size
    generator = seeded(0, device=device)
    for b in (1, 8) if cfg.toy else (1, 8, 32):
        start = torch.zeros(b, 1, dtype=torch.long, device=device)
        generate(gpt, start, 8, generator=generator)  # warms up
        wait()
        write = functools.partial(generate, gpt, start, T - 1, generator=generator)
        print(f"{b} texts of {T}: GPT with its cache {seconds(write, 1, warm=0):.2f} s", flush=True)
        masks = torch.full((b, T), diffusion.mask_id, device=device)
        unmask(diffusion, masks, 4, "spread", generator=generator)  # warms up
        wait()
        for k in (4, T) if cfg.toy else (4, 16, 64, 256, 1024):
            said = f"{b} texts of {T}: diffusion, {k} steps"
            expected = expected_seconds(b, k, rate)
            if expected > LONGEST:
                print(f"{said}: left out, about {expected:.0f} s", flush=True)
                continue
            fill = functools.partial(unmask, diffusion, masks, k, "spread", generator=generator)
            print(f"{said} {seconds(fill, 1, warm=0):.2f} s", flush=True)
    draft_on_a_gpu(gpt, generator, device)


def draft_on_a_gpu(gpt, generator, device):
    """The GPT with a drafter of a sixth of its layers."""
    small, _ = make("small", True, layers=max(1, gpt.config.n_layer // 6), device=device)
    n_new = gpt.config.block_size // 2
    start = torch.zeros(1, dtype=torch.long, device=device)
    rounds = Rounds(4)

    def draft():
        rounds.start(1)
        options = {"gamma": 4, "generator": generator, "watch": rounds}
        return speculate(gpt, Network(small.eval()), start, n_new, **options)

    plain = seconds(lambda: generate(gpt, start[None], n_new, generator=generator), 1)
    speed = plain / seconds(draft, 1)
    layers = small.config.n_layer
    alpha = acceptance(rounds)
    print(f"speculation, 4 drafted by {layers} layers: {speed:.2f} x at alpha {alpha:.2f}")


@contextlib.contextmanager
def fresh_memory():
    """Inside, the GPU's peak is that of what is made inside."""
    gc.collect()  # a compiled model refers to itself: without this it stays for a while
    if cfg.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def peak_gb():
    return torch.cuda.max_memory_allocated() / 1e9 if cfg.device == "cuda" else peak_mb() / 1e3


def agree(device):
    """
    Ours beside the reference on this device, in float32; raises AssertionError where they differ.
    """
    torch.manual_seed(0)
    config = {"block_size": 32, "vocab_size": 97, "n_layer": 2, "n_head": 2, "n_embd": 32}
    gpt = GPT(GPTConfig(**config, causal=True)).to(device)
    diffusion = GPT(GPTConfig(**config, causal=False)).to(device)
    x0 = torch.randint(97, (4, 33), generator=seeded(1)).to(device)
    torch.testing.assert_close(ar_loss(gpt, x0), reference.ar_loss(gpt, x0))

    x = x0[:, :32]
    t = torch.full((4, 1), 0.5, device=device)
    masked = torch.rand(4, 32, generator=seeded(2)).to(device) < t
    ours = masked_nll(diffusion, x, masked, 1 / t)
    literal = reference.diffusion_loss(diffusion, x, x.masked_fill(masked, diffusion.mask_id), t)
    torch.testing.assert_close(ours, literal)
    our_gradient = torch.autograd.grad(ours, list(diffusion.parameters()))
    its_gradient = torch.autograd.grad(literal, list(diffusion.parameters()))
    torch.testing.assert_close(our_gradient, its_gradient, atol=1e-5, rtol=1e-3)

    options = {"temperature": 0, "generator": seeded(3, device=device)}
    cached = generate(gpt.eval(), x0[:, :1], 31, **options)
    uncached = reference.generate(gpt, x0[:, :1], 31, **options)
    same = (cached == uncached).float().mean()  # ties may fall otherwise
    assert same > 0.9, "the cache changes the text"
    masks = torch.full((4, 32), diffusion.mask_id, device=device)
    filled = unmask(diffusion, masks, 4, "spread", generator=seeded(4, device=device))
    assert int(filled.max()) < 97, "a mask was left or drawn"
    print("losses, gradients, cache and sampler agree with the reference on this device")


# --------------------------------------------------------------------------------------------------
# memory by arithmetic

PUBLISHED = {  # layers, width, heads
    "169 M": (12, 768, 12),
    "424 M": (24, 1024, 16),
    "863 M": (24, 1536, 16),
}


def parameters(L, C, V):
    """
    Of the published shape without its adaptive norms: biases in the MLP and the norms, a head of
    its own.
    """
    block = 12 * C * C + 9 * C  # qkv, proj, up and down; the biases of up and down, two layer norms
    return L * block + (V + 1) * C + V * C + V + 2 * C


def gb_of_training(L, C, V, T, batch, world, low=2):
    """
    -> GB on each rank, in four parts: states (weights, gradients, AdamW's two, averages: float32,
    in shards); weights gathered for the largest block and for what belongs to none; activations of
    `batch` sequences; the head of diffusion, on half of their tokens. low: bytes of a product's
    numbers.

    What a block keeps of a token for its backward pass: in float32 what enters the two norms; in
    the products' format what leaves them, q k v, the rotated q k, attention's output, up's output
    and gelu's. What the head has at once of a token: log-probabilities, their gradient and that of
    the logits.
    """
    gathered = 4 * (12 * C * C + 2 * V * C) if world > 1 else 0
    token = 4 * 2 * C + low * (2 + 3 + 2 + 1 + 4 + 4) * C
    return (
        20 * parameters(L, C, V) / world / 1e9,
        gathered / 1e9,
        batch * T * (L * token + 4 * C) / 1e9,
        batch * T / 2 * 3 * 4 * V / 1e9,
    )


def gb_of_a_step(work, L, C, V, T, batch, low=2):
    """-> GB that a step of 'ar' | 'diffusion' | 'sdtt' needs at once on one GPU."""
    states, _, activations, head = gb_of_training(L, C, V, T, batch, 1, low)
    if work == "ar":
        head *= 2  # on every token
    if work == "sdtt":
        states += 4e-9 * parameters(L, C, V)  # the teacher's weights
        head *= 3  # log-probabilities of two models, and what a divergence keeps of them
    return states + activations + head


ONE_GPU = (  # configs for one GPU, in the order of their size; none of a GPT
    "train_shakespeare",
    "train_shakespeare_char_gpu",
    "train_openwebtext_24gb",
    "train_openwebtext_gpt2_24gb",
    "sdtt_openwebtext_24gb",
)


def of_a_config(name):
    """-> GB that a config of ONE_GPU needs in bfloat16, the operations of all of it."""
    knobs = read_config(os.path.join(ROOT, "config", f"{name}.py"))
    work = "sdtt" if "rounds" in knobs else "diffusion"
    small = {"n_layer": 12, "n_embd": 768, "block_size": 1024}  # of the teacher
    knobs = {**vars(train.cfg), **small, **knobs}
    L, C, T, batch = (knobs[name] for name in ("n_layer", "n_embd", "block_size", "batch_size"))
    V = 65 if knobs["dataset"] == "shakespeare_char" else 50257
    tokens = T * batch * knobs["gradient_accumulation_steps"]  # of a step
    forward = of_a_token(L, C, V, T, 0.5)
    n_operations = 3 * forward * tokens * knobs["max_iters"]
    if work == "sdtt":
        # the student's 3 forward passes, 2 of the teacher, and its head once more
        n_steps = knobs["rounds"] * knobs["iters_per_round"]
        n_operations = (5 * forward + V * C) * tokens * n_steps
    return gb_of_a_step(work, L, C, V, T, batch), n_operations


def print_one_gpu():
    print(f"configs for one GPU; hours at {cfg.tflops:g} TFLOP/s, which small models do not reach")
    for name in ONE_GPU:
        gb, n_operations = of_a_config(name)
        print(f"{name}: {gb:.1f} GB, {n_operations / cfg.tflops / 1e12 / 3600:.2g} hours")


def print_memory(T=1024, V=50257, batch=8):
    """A line for each published size; days and hours follow from an assumed rate."""
    print(
        f"GB a rank that trains: states + gathered + activations + head of {batch} x {T} tokens, "
        f"products in bfloat16;\ntime at {cfg.tflops:g} TFLOP/s: 1 M steps of 512 sequences, "
        "7 rounds of SDTT with 10,000 steps of 128"
    )
    for name, (L, C, _) in PUBLISHED.items():
        a_sequence = gb_of_training(L, C, V, T, 1, 1)[2]
        said = [f"{parameters(L, C, V) / 1e6:.0f} M", f"{a_sequence:.2f} GB a sequence"]
        for world in (1, 8, 64):
            parts = gb_of_training(L, C, V, T, batch, world)
            summands = " + ".join(f"{x:.1f}" for x in parts)
            said.append(f"{world} GPU{'s' * (world > 1)} {sum(parts):.1f} ({summands})")
        forward = of_a_token(L, C, V, T, 0.5)
        days = 3 * forward * 1e6 * 512 * T / cfg.tflops / 1e12 / 86400
        # an SDTT step: the student's 3 forward passes, 2 of the teacher, and its head once more
        hours = (5 * forward + V * C) * 7e4 * 128 * T / cfg.tflops / 1e12 / 3600
        said.append(f"{3 * forward / 1e9:.2f} GFLOP a token")
        said += [f"{days:.0f} days", f"SDTT {hours:.0f} hours"]
        print(f"{name}: {'; '.join(said)}")


def main(cfg):
    wanted = list(ROWS) if cfg.rows == "all" else cfg.rows.split(",")
    for row in wanted:
        choose("rows", row, tuple(ROWS))
    if cfg.device == "cuda" or (cfg.toy and cfg.rows == "all"):
        on_a_gpu()
    timed = [row for row in wanted if row != "memory"]
    if cfg.device == "cpu" and timed:
        beside_the_reference(timed)
    if "memory" in wanted:
        print_memory()
        print_one_gpu()


if __name__ == "__main__":
    if cfg.who == "both":
        main(cfg)
    else:
        print(json.dumps(measure(cfg.rows, cfg.who)))
