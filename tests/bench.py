"""
How fast and how small, as ratios measured in one run: ours beside its literal twin and beside the floor.
$ python tests/bench.py                                                     (under 10 minutes on 2 CPU cores)
$ python tests/bench.py --rows=diffusion_B,decode_A                                            (some of its rows)
$ python tests/bench.py --device=cuda                                            (under 10 minutes on one GPU)
$ python tests/bench.py --rows=memory           (what the published sizes need on 1, 8 and 64 GPUs: arithmetic)

twin    tests/reference.py, written as the papers' own code computes it: dense B x T x V logits and losses, a draw at
        every position of every sampling step (with MDLM's cache), no KV cache, attention written out
floor   the operations (matrix products only) over the rate of a large product in training's number format, same run;
        for cached decoding the bytes of the weights over the rate of a matrix-vector product
A is 6 layers x 384, V 65, batch 16; B is 4 x 256, V 50304, batch 8; 256 tokens. Every CPU measurement is a process of
its own, so that peak memory (resident, of the whole process) is its own.
"""

import contextlib
import copy
import functools
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import reference
import torch

import distill
import loop
import train
from configurator import choose, configure
from drafters import NGram
from model import GPT, GPTConfig, ar_loss, diffusion_loss, unmask
from plumbing.hardware import compile_trunk, pick_device
from plumbing.randomness import seeded
from speculative import acceptance, generate, speculate

# ----------------------------------------------------------------------------------------------------------------------
rows = "all"  # some of those that --rows=? prints, by name
device = "cpu"  # 'cpu' (beside the twins) | 'cuda' (GPT-2 small)
dtype = ""  # '' (bfloat16 where it is faster) | 'float32' | 'bfloat16'
tflops = (
    66.0  # for memory's times: what one GPU is assumed to reach, such as 40 % of an RTX 4090's 165
)
repeats = 7  # training steps measured; the median counts
toy = False  # sizes of a second, to see that it runs
profile = False  # say where the time of our training steps goes
who = "both"  # 'both' | 'ours' | 'twin': which of them this process measures
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

