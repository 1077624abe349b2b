"""
python -m pytest tests/test_checkpoints.py          written whole or not at all, read as data only
"""

import glob
import os
import re

import torch
from conftest import ROOT

from plumbing import checkpoints
from plumbing.checkpoints import load_checkpoint


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, error_of):
    path = str(tmp_path / "ckpt.pt")
    checkpoints.save_checkpoint(path, {"model_config": {}, "step": 1})

    def full(checkpoint, f):
        f.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    said = error_of(checkpoints.save_checkpoint, path, {"model_config": {}, "step": 2})
    assert "No space left" in said and "still there" in said
    assert load_checkpoint(path)["step"] == 1 and not (tmp_path / "ckpt.pt.tmp").exists()
    assert "Nothing was saved" in error_of(
        checkpoints.save_checkpoint, str(tmp_path / "other.pt"), {}
    )


def test_what_is_loaded_is_data_only():
    files = glob.glob(f"{ROOT}/*.py")
    files += glob.glob(f"{ROOT}/plumbing/*.py") + glob.glob(f"{ROOT}/extras/*.py")
    source = {os.path.basename(path): open(path, encoding="utf-8").read() for path in files}
    assert all("trust_remote_code=True" not in s for s in source.values())
    assert not any(re.search(r"import pickle\b", s) for s in source.values())
    loads = [line for s in source.values() for line in s.splitlines() if "torch.load(" in line]
    assert len(loads) == 1 and "weights_only=True" in loads[0]
