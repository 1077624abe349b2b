"""
What a run gets from the machine: the device, the number format that is fast on it.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
import sysconfig
import time

import torch

from configurator import UserError, choose, first_line, print_once
from plumbing.nvidia import why_unused


def default_device():
    """-> the name of the best device that is here, and why."""
    if why_unused():
        say_unused()
        return "cpu", "the GPU is not used"
    if torch.cuda.is_available():
        return "cuda", "a GPU is here"
    if torch.backends.mps.is_available():
        return "mps", "an Apple GPU is here"
    return "cpu", "no GPU is here"


@functools.lru_cache  # once in a run
def say_unused():
    print_once(why_unused())


def check_device(device):
    """Raises UserError unless this torch sees it: 'cpu', 'cuda', 'cuda:1', 'mps'."""
    kind, _, number = device.partition(":")
    choose("device", kind, ("cuda", "mps", "cpu"))
    if kind == "cuda" and (number in ("", "0") or not torch.cuda.is_available()) and why_unused():
        raise UserError(f"device is {device!r}. {why_unused()}")
    n_devices = 1
    if kind == "cuda":
        n_devices = torch.cuda.device_count()
    elif kind == "mps":
        n_devices = int(torch.backends.mps.is_available())
    number = number or "0"
    if not number.isdecimal() or int(number) >= n_devices:
        raise UserError(
            f"device is {device!r}, but torch finds {n_devices} of that kind. Use --device=cpu."
        )


# a value of the knob `dtype` -> torch's
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device="", dtype=""):
    """
    '' or a torch device, '' or a number format of DTYPES -> device, an autocast context, what was
    chosen and why (str).
    """
    why = "as asked"
    if not device:
        device, why = default_device()
    check_device(device)
    kind = device.split(":")[0]
    if dtype:
        choose("dtype", dtype, tuple(DTYPES))
        if dtype != "float32" and dtype not in fast_dtypes(device):
            warn_slow(device, dtype)
    else:
        dtype = fast_dtypes(device)[0]
        if dtype != "bfloat16":
            why += ", without fast bfloat16"
    autocast = contextlib.nullcontext()
    if dtype != "float32":
        autocast = torch.autocast(kind, DTYPES[dtype])
    if kind == "cpu":
        keep_freed_memory()
    return torch.device(device), autocast, f"{device} ({why}), {dtype}"


def dtype_of(autocast):
    """A context of pick_device -> the dtype of matrix products in it."""
    return getattr(autocast, "fast_dtype", torch.float32)


def pick_for_sampling(causal, device="", dtype=""):
    """
    -> an autocast context to sample in, and what was chosen and why, as pick_device. A GPT's cached
    step multiplies one row, and bfloat16 on a CPU is fast for many rows only: float32 there, unless
    dtype asks for the other.
    """
    picked, autocast, note = pick_device(device, dtype)
    if not dtype and causal and picked.type == "cpu":
        return contextlib.nullcontext(), note.rpartition(", ")[0] + ", float32"
    return autocast, note


def frozen_dtype(device="", dtype=""):
    """
    -> the dtype in which the weights of hf:NAME are loaded, which are not trained: bfloat16 on a
    GPU that computes in it (such models are published in it), else float32.
    """
    picked, autocast, _ = pick_device(device, dtype)
    on_gpu = picked.type == "cuda" and dtype_of(autocast) == torch.bfloat16
    return torch.bfloat16 if on_gpu else torch.float32


def check_attention(attention, device="", dtype=""):
    """Raises UserError for flash_attn where it cannot run. device and dtype as in pick_device."""
    if attention != "flash_attn":
        return
    picked, autocast, note = pick_device(device, dtype)
    new_gpu = picked.type == "cuda" and "bfloat16" in fast_dtypes(str(picked))
    if not new_gpu or dtype_of(autocast) == torch.float32:
        raise UserError(
            f"attention is 'flash_attn', which takes 16 bits on a GPU of sm_80 or newer. This is "
            f"{note}: --attention=sdpa."
        )


def matmul_dtype(x):
    """A tensor -> the number format in which its products are computed here, by autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@functools.lru_cache  # measured once in a run
def fast_dtypes(device):
    """
    'cuda:1' | 'mps' | 'cpu' -> the number formats that are fast on it, the best first. On a CPU
    bfloat16 is measured, and must be clearly faster than float32.

    Why measured: among CPUs with avx512_bf16, bfloat16 is twice as fast as float32 on one and half
    as fast on another. Without that instruction torch emulates it, a hundred times slower.
    """
    if device.startswith("cuda"):
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bfloat16", "float16", "float32"
        if major == 7:  # a T4, a V100: eight times as fast as in float32
            return "float16", "float32"
    if device == "cpu":
        rates = {name: matmul_tflops(device, DTYPES[name]) for name in ("bfloat16", "float32")}
        if rates["bfloat16"] > 1.2 * rates["float32"]:
            return "bfloat16", "float32"
    return ("float32",)


