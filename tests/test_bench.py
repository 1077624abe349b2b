"""
python -m pytest tests/test_bench.py          the benchmark runs, and its arithmetic is right
"""

import contextlib
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


def test_a_gpus_rows_are_as_large_as_its_memory_and_rate_allow():
    T4 = {"free_gb": 15, "rate": 26e12}
    RTX_4090 = {"free_gb": 24, "rate": 150e12}
    H100 = {"free_gb": 79, "rate": 600e12}
    for gpu in (T4, RTX_4090, H100):
        for work in ("ar", "diffusion", "sdtt"):
            batch = bench.batch_that_fits(work, **gpu)
            L, C, V, B, T = bench.SHAPES["small"]
            gb = bench.gb_of_a_step(work, L, C, V, T, batch, gpu.get("low", 2))
            assert 1 <= batch <= B and gb < 0.8 * gpu["free_gb"]
            assert gpu is not H100 or batch == B
    assert bench.batch_that_fits("sdtt", **RTX_4090) == 8
    assert bench.batch_that_fits("sdtt", **{**T4, "free_gb": 3}) == 0


def test_a_row_that_does_not_fit_is_left_out_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr(bench.cfg, "device", "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3e9, 16e9))
    made = bench.make_what_fits("sdtt", "sdpa", "cuda", contextlib.nullcontext(), rate=6e12)
    assert made == (None, None)
    assert capsys.readouterr().out == "sdtt: left out, 3.0 GB are free\n"


def test_all_of_a_gpus_sampling_fits_a_few_minutes():
    for rate in (6e12, 150e12, 600e12):
        grid = [(b, k) for b in (1, 8, 32) for k in (4, 16, 64, 256, 1024)]
        times = [bench.expected_seconds(b, k, rate) for b, k in grid]
        assert sum(s for s in times if s <= bench.LONGEST) < 120 and times[0] <= bench.LONGEST


def test_what_a_config_needs_is_that_of_its_shape():
    gb, n_operations = bench.of_a_config("sdtt_openwebtext_24gb")
    assert gb == pytest.approx(8.8 + 0.65 + 2 * 2.47, abs=0.1)  # the table's, a teacher, its head
    whole = 10 * n_operations / 66e12 / 3600  # all of the paper's steps, in hours
    assert whole == pytest.approx(49, abs=0.1)
    for name in bench.ONE_GPU:
        assert bench.of_a_config(name)[0] < 24 * 0.8


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
