"""
python -m pytest tests/test_hardware.py

the device, and the number format that it is fast in
"""

import types

import pytest
import torch
from conftest import knobs, run, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import eval as evaluation
import sample as S
import train
from plumbing import console, hardware
from plumbing.hardware import (
    check_attention,
    frozen_dtype,
    pick_device,
    pick_for_sampling,
)


def cpu(monkeypatch, float32, bfloat16):
    """Pretends to be a CPU of such rates, in TFLOP/s."""
    rates = {torch.float32: float32, torch.bfloat16: bfloat16, torch.float16: float32 / 2}
    monkeypatch.setattr(hardware, "matmul_tflops", lambda device, dtype, n=256: rates[dtype])
    hardware.fast_dtypes.cache_clear()


@pytest.fixture(autouse=True)
def measured_anew():
    yield
    hardware.fast_dtypes.cache_clear()


def test_a_cpu_gets_bfloat16_only_where_it_multiplies_it_faster(monkeypatch):
    for float32, bfloat16, dtype in (
        (0.36, 1.3, "bfloat16"),  # AMX
        (0.16, 0.30, "bfloat16"),  # avx512_bf16 on one CPU
        (0.27, 0.15, "float32"),  # avx512_bf16 on another
        (0.30, 0.06, "float32"),  # AVX-512 without it
        (0.11, 0.0009, "float32"),  # a laptop
    ):
        cpu(monkeypatch, float32, bfloat16)
        _, autocast, note = pick_device("cpu")
        assert note.endswith(dtype) and isinstance(autocast, torch.autocast) == (
            dtype == "bfloat16"
        )
        assert ("without fast bfloat16" in note) == (dtype == "float32")


def test_a_gpt_on_a_cpu_is_sampled_in_float32_unless_asked_otherwise(monkeypatch):
    cpu(monkeypatch, 0.36, 1.3)
    for causal, dtype, picked in (
        (True, "", "float32"),
        (True, "bfloat16", "bfloat16"),
        (False, "", "bfloat16"),
        (False, "float32", "float32"),
    ):
        autocast, note = pick_for_sampling(causal, "cpu", dtype)
        assert note == f"cpu (as asked), {picked}"
        assert isinstance(autocast, torch.autocast) == (picked == "bfloat16")


def test_a_report_says_what_was_computed_in_which_format(monkeypatch):
    cpu(monkeypatch, 0.36, 1.3)
    note = "cpu (as asked), bfloat16"
    both = {"a": (tiny_model(), {}), "b": (tiny_model(causal=True), {})}
    for models, parts, dtype, said in (
        (both, ["nelbo"], "", "float32"),
        (both, ["genppl"], "", "diffusion models sampled in bfloat16, all else in float32"),
        (both, ["genppl"], "float32", "float32"),
        (both, ["latency"], "bfloat16", "diffusion models and GPTs sampled in bfloat16, all else"),
        (both, ["genppl"], "float16", "diffusion models and GPTs sampled in float16, all else in"),
        ({}, ["genppl"], "", "float32"),
    ):
        cfg = types.SimpleNamespace(device="cpu", dtype=dtype)
        found = evaluation.with_formats(note, models, parts, cfg)
        assert found.startswith(f"cpu (as asked), {said}")


