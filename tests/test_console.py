"""
python -m pytest tests/test_console.py        what a script says in any terminal or pipe
"""

import io
import os
import sys
import types

import pytest
import torch
from conftest import TINY, run

from plumbing import console, report

ASCII = {"PYTHONIOENCODING": "ascii"}  # of a terminal


def test_text_that_cannot_be_printed_is_printed_with_replacements(monkeypatch):
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back at the end
    with pytest.raises(UnicodeEncodeError):
        print("\U0001f600")
    console.prepare_console()
    print("a \U0001f600 \u0645 \u00e9")  # an emoji, Arabic, Latin-1
    assert written.getvalue() == b"a ? ? ?\n"


def test_a_stdout_that_cannot_be_set_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for stdout in (types.SimpleNamespace(), None):  # a notebook's, that of a program without one
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            console.prepare_console()


def test_text_in_any_script_stops_no_command(tmp_path):
    text = tmp_path / "texts \u0645.txt"
    text.write_text("\U0001f600\u0645\u00e9\n" * 300, encoding="utf-8")
    folder = f"--out_dir={tmp_path}/\U0001f600"
    said, _ = run("data/text/prepare.py", f"--input={text}", "--tokenizer=char", folder, env=ASCII)
    assert "?: 1,080 training" in said
    few = [f"--{name}={value}" for name, value in TINY.items()]
    few += ["--max_iters=2", "--eval_interval=2", "--sample_interval=2"]
    data = f"--dataset={tmp_path}/\U0001f600"
    said, _ = run("train.py", data, *few, f"--out_dir={tmp_path}/\u0645", env=ASCII)
    sample = said.split("--- step 2\n")[1].split("\n---")[0]
    assert "?" in sample and sample.isascii() and os.path.exists(tmp_path / "\u0645" / "ckpt.pt")
    model = f"--ckpt={tmp_path}/\u0645/ckpt.pt"
    said, _ = run("sample.py", model, "--prompt=\U0001f600", "--num_samples=1", env=ASCII)
    assert "sample 1\n?" in said
    few = ["--what=nelbo", "--eval_blocks=2", f"--out={tmp_path}/\u00e9"]
    said, _ = run("eval.py", model, *few, env=ASCII)
    assert "validation <=" in said and os.path.exists(tmp_path / "\u00e9" / "eval.txt")


def test_a_file_name_that_is_no_text_is_in_tables_and_plots_with_replacements(tmp_path):
    """Its bytes are what Python calls surrogates, which nothing writes."""
    row = {"model": "a\udcff", "path": "a\udcff", "steps": 4, "causal": False, "genppl": 2.0}
    rows = [row | {"entropy": 1.0}, row | {"model": "real text", "steps": None, "entropy": 1.0}]
    about = {"rows": rows, "hardware": "cpu", "torch": torch.__version__, "seed": 1, "files": []}
    report.write_report(about | {"tokens_per_sample": 8, "processes": 1}, str(tmp_path))
    assert "a?" in (tmp_path / "eval.txt").read_text(encoding="utf-8")
    assert (tmp_path / "eval.png").exists()
