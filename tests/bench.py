"""
How fast and how small, as ratios measured in one run: our step beside its literal twin and beside the floor.
$ python tests/bench.py                                                            (10 minutes on 2 CPU cores)
$ python tests/bench.py --work=diffusion --shape=B                                 (one row)
$ python tests/bench.py --work=scale               (what the published sizes need: arithmetic, and activations measured)

twin    tests/reference.py, written as the papers' own code computes it: dense B x T x V logits and losses, a draw at
        every position of every sampling step (with MDLM's cache), no KV cache, torch's default attention
floor   the operations (matrix products only) over the rate of a large product in training's number format, same run;
        for cached decoding the bytes of the weights over the rate of a matrix-vector product
Every measurement is a process of its own, so that peak memory (resident, of the whole process) is its own.
"""

import copy
import json
import os
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import numpy as np
import reference
import torch

import distill
import loop
import train
from configurator import configure
from drafters import NGram
from model import GPT, GPTConfig, ar_loss, diffusion_loss, unmask
from plumbing.hardware import multiplies_bfloat16, pick_device
from plumbing.randomness import seeded
from speculative import generate

# ----------------------------------------------------------------------------------------------------------------------
work = "all"  # 'all' | 'ar' | 'diffusion' | 'sdtt' (training steps) | 'sample' | 'decode' | 'ngram' | 'scale'
tflops = 400.0  # for scale: what one GPU is assumed to reach, e.g. 40 % of an H100's 989
shape = "all"  # 'all' | 'A' (6 x 384, V 65) | 'B' (4 x 256, V 50304)
who = "both"  # 'both' | 'ours' | 'twin'
steps = 0  # sampling steps; 0: all of 16, 64 and 1024
repeats = 9  # training steps measured; the median counts
profile = True  # say where the time of our training step goes
cfg = configure(globals())
# ----------------------------------------------------------------------------------------------------------------------

SHAPES = {"A": (6, 384, 65, 16), "B": (4, 256, 50304, 8)}  # layers, width, V, batch size; length 256
T = 256


def seconds(f, n):
    """Median time of n calls after two to warm up."""
    times = []
    for _ in range(n + 2):
        began = time.perf_counter()
        f()
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[n // 2]


def matmul_rate():
    """-> operations per second of a product of the size that training makes, in the number format that it uses."""
    dtype = torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32
    a, b = torch.randn(4096, 1024, dtype=dtype), torch.randn(1024, 4096, dtype=dtype)
    return 2 * 4096 * 1024 * 4096 / seconds(lambda: a @ b, 9)


def vector_rate():
    """-> bytes per second of a float32 matrix-vector product."""
    w, x = torch.randn(4096, 4096), torch.randn(1, 4096)
    return w.numel() * 4 / seconds(lambda: torch.nn.functional.linear(x, w), 9)


def make(name, causal):
    L, C, V, B = SHAPES[name]
    torch.manual_seed(0)
    config = GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=C // 64, n_embd=C, causal=causal)
    return GPT(config), torch.randint(V, (B, T + causal), generator=seeded(1))


def operations(name, masked):
    """Multiply-adds x 2 of one step: trunk and attention on all tokens, the head on a share `masked` of them."""
    L, C, V, B = SHAPES[name]
    per_token = 2 * 12 * L * C * C + 4 * L * T * C + masked * 2 * V * C
    return 3 * per_token * B * T  # the backward takes twice the forward


def training(work, name, who):
    """-> ms a step and, for ours, where it goes."""
    _, autocast, _ = pick_device()
    causal = work == "ar"
    model, x0 = make(name, causal)
    optimizer = loop.make_optimizer(model, train.cfg)
    calls = iter(range(10**6))
    if work == "sdtt":
        teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def loss():
        noise = seeded(next(calls))
        if work == "sdtt":
            return (distill.sdtt_loss if who == "ours" else reference.sdtt_loss)(model, x0, noise, teacher, 1 / 1024)
        if who == "ours":
            return (ar_loss if causal else diffusion_loss)(model, x0, noise)
        if causal:
            return reference.ar_loss(model, x0)
        t = torch.rand(x0.size(0), 1, generator=noise) * 0.999 + 0.001
        xt = torch.where(torch.rand(x0.shape, generator=noise) < t, model.mask_id, x0)
        return reference.diffusion_loss(model, x0, xt, t)

    def step():
        with autocast:
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    result = {"ms": 1e3 * seconds(step, cfg.repeats)}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    flops = operations(name, 1.0 if causal else 0.5)
    if work == "sdtt":  # the teacher's forward, and again where its first step reveals something; its head once
        again = 1 - (1 - 1 / 1024) ** T
        flops += (operations(name, 0.5) + again * operations(name, 0.0)) / 3
    result["floor_ms"] = 1e3 * flops / matmul_rate()
    if cfg.profile and who == "ours":
        with torch.profiler.profile() as p:
            step()
        result["goes"] = where_it_goes(p)
    return result


GROUPS = {"products": ("mm", "bmm", "addmm"), "softmax, norm": ("softmax", "layer_norm", "logsumexp")}
GROUPS |= {"copies, casts": ("copy_", "cat", "fill_", "zero_"), "optimizer": ("adam", "vector_norm")}


def where_it_goes(profile):
    """-> "products 45 %, ...": the share of each kind of operation in the time spent inside operations."""
    share = dict.fromkeys([*GROUPS, "elementwise and rest"], 0.0)
    for event in profile.key_averages():
        kind = next((g for g, names in GROUPS.items() if any(n in event.key for n in names)), "elementwise and rest")
        share[kind] += event.self_cpu_time_total
    total = sum(share.values())
    return ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in share.items())