def matmul_tflops(device, dtype, n=256):
    """-> TFLOP/s of an n x n matrix product, the best of three."""
    a = torch.ones(n, n, device=device, dtype=dtype)  # no random numbers: a run's own stay
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times[1:]) / 1e12


def prepare_for_sampling(model, autocast=None):
    """
    What is done once before a model writes, so that no text's time includes it. autocast: the
    context it will write in, None for the one that is on.
    """
    if model.config.causal:
        store_for_decoding(model)
    device = model.wte.weight.device
    if device.type == "cuda":
        # the first call loads CUDA's libraries and kernels, in a second or more
        with torch.no_grad(), autocast or contextlib.nullcontext():
            model(torch.zeros(1, 2, dtype=torch.long, device=device))
        torch.cuda.synchronize(device)


def store_for_decoding(model):
    """
    Stores matrices with more outputs than inputs (the first of an MLP, the head) transposed in
    memory; values and shapes stay. Decoding on a CPU is limited by reading the weights, and MKL's
    product of one row reads these up to three times as fast in this order.
    """
    if not torch.backends.mkl.is_available() or model.wte.weight.device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            outputs, inputs = module.weight.shape
            if outputs > inputs:
                module.weight.data = module.weight.data.t().contiguous().t()


# --------------------------------------------------------------------------------------------------
# torch.compile


def compile_as_asked(model, device, asked):
    """asked: 'on', 'off', or 'auto', which compiles on a GPU if that is possible."""
    if asked == "on" or (asked == "auto" and device.type == "cuda"):
        compile_trunk(model, device, required=asked == "on")


def compile_trunk(model, device, required=True):
    """
    Compiles model.hidden. If that is not possible it stays as it is, and a line says so; if
    required, raises UserError.
    """
    reason = why_not_compile(device)
    if reason:
        return say_not_compiled(reason, required)
    plain = model.hidden
    compiled = torch.compile(plain)

    def compiled_or_plain(*args, **kw):
        try:
            return compiled(*args, **kw)
        except torch.OutOfMemoryError:  # it compiled; without the compiler it would need more
            raise
        except Exception as error:  # a compiler fails in too many ways to list
            failure = f"{type(error).__name__}, {first_line(error)}"
        h = plain(*args, **kw)  # if this fails too, it was not the compiler
        model.hidden = plain
        say_not_compiled(failure, required)
        return h

    model.hidden = compiled_or_plain


@functools.lru_cache  # once in a run, which may have rounds
def say_not_compiled(reason, required):
    if required:
        raise UserError(f"--compile=on does not work here: {reason}. Use --compile=off.")
    print_once(f"Not compiled, so slower: {reason}. (--compile=off hides this line.)")


def why_not_compile(device):
    """-> what torch.compile needs and does not find here; '' where all of it seems to be here."""
    windows = os.name == "nt"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton needs a GPU of sm_70 or newer"
        if not importlib.util.find_spec("triton"):
            return f"Triton is missing: pip install {'triton-windows' if windows else 'triton'}"
    if device.type == "mps" or (device.type == "cuda" and windows):
        return ""  # triton-windows brings its own compiler
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++", "cl"]
    if device.type == "cuda":  # Triton's are of C
        compilers = [os.environ.get("CC", "gcc"), "gcc", "clang", "cc"]
    if not any(map(shutil.which, compilers)):
        return f"none of the compilers it can use is here: {', '.join(compilers[1:])}"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "it needs Python.h (on Debian and Ubuntu: apt install python3-dev)"
    return ""


@functools.lru_cache  # once in a run
def warn_slow(device, dtype):
    factor = matmul_tflops(device, torch.float32) / matmul_tflops(device, DTYPES[dtype])
    if factor <= 1:
        return
    slow = f"a product takes {factor:.1f} times as long as in float32 here"
    print_once(f"{device} does not multiply {dtype} fast: {slow}. Leave --dtype out.")


def keep_freed_memory():
    """
    glibc hands every freed tensor over 32 MB back to the kernel, and its pages are faulted in again
    in the next step. Keeping them makes the step of a model with a large vocabulary 1.3x faster.
    Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: take no block from mmap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