ROWS = {
    "ar_A": "a step of training a GPT on characters",
    "ar_B": "the same with GPT-2's vocabulary",
    "diffusion_A": "a step of training a diffusion model on characters",
    "diffusion_B": "the same with GPT-2's vocabulary: the head runs on masked positions",
    "sdtt_A": "a step of distillation on characters",
    "sdtt_B": "the same with GPT-2's vocabulary: hidden states stand for log-probabilities",
    "sample16_A": "4 texts of 256 characters in 16 steps",
    "sample64_A": "in 64 steps",
    "sample1024_A": "in more steps than tokens: steps that reveal nothing cost nothing",
    "sample16_B": "4 texts of 256 of GPT-2's tokens in 16 steps: a draw a token, not one a token and step",
    "decode_A": "a token of a GPT with its KV cache, one text at a time",
    "decode_B": "the same with GPT-2's vocabulary",
    "compiled_A": "decode_A with sample.py's --compile=on",
    "compiled_B": "decode_B with it",
    "ngram": "the trigrams of a million tokens, counted",
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
    """-> operations per second of a product of the size that training makes, in the number format that it uses."""
    device, _, note = pick_device(cfg.device, cfg.dtype)
    kind, n = (
        torch.bfloat16 if note.endswith("bfloat16") else torch.float32,
        8192 if cfg.device == "cuda" else 4096,
    )
    a, b = (torch.ones(shape, dtype=kind, device=device) for shape in ((n, 1024), (1024, 4096)))
    return 2 * n * 1024 * 4096 / seconds(lambda: a @ b, 3 if cfg.toy else 9)


@functools.cache
def vector_rate():
    """-> bytes per second of a float32 matrix-vector product."""
    w, x = torch.randn(4096, 4096), torch.randn(1, 4096)
    return w.numel() * 4 / seconds(lambda: torch.nn.functional.linear(x, w), 9)


def make(name, causal, attention="sdpa", layers=0, device="cpu"):
    """-> a model of that shape (or with so many layers), (B, T) or for a causal one (B, T + 1) random tokens."""
    L, C, V, B, T = SHAPES[name]
    torch.manual_seed(0)
    shape = {
        "block_size": T,
        "vocab_size": V,
        "n_layer": layers or L,
        "n_head": C // 64,
        "n_embd": C,
    }
    model = GPT(GPTConfig(**shape, causal=causal, attention=attention))
    return model.to(device), torch.randint(V, (B, T + causal), generator=seeded(1)).to(device)


def of_a_token(L, C, V, T, masked):
    """Multiply-adds x 2 of a forward: trunk and attention on every token, the head on a share `masked` of them."""
    return 2 * 12 * L * C * C + 4 * L * T * C + masked * 2 * V * C


def operations(name, masked):
    """Of one training step."""
    L, C, V, B, T = SHAPES[name]
    return 3 * of_a_token(L, C, V, T, masked) * B * T  # the backward takes twice the forward


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# ----------------------------------------------------------------------------------------------------------------------
# one row on a CPU


def loss_and_twin(work, model, x0, calls):
    """-> two functions without arguments that compute the loss of a step: ours and the literal one."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if work == "sdtt" else None

    def twin():
        noise = seeded(next(calls))
        if work == "sdtt":
            return reference.sdtt_loss(model, x0, noise, teacher, 1 / 1024)
        if work == "ar":
            return reference.ar_loss(model, x0)
        t = torch.rand(x0.size(0), 1, generator=noise) * 0.999 + 0.001
        xt = torch.where(torch.rand(x0.shape, generator=noise) < t, model.mask_id, x0)
        return reference.diffusion_loss(model, x0, xt, t)

    ours = {
        "sdtt": lambda: distill.sdtt_loss(
            model, x0, seeded(next(calls), device=x0.device), teacher, 1 / 1024
        ),
        "ar": lambda: ar_loss(model, x0),
        "diffusion": lambda: diffusion_loss(model, x0, seeded(next(calls), device=x0.device)),
    }
    return ours[work], twin


def stepper(model, loss, autocast):
    """-> a training step as loop.fit makes it."""
    optimizer = loop.make_optimizer(model, train.cfg)

    def step():
        with autocast:
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(work, name, who):
    """-> ms a step and, for ours, where it goes."""
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    model, x0 = make(name, work == "ar")
    step = stepper(
        model, loss_and_twin(work, model, x0, itertools.count())[who == "twin"], autocast
    )
    result = {"ms": 1e3 * seconds(step, cfg.repeats), "peak_mb": peak_mb()}
    flops = operations(name, 1.0 if work == "ar" else 0.5)
    if (
        work == "sdtt"
    ):  # the teacher's forward, and again where its first step reveals something; its head once
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
}
GROUPS |= {
    "copies, casts": ("copy_", "cat", "fill_", "zero_"),
    "optimizer": ("adam", "vector_norm"),
}


def where_it_goes(profile):
    """-> "products 45 %, ...": the share of each kind of operation in the time spent inside operations."""
    share = dict.fromkeys([*GROUPS, "elementwise and rest"], 0.0)
    for event in profile.key_averages():
        kind = next(
            (g for g, names in GROUPS.items() if any(n in event.key for n in names)),
            "elementwise and rest",
        )
        share[kind] += event.self_cpu_time_total
    total = sum(share.values())
    return ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in share.items())


def sampling(steps, name, who):
    """4 texts, from nothing but masks."""
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    model, _ = make(name, False)
    L, C, V, _, T = SHAPES[name]
    xt = torch.full((4, T), model.mask_id)
    fill = unmask if who == "ours" else reference.ancestral_sampler
    with autocast, torch.no_grad():
        ms = 1e3 * seconds(
            lambda: fill(model.eval(), xt, steps, generator=seeded(0)), 1, warm=who == "ours"
        )
    calls = steps * (1 - (1 - 1 / steps) ** T)  # of a row; the twin may need more, never fewer
    trunk = of_a_token(L, C, V, T, 0.0) * 4 * T * calls
    return {
        "ms": ms,
        "floor_ms": 1e3 * (trunk + 2 * V * C * 4 * T) / matmul_rate(),
        "peak_mb": peak_mb(),
    }


def decoding(name, who, compiled=False):
    """A whole context at batch 1 in float32, with our KV cache or without -> ms per token."""
    device, *_ = pick_device(cfg.device, cfg.dtype)
    model, x0 = make(name, True)
    if compiled and who == "ours" and not cfg.toy:  # half a minute
        compile_trunk(model, device)
    start, n_new = torch.zeros(1, 1, dtype=torch.long), x0.size(1) - 2

    def write():
        (generate if who == "ours" else reference.generate)(
            model.eval(), start, n_new, generator=seeded(0)
        )

    ms = 1e3 * seconds(write, 3 if who == "ours" else 1, warm=who == "ours") / n_new
    bytes_read = sum(4 * p.numel() for p in model.parameters())
    return {"ms": ms, "floor_ms": 1e3 * bytes_read / vector_rate(), "peak_mb": peak_mb()}


def counting(who):
    """Trigrams of random tokens of V 50257, frequent ones more often; numpy's sort of as many numbers is the floor."""
    V, rng, n_tokens = 50257, np.random.default_rng(0), 10**4 if cfg.toy else 10**6
    share = 1 / np.arange(1, V + 1)
    tokens = np.searchsorted(share.cumsum() / share.sum(), rng.random(n_tokens)).astype(np.uint16)
    model = NGram(3, V) if who == "ours" else reference.DictNGram(3, V)
    ms, keys = (
        1e3 * seconds(lambda: model.fit(tokens), 1, warm=0),
        rng.integers(2**40, size=n_tokens),
    )
    return {"ms": ms, "peak_mb": peak_mb(), "floor_ms": 1e3 * seconds(lambda: np.sort(keys), 3)}


def measure(row, who):
    """-> {"ms", "floor_ms", "peak_mb"} of one row, ours or the twin."""
    work, _, name = row.partition("_")
    if work == "ngram":
        return counting(who)
    if work in ("decode", "compiled"):
        return decoding(name, who, work == "compiled")
    if work.startswith("sample"):
        return sampling(int(work.removeprefix("sample")), name, who)
    return training(work, name, who)


def in_a_process(row, who):
    """-> what measure returns, in a process of its own."""
    if cfg.toy:
        return measure(row, who)
    command = [sys.executable, __file__, f"--rows={row}", f"--who={who}"]
    command += [f"--{k}={getattr(cfg, k)}" for k in ("dtype", "repeats", "profile", "toy")]
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def beside_the_twins(wanted):
    print(
        f"{pick_device('cpu', cfg.dtype)[2]}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"{'':13s}{'twin ms':>9s} {'our ms':>9s} {'ratio':>6s} {'/ floor':>7s} {'twin MB':>8s} {'our MB':>7s}"
    )
    for row in wanted:
        twin, ours = (in_a_process(row, who) for who in ("twin", "ours"))
        print(
            f"{row:13s}{twin['ms']:9.1f} {ours['ms']:9.1f} {twin['ms'] / ours['ms']:6.1f} "
            f"{ours['ms'] / ours['floor_ms']:7.2f} {twin['peak_mb']:8d} {ours['peak_mb']:7d}  {ROWS[row]}",
            flush=True,
        )
        if "goes" in ours:
            print(f"{'':13s}{ours['goes']}")


# ----------------------------------------------------------------------------------------------------------------------
# a GPU (or, as a toy, a CPU)


def on_a_gpu():
    """GPT-2 small with a context of 1024: training, distillation, sampling, decoding, speculation."""
    device, autocast, note = pick_device(cfg.device, cfg.dtype)
    rate = matmul_rate()
    print(f"{note}, torch {torch.__version__}, a large product: {rate / 1e12:.3g} TFLOP/s")
    agree(device)
    flash = (
        ["flash_attn"] if importlib.util.find_spec("flash_attn") and cfg.device == "cuda" else []
    )
    compiles = (
        (False, True) if cfg.device == "cuda" else (False,)
    )  # it is what a GPU gets by default
    for work, attention, compiled in itertools.product(
        ("ar", "diffusion"), ["sdpa", *flash], compiles
    ):
        train_on_a_gpu(work, attention, compiled, device, autocast, rate)
    with fresh_memory():
        model, x0 = make("small", False, device=device)
        x0 = x0.repeat(2, 1)
        s = seconds(
            stepper(model, loss_and_twin("sdtt", model, x0, itertools.count())[0], autocast),
            cfg.repeats,
        )
        print(
            f"SDTT step, batch {len(x0)}: {s:.3f} s, {x0.numel() / s:,.0f} tokens/s, {peak_gb():.1f} GB",
            flush=True,
        )
    with torch.no_grad(), autocast:
        write_on_a_gpu(device)


def train_on_a_gpu(work, attention, compiled, device, autocast, rate):
    with fresh_memory():
        model, x0 = make("small", work == "ar", attention, device=device)
        if compiled:
            compile_trunk(model, device)
        loss, _ = loss_and_twin(work, model, x0, itertools.count())
        s = seconds(stepper(model, loss, autocast), cfg.repeats, warm=3)
        _, _, _, B, T = SHAPES["small"]
        speed, share = B * T / s, operations("small", 1.0 if work == "ar" else 0.5) / s / rate
        how = f"{work}, {attention}, {'compiled' if compiled else 'eager'}"
        print(
            f"train {how}: {speed:,.0f} tokens/s, {share:.0%} of the product's rate, {peak_gb():.1f} GB",
            flush=True,
        )


def write_on_a_gpu(device):
    """Texts of a whole context by the GPT and by diffusion, and a GPT with a drafter of a sixth of its layers."""
    (diffusion, _), (gpt, _) = (make("small", causal, device=device) for causal in (False, True))
    small, _ = make("small", True, layers=max(1, gpt.config.n_layer // 6), device=device)
    T, noise = gpt.config.block_size, seeded(0, device=device)
    for b in (1, 8) if cfg.toy else (1, 8, 32):
        start = torch.zeros(b, 1, dtype=torch.long, device=device)
        blank = torch.full((b, T), diffusion.mask_id, device=device)
        s = seconds(
            functools.partial(generate, gpt.eval(), start, T - 1, generator=noise), 1, warm=1
        )
        print(f"{b} texts of {T}: GPT with its cache {s:.2f} s", flush=True)
        for k in (4, T) if cfg.toy else (4, 16, 64, 256, 1024):
            s = seconds(
                functools.partial(unmask, diffusion.eval(), blank, k, "spread", generator=noise),
                1,
                warm=1,
            )
            print(f"{b} texts of {T}: diffusion, {k} steps {s:.2f} s", flush=True)
    start, counts = torch.zeros(1, 1, dtype=torch.long, device=device), []
    plain = seconds(lambda: generate(gpt, start, T // 2, generator=noise), 1)
    drafted = seconds(
        lambda: counts.append(speculate(gpt, small.eval(), start, T // 2, 4, generator=noise)[1]), 1
    )
    alpha = acceptance(counts[-1])
    print(
        f"speculation, 4 drafted by {small.config.n_layer} layers: {plain / drafted:.2f} x at alpha {alpha:.2f}"
    )


@contextlib.contextmanager
def fresh_memory():
    """Inside, the GPU's peak is that of what is made inside."""
    if cfg.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def peak_gb():
    return torch.cuda.max_memory_allocated() / 1e9 if cfg.device == "cuda" else peak_mb() / 1e3


def agree(device):
    """Fast paths beside literal ones on this device, in float32; raises AssertionError where they differ."""
    torch.manual_seed(0)
    config = {"block_size": 32, "vocab_size": 97, "n_layer": 2, "n_head": 2, "n_embd": 32}
    gpt, diffusion = (
        GPT(GPTConfig(**config, causal=causal)).to(device) for causal in (True, False)
    )
    x0 = torch.randint(97, (4, 33), generator=seeded(1)).to(device)
    torch.testing.assert_close(ar_loss(gpt, x0), reference.ar_loss(gpt, x0))
    t = torch.full((4, 1), 0.5, device=device)
    xt = torch.where(
        torch.rand(4, 32, generator=seeded(2)).to(device) < t, diffusion.mask_id, x0[:, :32]
    )
    masked = xt == diffusion.mask_id
    weights = (1 / t).expand(xt.shape)[masked] / xt.numel()
    ours = diffusion.nll(diffusion.hidden(xt)[masked], x0[:, :32][masked], weights)
    theirs = reference.diffusion_loss(diffusion, x0[:, :32], xt, t)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        *(torch.autograd.grad(v, [*diffusion.parameters()]) for v in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    texts = []
    for write in (generate, reference.generate):
        texts.append(
            write(gpt.eval(), x0[:, :1], 31, temperature=0, generator=seeded(3, device=device))
        )
    assert (texts[0] == texts[1]).float().mean() > 0.9, (
        "the cache changes what is written"
    )  # ties may fall otherwise
    calls = {"steps": 4, "sampler": "spread", "generator": seeded(4, device=device)}
    filled = unmask(diffusion, torch.full((4, 32), diffusion.mask_id, device=device), **calls)
    assert int(filled.max()) < 97, "a mask was left or drawn"
    print("losses, gradients, cache and sampler agree with their literal twins on this device")


# ----------------------------------------------------------------------------------------------------------------------
# memory by arithmetic

PUBLISHED = {
    "169 M": (12, 768, 12),
    "424 M": (24, 1024, 16),
    "863 M": (24, 1536, 16),
}  # layers, width, heads


def parameters(L, C, V):
    """Of the published shape without its adaptive norms: biases in the MLP and the norms, a head of its own."""
    block = 12 * C * C + 9 * C  # qkv, proj, up and down; the biases of up and down, two layer norms
    return L * block + (V + 1) * C + V * C + V + 2 * C


def gb_of_training(L, C, V, T, batch, world, low=2):
    """-> GB on each rank: states (weights, gradients, AdamW's two, averages: float32, in shards); weights gathered for
    the largest block and for what belongs to none; activations of `batch` sequences. low: bytes of a product's numbers.

    What a block keeps of a token for its backward: in float32 what enters the two norms; in the products' format what
    leaves them, q k v, the rotated q k, attention's output, up's output and gelu's.
    """
    gathered = 4 * (12 * C * C + 2 * V * C) if world > 1 else 0
    token = 4 * 2 * C + low * (2 + 3 + 2 + 1 + 4 + 4) * C
    return (
        20 * parameters(L, C, V) / world / 1e9,
        gathered / 1e9,
        batch * T * (L * token + 4 * C) / 1e9,
    )


def print_memory(T=1024, V=50257, batch=8):
    """A line for each published size; days and hours follow from an assumed rate."""
    print(
        f"GB a rank that trains: states + gathered + activations of {batch} x {T} tokens, products in bfloat16;"
    )
    print(
        f"time at {cfg.tflops:g} TFLOP/s: 1 M steps of 512 sequences, 7 rounds of SDTT with 10,000 steps of 128"
    )
    for name, (L, C, _) in PUBLISHED.items():
        said = [
            f"{parameters(L, C, V) / 1e6:.0f} M",
            f"{gb_of_training(L, C, V, T, 1, 1)[2]:.2f} GB a sequence",
        ]
        for world in (1, 8, 64):
            parts = gb_of_training(L, C, V, T, batch, world)
            said.append(
                f"{world} GPU{'s' * (world > 1)} {sum(parts):.1f} ({' + '.join(f'{x:.1f}' for x in parts)})"
            )
        forward = of_a_token(L, C, V, T, 0.5)
        days = 3 * forward * 1e6 * 512 * T / cfg.tflops / 1e12 / 86400
        # an SDTT step is the student's 3 forwards, 2 of the teacher, and its head once more
        hours = (5 * forward + V * C) * 7e4 * 128 * T / cfg.tflops / 1e12 / 3600
        said += [
            f"{3 * forward / 1e9:.2f} GFLOP a token",
            f"{days:.0f} days",
            f"SDTT {hours:.0f} hours",
        ]
        print(f"{name}: {'; '.join(said)}")


def main(cfg):
    wanted = list(ROWS) if cfg.rows == "all" else cfg.rows.split(",")
    for row in wanted:
        choose("rows", row, tuple(ROWS))
    if cfg.device == "cuda" or (cfg.toy and cfg.rows == "all"):
        on_a_gpu()
    timed = [row for row in wanted if row != "memory"]
    if cfg.device == "cpu" and timed:
        beside_the_twins(timed)
    if "memory" in wanted:
        print_memory()


if __name__ == "__main__":
    if cfg.who == "both":
        main(cfg)
    else:
        print(json.dumps(measure(cfg.rows, cfg.who)))
