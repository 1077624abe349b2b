"""
What a run gets from the machine: the device, the number format that is fast on it, and an honest forecast.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import time

import torch
from tqdm import tqdm

from configurator import UserError, choose, print_once

LAPTOP = "2 cores, AVX2, 0.11 TFLOP/s"  # what the README's times for laptops were measured on


def pick_device(device="", dtype=""):
    """'' or a torch device, '' or 'float32' | 'bfloat16' -> device, autocast context, what was chosen and why (str)."""
    why = "as asked"
    if not device:
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
        why = {"cuda": "a GPU is here", "mps": "an Apple GPU is here", "cpu": "no GPU is here"}[
            device
        ]
    kind = device.split(":")[0]
    choose("device", kind, ("cuda", "mps", "cpu"))
    n_devices = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }[kind]
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= n_devices:
        raise UserError(
            f"device is {device!r}, but this torch sees {n_devices} of that kind. Use --device=cpu."
        )
    if dtype:
        choose("dtype", dtype, ("float32", "bfloat16"))
    elif multiplies_bfloat16(kind):
        dtype = "bfloat16"
    else:
        dtype, why = "float32", why + ", without fast bfloat16"
    if dtype == "bfloat16" and not multiplies_bfloat16(kind):
        say_how_slow(device)
    if kind == "cpu":
        keep_freed_memory()
    autocast = (
        torch.autocast(kind, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    )
    return torch.device(device), autocast, f"{device} ({why}), {dtype}"


@functools.lru_cache  # measured once in a run
def multiplies_bfloat16(kind):
    """'cuda' | 'mps' | 'cpu' -> whether it multiplies bfloat16 in hardware, on a CPU also clearly faster than float32.

    The name of an instruction set does not say: with avx512_bf16 one CPU is twice as fast, another half as fast, and
    without it torch emulates, a hundred times as slowly.
    """
    if kind == "cuda":  # sm_80 and later; a T4 has none
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and product_rate(kind, torch.bfloat16) > 1.2 * product_rate(
        kind, torch.float32
    )


def product_rate(device, dtype, n=256):
    """-> TFLOP/s of an n x n matrix product, the best of three."""
    a, times = (
        torch.ones(n, n, device=device, dtype=dtype),
        [],
    )  # no random numbers: a run's own stay as they are
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times[1:]) / 1e12


def compile_trunk(model, device):
    """model.hidden becomes its compiled self. Raises UserError on a CPU without a C++ compiler, which that needs."""
    if device.type == "cpu" and not any(
        map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))
    ):
        raise UserError(
            "--compile=on needs a C++ compiler, g++, clang++ or cl, and none is here. Use --compile=off."
        )
    model.hidden = torch.compile(model.hidden)


@functools.lru_cache  # once in a run
def say_how_slow(device):
    factor = product_rate(device, torch.float32) / product_rate(device, torch.bfloat16)
    slow = f"a product takes {factor:.1f} times as long as in float32 here"
    print_once(f"{device} does not multiply bfloat16 fast: {slow}. Leave --dtype out.")


def say_forecast(n, total, seconds, laptop_minutes, device):
    """Prints how long n more steps of `total` will take if one takes so many seconds; and, if all of them take more
    than three times the README's minutes on a laptop (0: it has none), what this machine lacks.
    """
    tqdm.write(f"the other {n} steps will take about {n * seconds / 60:.1f} minutes here")
    times = total * seconds / 60 / laptop_minutes if laptop_minutes else 0
    if times > 3:
        what = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
        rate = product_rate(device, torch.float32, 1024)
        here = f"{torch.get_num_threads()} cores, {what}, now {rate:.2g} TFLOP/s in float32"
        tqdm.write(
            f"That is {times:.0f} times the README's time for a laptop ({LAPTOP}). This machine: {here}."
        )


def keep_freed_memory():
    """glibc hands every freed tensor over 32 MB back to the kernel and faults its pages in again at the next step.

    Keeping them makes the step of a model with a large vocabulary 1.3x faster. Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: take no block from mmap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