def test_the_emulation_variables_reach_it():
    code = "from plumbing.hardware import pick_device; print(pick_device('cpu')[2])"
    out, _ = run("-c", code, env={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert out == "cpu (as asked, without fast bfloat16), float32\n"


def gpu(monkeypatch, capability):
    """Pretends that there is one of that capability: (8, 0) stands for sm_80."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # emulated at least
    hardware.fast_dtypes.cache_clear()


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_gpu_gets_the_format_of_16_bits_that_it_multiplies(monkeypatch):
    for capability, note in (
        ((8, 0), "cuda (a GPU is here), bfloat16"),
        ((7, 5), "cuda (a GPU is here, without fast bfloat16), float16"),  # a T4
        ((7, 0), "cuda (a GPU is here, without fast bfloat16), float16"),
        ((6, 1), "cuda (a GPU is here, without fast bfloat16), float32"),
    ):
        gpu(monkeypatch, capability)
        assert pick_device()[2] == note
        assert pick_for_sampling(True)[1] == note


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_both_formats_of_16_bits_are_fast_on_a_new_gpu(monkeypatch, capsys):
    gpu(monkeypatch, (8, 9))
    assert pick_device("cuda", "float16")[2] == "cuda (as asked), float16"
    assert capsys.readouterr().out == ""  # nothing about a slow one


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_frozen_weights_are_bfloat16_on_a_gpu_that_computes_in_it(monkeypatch):
    gpu(monkeypatch, (8, 0))
    assert frozen_dtype() == torch.bfloat16
    assert frozen_dtype("cuda", "float32") == frozen_dtype("cpu") == torch.float32
    gpu(monkeypatch, (7, 5))
    assert frozen_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_flash_attention_where_it_cannot_run_is_one_line(monkeypatch, error_of):
    assert "--attention=sdpa" in error_of(check_attention, "flash_attn", "cpu", "bfloat16")
    gpu(monkeypatch, (7, 5))
    said = error_of(check_attention, "flash_attn")
    assert "takes 16 bits on a GPU of sm_80 or newer" in said and "float16: --attention" in said
    gpu(monkeypatch, (8, 0))
    assert "float32: --attention" in error_of(check_attention, "flash_attn", "cuda", "float32")
    check_attention("flash_attn")
    check_attention("sdpa", "cpu")


def test_an_unknown_number_format_is_one_line(error_of):
    said = error_of(pick_device, "cpu", "half")
    assert "dtype is 'half'" in said and "float16" in said


def test_asking_for_emulated_bfloat16_says_how_much_slower_it_is(monkeypatch, capsys):
    cpu(monkeypatch, 0.11, 0.001)
    hardware.warn_slow.cache_clear()
    for _ in range(2):  # said once
        assert pick_device("cpu", "bfloat16")[2] == "cpu (as asked), bfloat16"
    assert (
        capsys.readouterr().out.count("a product takes 110.0 times as long as in float32 here") == 1
    )
    pick_device("cpu", "float32")
    assert capsys.readouterr().out == ""


class NoHalves(TorchDispatchMode):
    """Fails at the first operation that takes or gives a tensor of 16-bit floats."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            assert not torch.is_tensor(x) or x.dtype not in (torch.bfloat16, torch.float16), f
        return out


def test_nothing_runs_in_16_bits_where_they_are_emulated(markov, tmp_path, monkeypatch):
    """Not the forward, not the optimizer, not a sample, not a metric."""
    cpu(monkeypatch, 0.11, 0.001)
    with NoHalves():
        for objective in ("diffusion", "ar"):
            train.main(
                knobs(
                    tmp_path / objective,
                    dataset=markov,
                    objective=objective,
                    ema=0.9,
                    sample_interval=3,
                )
            )
        ckpt = f"{tmp_path}/diffusion/ckpt.pt,{tmp_path}/ar/ckpt.pt"
        few = dict(
            num_samples=4,
            eval_blocks=8,
            steps=[2],
            evaluator=f"{tmp_path}/ar/ckpt.pt",
            out=str(tmp_path / "out"),
        )
        what = dict(what="nelbo,genppl,selfbleu,latency", latency_batch=[1])
        evaluation.main(
            types.SimpleNamespace(**{**vars(evaluation.cfg), "ckpt": ckpt, **few, **what})
        )
        S.main(
            types.SimpleNamespace(**{**vars(S.cfg), "ckpt": ckpt.split(",")[1], "draft": "lookup"})
        )
    with NoHalves(), pytest.raises(AssertionError):
        torch.ones(1).bfloat16()


def test_no_test_sees_a_gpu_nor_does_what_it_runs():
    out, _ = run("-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    assert out == "-1\n" and torch.cuda.device_count() == 0


def test_the_speed_of_a_product_is_measured():
    assert 1e-6 < hardware.matmul_tflops("cpu", torch.float32, 64) < 100


def test_what_compiling_lacks_is_named(monkeypatch):
    def lacks(kind):
        return hardware.why_not_compile(torch.device(kind))

    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(hardware.os.path, "exists", lambda path: True)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert lacks("cpu") == lacks("cuda") == lacks("mps") == ""
    monkeypatch.setattr(hardware.os.path, "exists", lambda path: False)
    assert "needs Python.h" in lacks("cpu") and "needs Python.h" in lacks("cuda")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert "is here: g++, clang++, cl" in lacks("cpu") and "is here: gcc, clang, cc" in lacks(
        "cuda"
    )
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    assert lacks("cuda") == "Triton is missing: pip install triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "sm_70 or newer" in lacks("cuda") and lacks("mps") == ""


def broken_compile(f):
    """A torch.compile whose compiler fails when it is needed."""

    def compiled(*args, **kw):
        raise RuntimeError("Python.h: no such file\nand a page of what followed from it")

    return compiled


def test_auto_falls_back_to_what_is_not_compiled_with_a_line(monkeypatch, capsys):
    hardware.say_not_compiled.cache_clear()
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "Triton is missing")
    x = torch.zeros(1, 8, dtype=torch.long)
    expected = tiny_model()(x)
    models = [tiny_model(), tiny_model()]
    for model in models:  # as the students of two rounds
        hardware.compile_trunk(model, torch.device("cpu"), required=False)
    said = capsys.readouterr().out
    assert said.count("Not compiled, so slower: Triton is missing.") == said.count("\n") == 1
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "")
    monkeypatch.setattr(torch, "compile", broken_compile)
    for model in models:
        hardware.compile_trunk(model, torch.device("cpu"), required=False)
        for _ in range(2):
            assert torch.equal(model(x), expected)
    said = capsys.readouterr().out
    assert said.count("slower: RuntimeError, Python.h: no such file.") == said.count("\n") == 1


def test_compile_on_that_does_not_work_raises_one_line(monkeypatch, error_of, markov, tmp_path):
    run_of_training = knobs(tmp_path / "a", dataset=markov, compile="on")
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "Triton is missing")
    said = error_of(train.main, run_of_training)
    assert said == "--compile=on does not work here: Triton is missing. Use --compile=off."
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "")
    monkeypatch.setattr(torch, "compile", broken_compile)
    said = error_of(train.main, run_of_training)
    assert "here: RuntimeError, Python.h: no such file. Use --compile=off." in said


