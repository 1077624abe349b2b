"""
Random numbers that nothing else can disturb: every use has a generator of its own, seeded by what
it is for.
"""

import hashlib

import torch


def seeded(*key, device="cpu"):
    """
    Any ints and strings -> a torch.Generator seeded by all of them. Same key, same numbers; other
    key, others.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    # an Apple GPU draws no float64: its numbers come from the CPU
    device = "cpu" if "mps" in str(device) else device
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(shape, generator, device, dtype=torch.float32):
    """
    -> numbers in [0, 1) of that shape on device, drawn where the generator lives (None: torch's
    own).
    """
    where = generator.device if generator else "cpu"
    return torch.rand(shape, dtype=dtype, device=where, generator=generator).to(device)
