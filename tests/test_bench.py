"""
python -m pytest tests/test_bench.py          the benchmark runs, and its arithmetic is right
"""

import json

import bench
import pytest
import torch
from conftest import run

from model import GPT, GPTConfig


def test_the_benchmark_runs_at_toy_size():
    """Every row beside its reference, and what a GPU would run, here on the CPU."""
    out, _ = run("tests/bench.py", "--toy=True", "--repeats=1", "--profile=True")
    lines = out.splitlines()
    for row in set(bench.ROWS) - {"memory"}:
        line = next(line for line in lines if line.startswith(row))
        literal, ours, ratio, over_floor, *mb = map(float, line.split()[1:7])
        # all of them are rounded
        low = (literal - 0.05) / (ours + 0.05) - 0.06
        high = (literal + 0.05) / max(ours - 0.05, 1e-9) + 0.06
        assert low < ratio < high and over_floor > 0
        assert all(50 < n < 5000 for n in mb)
    for said in (
        "agree with the reference",
        "train diffusion",
        "SDTT step",
        "diffusion, 32 steps",
        "at alpha",
    ):
        assert said in out
    # where the time of a training step goes
    assert sum(line.strip().startswith("products ") for line in lines) == 6
    assert sum("64 GPUs" in line for line in lines) == 3


def test_parameters_and_states_are_what_the_shapes_say():
    L, C, V, T = 3, 128, 100, 64
    shape = dict(block_size=T, vocab_size=V, n_layer=L, n_embd=C, n_head=4, tie_weights=False)
    model = GPT(GPTConfig(**shape, mlp_bias=True, ln_bias=True, head_bias=True))
    assert sum(p.numel() for p in model.parameters()) == bench.parameters(L, C, V)
    states, gathered, *_ = bench.gb_of_training(L, C, V, T, batch=4, world=8)
    assert states * 8 == pytest.approx(20e-9 * bench.parameters(L, C, V)) and gathered > 0


def test_what_a_backward_keeps_is_what_the_shapes_say():
    L, C, V, T, B = 3, 128, 100, 64, 4
    shape = dict(block_size=T, vocab_size=V, n_layer=L, n_embd=C, n_head=4, tie_weights=False)
    model = GPT(GPTConfig(**shape, mlp_bias=True, ln_bias=True, head_bias=True))
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), x  # x is held: no address comes twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(torch.randint(V, (B, T)))
    activations = bench.gb_of_training(L, C, V, T, B, 1, low=4)[2]
    assert sum(n for n, _ in kept.values()) / 1e9 == pytest.approx(activations, rel=0.02)


TRAINING = """if True:
    import itertools, json, sys
    sys.path[:0] = ["tests", "."]
    import torch, bench
    from model import GPT, GPTConfig
    shape = dict(n_layer={L}, n_embd={C}, n_head=6, block_size=128, vocab_size={V})
    shape |= dict(mlp_bias=True, ln_bias=True, head_bias=True, tie_weights=False)
    model = GPT(GPTConfig(**shape))
    averages = [p.detach().clone() for p in model.parameters()]
    x0 = torch.randint({V}, (8, 128))
    loss = bench.our_loss("diffusion", model, x0, itertools.count())
    step = bench.stepper(model, loss, torch.autocast("cpu", enabled=False))
    bench.pick_device("cpu", "float32")
    for _ in range(3):
        step()
    print(json.dumps(bench.peak_mb()))"""


@pytest.mark.parametrize("small, large", [((2, 100), (10, 100)), ((2, 100), (2, 20_000))])
def test_the_peak_of_a_training_is_what_the_shapes_say(small, large):
    """To a fifth; of the difference of two, for torch itself is in every process."""
    C = 384
    peaks = []
    calculated = []
    for L, V in (small, large):
        out, _ = run("-c", TRAINING.format(L=L, C=C, V=V))
        peaks.append(json.loads(out.splitlines()[-1]) / 1e3)
        calculated.append(sum(bench.gb_of_training(L, C, V, 128, 8, 1, low=4)))
    assert peaks[1] - peaks[0] == pytest.approx(calculated[1] - calculated[0], rel=0.2)
