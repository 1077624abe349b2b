"""
python -m pytest tests/test_console.py        what a script says in any terminal or pipe
"""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from conftest import ROOT, TINY, run, save_tiny

from plumbing import console, report, runs

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


# --------------------------------------------------------------------------------------------------
# Ctrl-C


def interrupted(args, ready):
    """Runs a command and presses Ctrl-C once ready() -> its exit status, stderr."""
    command = [sys.executable, *args]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        patience = time.monotonic() + 60
        while process.poll() is None and not ready() and time.monotonic() < patience:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.skipif(sys.platform != "linux", reason="no other system sends it to one process")
def test_ctrl_c_says_where_the_checkpoint_is_and_the_command_that_continues(markov, tmp_path):
    few = [f"--{name}={value}" for name, value in TINY.items()]
    few += [f"--dataset={markov}", "--max_iters=100000", "--eval_interval=100000"]
    out_dir = tmp_path / "a run"
    script = ["train.py", "--init_from=scratch", *few, f"--out_dir={out_dir}"]
    log = out_dir / "log.jsonl"
    status, said = interrupted(script, lambda: log.exists() and log.stat().st_size)
    assert "Traceback" not in said
    assert status == -signal.SIGINT  # which a shell calls 130
    last = said.strip().splitlines()[-1]
    checkpoint, command = last.split("The last checkpoint is ")[1].split(". Continue: ")
    assert checkpoint == f"{out_dir}/ckpt.pt"
    words = shlex.split(command)
    assert words[0] == "python" and words[-1] == "--init_from=resume"
    assert "--init_from=scratch" not in words
    step = torch.load(checkpoint, weights_only=True)["step"]
    run(*words[1:], f"--max_iters={step + 1}")
    assert torch.load(checkpoint, weights_only=True)["step"] == step + 1


@pytest.mark.skipif(sys.platform != "linux", reason="no other system sends it to one process")
def test_ctrl_c_in_any_other_script_is_one_line(tmp_path):
    save_tiny(tmp_path / "ckpt.pt", ["a", "b"], causal=True)
    out = tmp_path / "samples.jsonl"
    save = ["-m", "extras.save_samples", f"--ckpt={tmp_path}/ckpt.pt", f"--out={out}"]
    save += ["--length=1000000", "--device=cpu"]
    status, said = interrupted(save, (tmp_path / "samples.jsonl.tmp").exists)
    assert status == -signal.SIGINT
    assert "\nInterrupted.\n" in said and "Traceback" not in said
    assert os.listdir(tmp_path) == ["ckpt.pt"]  # no half of a file


def test_a_run_without_a_checkpoint_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LOCKS", {})
    assert console.after_interrupt() == "Interrupted."
    runs.claim(str(tmp_path))
    runs.release(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "config/x.py", "--prompt=a b"])
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": types.ModuleType("__main__")})
    said = console.after_interrupt()
    assert said.startswith("Interrupted before the first checkpoint. Again: ")
    assert said.endswith(console.this_command()) and "config/x.py" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "round_1.pt").touch()
    assert console.after_interrupt().endswith("Continue: the same torchrun and --init_from=resume")


def test_the_command_of_a_module_names_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/extras/t5.py", "--draft=a b"])
    main = types.ModuleType("__main__")
    main.__spec__ = types.SimpleNamespace(name="extras.t5")
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": main})
    command = console.this_command("--init_from=resume")
    assert command.startswith("python -m extras.t5 ") and command.endswith(" --init_from=resume")


def test_what_comes_up_while_a_library_ends_is_an_interrupt_too(monkeypatch, capsys):
    """`datasets` asks its workers for their results once more, which they no longer have."""
    monkeypatch.setattr(runs, "LOCKS", {})
    error = TimeoutError()
    error.__context__ = KeyboardInterrupt()
    with pytest.raises(SystemExit) as ended:
        console.say_error(TimeoutError, error, None)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