def sampling(name, who, steps):
    """4 x 256 tokens."""
    _, autocast, _ = pick_device()
    model, _ = make(name, False)
    xt = torch.full((4, T), model.mask_id)
    fill = (
        unmask
        if who == "ours"
        else lambda model, xt, steps, generator: reference.ancestral_sampler(model, xt, steps, generator)
    )
    with autocast, torch.no_grad():
        fill(model.eval(), xt, 2, generator=seeded(0))
        began = time.perf_counter()
        fill(model, xt, steps, generator=seeded(0))
    ms = 1e3 * (time.perf_counter() - began)
    L, C, V, _ = SHAPES[name]
    calls = steps * (1 - (1 - 1 / steps) ** T)  # of a row; the twin may need more, never fewer
    trunk = (2 * 12 * L * C * C + 4 * L * T * C) * 4 * T * calls
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"ms": ms, "floor_ms": 1e3 * (trunk + 2 * V * C * 4 * T) / matmul_rate(), "peak_mb": peak}


def decoding(name, who):
    """255 tokens at batch 1 in float32, with our KV cache or without -> ms per token."""
    pick_device()
    model, _ = make(name, True)
    start = torch.zeros(1, 1, dtype=torch.long)

    def write():
        generate(model.eval(), start, T - 1, generator=seeded(0), use_cache=who == "ours")

    ms = 1e3 * seconds(write, 3 if who == "ours" else 1) / (T - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    bytes_read = sum(4 * p.numel() for p in model.parameters())
    return {"ms": ms, "floor_ms": 1e3 * bytes_read / vector_rate(), "peak_mb": peak}


def counting(who, n_tokens):
    """Trigrams of n_tokens random tokens of V 50257, frequent ones more often -> seconds to fit, ms for a query."""
    V, rng = 50257, np.random.default_rng(0)
    share = 1 / np.arange(1, V + 1)
    tokens = np.searchsorted(share.cumsum() / share.sum(), rng.random(n_tokens)).astype(np.uint16)
    model = NGram(3, V) if who == "ours" else reference.DictNGram(3, V)
    began = time.perf_counter()
    model.fit(tokens)
    result = {"fit_s": time.perf_counter() - began}
    contexts = [tokens[i : i + 2].astype(np.int64) for i in rng.integers(n_tokens - 2, size=64)]
    queries = iter(contexts[None] for contexts in contexts) if who == "ours" else iter(contexts)
    result["ms"] = 1e3 * seconds(lambda: model.log_probs(next(queries)), 60)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def measure(work, name, who, steps):
    if work == "ngram":
        return counting(who, steps)
    if work == "sample":
        return sampling(name, who, steps)
    return decoding(name, who) if work == "decode" else training(work, name, who)


def run(work, name, who, steps):
    """-> what measure returns, in a process of its own."""
    command = [sys.executable, __file__, f"--work={work}", f"--shape={name}", f"--who={who}"]
    command += [f"--steps={steps}", f"--repeats={cfg.repeats}", f"--profile={cfg.profile}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


PUBLISHED = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (24, 1536, 16)}  # layers, width, heads


def saved_for_backward(model, length):
    """-> bytes that one sequence's diffusion loss keeps for its backward pass, the weights aside."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = (
                x.untyped_storage().nbytes(),
                x,
            )  # held, so that no address comes twice
        return x

    x0 = torch.randint(model.config.vocab_size, (1, length), generator=seeded(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model.hidden(x0)
    return sum(n for n, _ in kept.values())


def scale(length=1024, V=50257):
    """Prints parameters, memory and operations of the published sizes; the days follow from an assumed rate."""
    print("float32 weights, gradients, AdamW, averaged weights: 20 bytes a parameter, by FSDP a share of it; bfloat16")
    print(
        f"activations; days of 1 M steps of 512 x 1024 tokens, and of 7 rounds of SDTT, at {cfg.tflops:g} TFLOP/s a GPU"
    )
    names = (
        "million",
        "GB of states",
        "on 8 GPUs",
        "GB a sequence",
        "GFLOP a token",
        "days, 1 GPU",
        "8 GPUs",
        "SDTT, 8 GPUs",
    )
    print(f"{'':8s}" + "".join(f"{name:>15s}" for name in names))
    for name, (L, C, H) in PUBLISHED.items():
        config = GPTConfig(block_size=length, vocab_size=V, n_layer=L, n_embd=C, n_head=H, tie_weights=False)
        config = GPTConfig(**{**vars(config), "mlp_bias": True, "ln_bias": True, "head_bias": True})
        model = GPT(config)
        n = sum(p.numel() for p in model.parameters())
        forward = 2 * 12 * L * C * C + 4 * L * length * C + V * C  # per token; the head on the masked half of them
        days = 3 * forward * 1e6 * 512 * 1024 / cfg.tflops / 1e12 / 86400
        # an SDTT step is the student's 3 forwards, 2 of the teacher, and its head once more
        sdtt = (5 * forward + V * C) * 7e4 * 128 * 1024 / cfg.tflops / 1e12 / 86400
        numbers = (n / 1e6, 20 * n / 1e9, 20 * n / 8e9, saved_for_backward(model, length) / 1e9, 3 * forward / 1e9)
        print(f"{name:8s}" + "".join(f"{x:15.2f}" for x in (*numbers, days, days / 8, sdtt / 8)), flush=True)


def main(cfg):
    if cfg.work == "scale":
        return scale()
    if cfg.work in ("all", "ngram"):
        for who, n in (("twin", 10**6), ("ours", 10**6), ("ours", 10**7)):
            r = run("ngram", "A", who, n)
            fit, query, mb = r["fit_s"], r["ms"], r["peak_mb"]
            print(f"{who}: the trigrams of {n:,} tokens in {fit:.1f} s, {query:.2f} ms a query, {mb} MB")
    if cfg.work == "ngram":
        return
    works = ["ar", "diffusion", "sdtt", "sample", "decode"] if cfg.work == "all" else [cfg.work]
    shapes = ["A", "B"] if cfg.shape == "all" else [cfg.shape]
    print(f"{pick_device()[2]}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds")
    print(f"{'work':24s} {'twin':>8s} {'ours':>8s} {'ratio':>6s} {'floor':>7s} {'twin MB':>8s} {'our MB':>7s}")
    for work, name in [(w, s) for w in works for s in shapes]:
        counts = [cfg.steps] if cfg.steps else [16, 64, 1024] if name == "A" else [16, 64]
        for steps in counts if work == "sample" else [0]:
            twin, ours = (run(work, name, who, steps) for who in ("twin", "ours"))
            label = {"sample": f"sample 4 x 256, {steps} steps", "decode": "decode, per token"}.get(
                work, f"{work} step"
            )
            print(
                f"{name} {label:22s} {twin['ms']:8.1f} {ours['ms']:8.1f} {twin['ms'] / ours['ms']:6.1f} "
                f"{ours['floor_ms']:7.1f} {twin['peak_mb']:8d} {ours['peak_mb']:7d}  {ours.get('goes', '')}",
                flush=True,
            )


if __name__ == "__main__":
    if cfg.who == "both":
        main(cfg)
    else:
        print(json.dumps(measure(cfg.work, cfg.shape, cfg.who, cfg.steps)))
