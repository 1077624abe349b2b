"""
python -m pytest tests/test_nvidia.py          a GPU that torch does not use, and what to do
"""

import subprocess
import types

import pytest
import torch

from plumbing import hardware, nvidia
from plumbing.hardware import pick_device


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for cached in (nvidia.why_unused, hardware.say_unused):
        cached.cache_clear()
    yield
    for cached in (nvidia.why_unused, hardware.say_unused):
        cached.cache_clear()


def machine(monkeypatch, driver, cuda, version="2.13.0"):
    """Pretends to have a GPU with that driver ('' for none), and a torch built for that CUDA."""
    nvidia.why_unused.cache_clear()
    monkeypatch.setattr(nvidia, "driver_version", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_torch_for_cpus_beside_a_gpu_is_said_with_the_command(monkeypatch):
    for driver, cuda in (("580.65.06", "cu130"), ("550.54", "cu126"), ("unknown", "cu130")):
        machine(monkeypatch, driver, None, "2.13.0+cpu")
        assert nvidia.why_unused() == (
            f"An NVIDIA GPU is here (driver {driver}), but torch 2.13.0+cpu is built for CPUs "
            f"only. For the GPU: pip install torch==2.13.0+{cuda} "
            f"--index-url https://download.pytorch.org/whl/{cuda}"
        )


def test_a_driver_too_old_for_the_build_is_said_with_both_ways_out(monkeypatch):
    machine(monkeypatch, "570.86.10", "13.0", "2.13.0+cu130")
    said = nvidia.why_unused()
    assert "driver 570.86.10 is too old for torch 2.13.0+cu130, built for CUDA 13.0" in said
    assert "install driver 580 or newer" in said and "pip install torch==2.13.0+cu126 " in said
    machine(monkeypatch, "470.57", "12.6", "2.13.0+cu126")  # which has that build already
    assert nvidia.why_unused().endswith("install driver 525 or newer")
    machine(monkeypatch, "470.57", None, "2.13.0+cpu")
    assert "For the GPU, with driver 525 or newer: pip install torch==2.13.0+cu126" in (
        nvidia.why_unused()
    )


def test_a_cuda_that_does_not_start_is_said_in_its_own_words(monkeypatch):
    def init():
        raise RuntimeError("No CUDA GPUs are available\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    for driver in ("580.65.06", "unknown"):
        machine(monkeypatch, driver, "13.0")
        said = nvidia.why_unused()
        assert f"driver {driver}" in said and said.endswith("start: No CUDA GPUs are available")


def test_nothing_is_said_without_a_gpu_or_where_it_is_hidden(monkeypatch, capsys):
    for cuda in (None, "13.0"):  # pip's torch on a laptop is built for CUDA
        machine(monkeypatch, "", cuda)
        assert nvidia.why_unused() == ""
        assert pick_device(dtype="float32")[2] in (
            "cpu (no GPU is here), float32",
            "mps (an Apple GPU is here), float32",
        )
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        machine(monkeypatch, "580.65.06", None)
        assert nvidia.why_unused() == ""
    assert capsys.readouterr().out == ""


def test_the_line_comes_once_a_run_and_the_cpu_is_used(monkeypatch, capsys, error_of):
    machine(monkeypatch, "570.86.10", "13.0")
    for _ in range(2):
        assert pick_device(dtype="float32")[2] == "cpu (the GPU is not used), float32"
    assert capsys.readouterr().out.count("is too old for torch") == 1
    said = error_of(pick_device, "cuda", "float32")
    assert said.startswith("device is 'cuda'. An NVIDIA GPU is here, but its driver 570.86.10")


def test_a_gpu_older_than_the_build_is_not_used(monkeypatch):
    for capability, said in (((6, 1), "too old"), ((7, 5), ""), ((12, 0), "")):
        machine(monkeypatch, "580.65.06", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "sm_120"])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1080")
        assert said in nvidia.why_unused() and bool(said) == bool(nvidia.why_unused())
        if said:
            assert "GTX 1080 (sm_61)" in nvidia.why_unused() and "cu126" in nvidia.why_unused()


def test_the_driver_is_what_nvidia_smi_says_if_it_finds_a_gpu(monkeypatch):
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: f"/usr/bin/{name}")
    for status, out, found in ((0, "580.65.06\n580.65.06\n", "580.65.06"), (9, "no devices\n", "")):
        said = types.SimpleNamespace(returncode=status, stdout=out)
        monkeypatch.setattr(nvidia.subprocess, "run", lambda *args, said=said, **kw: said)
        assert nvidia.driver_version() == found

    # without the program: a container sees its host's driver, but a GPU only if it has one
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: None)
    for devices in ([], ["/dev/nvidia0"]):
        monkeypatch.setattr(nvidia.glob, "glob", lambda pattern, found=devices: found)
        assert bool(nvidia.driver_version()) == bool(devices)
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: f"/usr/bin/{name}")

    def hang(command, **kw):
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(nvidia.subprocess, "run", hang)
    assert nvidia.driver_version() == "unknown"
