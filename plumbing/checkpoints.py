"""
Checkpoints: written whole or not at all, read without running anything from them.
"""

import glob
import os
import re
import warnings

import torch

from configurator import UserError, first_line
from data import matching, replacing
from plumbing.foreign import what_is


def save_checkpoint(path, checkpoint):
    """Raises UserError if the disk is full; an older checkpoint is kept then."""
    try:
        with replacing(path) as f:
            torch.save(checkpoint, f)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
        kept = "The last one is still there" if os.path.exists(path) else "Nothing was saved"
        raise UserError(
            f"Could not write {path} ({first_line(error)}). {kept}. Make room."
        ) from None


def load_checkpoint(path):
    """
    -> the dict that loop.fit saved, on the CPU. Runs no code from the file. Raises UserError if it
    is missing, damaged or of another program.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint {path}. {checkpoint_hint(os.path.dirname(path))}")
    # under torchrun a process reads from the disk only the shards that it takes
    shared = "WORLD_SIZE" in os.environ
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are no checkpoints
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=shared)
    except (PermissionError, MemoryError) as error:
        raise UserError(f"Cannot read {path} ({error}).") from None
    except Exception as error:  # torch raises five different kinds for a damaged file
        why = type(error).__name__
        damaged = f"damaged or not a checkpoint ({why}). Copy or train it again"
        raise UserError(f"{path} is {what_is(path) or damaged}.") from None
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint:
        unknown = "not a nanoSDTT checkpoint: it holds no model_config"
        raise UserError(f"{path} is {what_is(path) or unknown}.")
    return checkpoint


def weights_of(checkpoint):
    """-> the averaged weights where there are any, with the buffers, which have no average."""
    return checkpoint["model"] | (checkpoint["ema"] or {})


def without_weights(checkpoint):
    """-> what it tells of its model, for callers that have the model."""
    return {k: v for k, v in checkpoint.items() if k not in ("model", "ema", "optimizer")}


def load_weights(model, weights):
    """Raises UserError where a key or a shape does not fit."""
    own = model.state_dict()
    odd = sorted(own.keys() ^ weights.keys())
    odd = odd or [key for key in own if own[key].shape != weights[key].shape]
    if odd:
        there = tuple(weights[odd[0]].shape) if odd[0] in weights else "nothing"
        here = tuple(own[odd[0]].shape) if odd[0] in own else "nothing"
        n = len(odd)
        raise UserError(
            f"The weights are another model's: {odd[0]} is {there} there, {here} here ({n} differ)."
        )
    model.load_state_dict(weights)


def checkpoint_hint(folder):
    """
    -> what a folder without the checkpoint asked for has, or the command that makes it: a config
    whose out_dir it is says it in its docstring.
    """
    if os.path.normpath(folder).startswith(os.path.join("out", "debug")):
        return "Make it with: python train.py config/debug.py, or distill.py, as that file says."
    inside = matching("*.pt", folder)
    if inside:
        return f"{folder or '.'} holds {', '.join(inside)}."
    configs = os.path.join(os.path.dirname(__file__), "..", "config", "*.py")
    for config in sorted(glob.glob(configs)):
        with open(config, encoding="utf-8") as f:
            source = f.read()
        name = os.path.basename(config)
        command = re.search(rf"((?:python|torchrun) .*config/{name})", source)
        if folder and f'out_dir = "{folder}"\n' in source and command:
            return f"Make it with: {command[1]}"
    return "Train one, for example with: make demo"


def paths_of(ckpt):
    """'a.pt,out/round_*.pt' -> the paths in that order, round_10 after round_9."""
    paths = []
    for pattern in map(str.strip, ckpt.split(",")):
        found = matching(pattern) if "*" in pattern else [pattern]
        if not found:
            hint = checkpoint_hint(os.path.dirname(pattern))
            raise UserError(f"No file matches {pattern}. {hint}")
        paths += found
    return paths