def test_an_error_of_the_model_is_not_taken_for_the_compilers(monkeypatch):
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda f: f)
    model = tiny_model()
    hardware.compile_trunk(model, torch.device("cpu"), required=False)
    with pytest.raises(IndexError):
        model(torch.full((1, 8), 99))


def test_what_an_apple_gpu_cannot_do_is_one_line_with_the_way_out(capsys):
    error = NotImplementedError(
        "The operator 'aten::x' is not currently implemented for the MPS device. ..."
    )
    console.say_error(type(error), error, None)
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "PYTORCH_ENABLE_MPS_FALLBACK=1" in said and "--device=cpu" in said
    )


def test_what_another_device_cannot_do_is_not_said_to_be_an_apple_gpus(capsys):
    """torch lists all of its backends in the message."""
    error = NotImplementedError(
        "Could not run 'aten::x' with arguments from the 'CUDA' backend. MPS: ..."
    )
    console.say_error(type(error), error, None)
    assert "Apple" not in capsys.readouterr().err


@torch.no_grad()
def test_a_model_stored_for_decoding_has_the_same_values():
    model = tiny_model(V=90, causal=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    x = torch.randint(90, (2, 9))
    expected = model(x)
    hardware.store_for_decoding(model)
    if torch.backends.mkl.is_available():
        assert model.blocks[0].mlp.up.weight.t().is_contiguous()
        assert model.wte.weight.t().is_contiguous()
    assert model.blocks[0].mlp.down.weight.is_contiguous()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    torch.testing.assert_close(model(x), expected)


class Elsewhere(torch.nn.Module):
    """A diffusion model that says which device it is on, and notes how it is called."""

    def __init__(self, device):
        super().__init__()
        self.config = types.SimpleNamespace(causal=False)
        self.wte = types.SimpleNamespace(weight=types.SimpleNamespace(device=device))
        self.calls = []

    def forward(self, x):
        self.calls.append((x.shape, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))


def test_a_gpus_first_call_comes_before_the_clock_and_a_cpu_has_none(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **kw: zeros(*shape, **kw))
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device, calls in (("cuda", [((1, 2), False, True)]), ("cpu", [])):
        model = Elsewhere(torch.device(device))
        hardware.prepare_for_sampling(model, torch.autocast("cpu", torch.bfloat16))
        assert model.calls == calls
    assert waited == [torch.device("cuda")]
