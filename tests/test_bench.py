"""
python -m pytest tests/test_bench.py          the benchmark runs, and its arithmetic is right
"""

import json
import math

import bench
import pytest
import torch
from conftest import run

from model import GPT, GPTConfig


def test_the_benchmark_runs_at_toy_size():
    """Every row beside its twin, and what a GPU would run, here on the CPU."""
    out, _ = run("tests/bench.py", "--toy=True", "--repeats=1", "--profile=True")
    lines = out.splitlines()
    for row in set(bench.ROWS) - {"memory"}:
        twin, ours, ratio, over_floor, *mb = next(
            line for line in lines if line.startswith(row)
        ).split()[1:7]
        low, high = (
            (float(twin) - 0.05) / (float(ours) + 0.05),
            (float(twin) + 0.05) / max(float(ours) - 0.05, 1e-9),
        )
        assert (
            low - 0.06 < float(ratio) < high + 0.06 and float(over_floor) > 0
        )  # all three are rounded
        assert all(50 < int(n) < 5000 for n in mb)
    for said in (
        "agree with their literal twins",
        "train diffusion",
        "SDTT step",
        "diffusion, 32 steps",
        "at alpha",
    ):
        assert said in out
    assert (
        sum(line.strip().startswith("products ") for line in lines) == 6
    )  # where the time of a training step goes
    assert sum("64 GPUs" in line for line in lines) == 3


def test_memory_of_training_is_what_the_shapes_say():
    """The parameters exactly, what a backward keeps to 2 %, and the peak of a process that trains to a fifth."""
    L, C, V, T, B = 3, 128, 100, 64, 4
    shape = dict(block_size=T, vocab_size=V, n_layer=L, n_embd=C, n_head=4, tie_weights=False)
    model = GPT(GPTConfig(**shape, mlp_bias=True, ln_bias=True, head_bias=True))
    assert sum(p.numel() for p in model.parameters()) == bench.parameters(L, C, V)
    kept, own = (
        {},
        {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())},
    )

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:  # x is held, so that no address comes twice
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(torch.randint(V, (B, T)))
    assert sum(n for n, _ in kept.values()) / 1e9 == pytest.approx(
        bench.gb_of_training(L, C, V, T, B, 1, low=4)[2], rel=0.02
    )
    states, gathered, _ = bench.gb_of_training(L, C, V, T, B, 8)
    assert states * 8 == pytest.approx(20e-9 * bench.parameters(L, C, V)) and gathered > 0
    peaks = []
    for layers in (
        2,
        10,
    ):  # the difference: what is in every process, torch itself and the head's chunks, is not ours
        code = f"""if True:
            import itertools, json, sys
            sys.path[:0] = ["tests", "."]
            import torch, bench
            from model import GPT, GPTConfig
            shape = dict(n_layer={layers}, n_embd=384, n_head=6, block_size=128, vocab_size=100, tie_weights=False)
            model = GPT(GPTConfig(**shape, mlp_bias=True, ln_bias=True, head_bias=True))
            averages = [p.detach().clone() for p in model.parameters()]
            x0 = torch.randint(100, (8, 128))
            loss, _ = bench.loss_and_twin("diffusion", model, x0, itertools.count())
            step = bench.stepper(model, loss, torch.autocast("cpu", enabled=False))
            bench.pick_device("cpu", "float32")
            for _ in range(3):
                step()
            print(json.dumps(bench.peak_mb()))"""
        peaks.append(json.loads(run("-c", code)[0].splitlines()[-1]) / 1e3)
    said = [sum(bench.gb_of_training(layers, 384, 100, 128, 8, 1, low=4)) for layers in (2, 10)]
    assert math.isclose(peaks[1] - peaks[0], said[1] - said[0], rel_tol=0.2), (peaks, said)
