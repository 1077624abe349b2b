"""
python -m pytest tests/test_extras_loss_plot.py
"""

import os

from conftest import run

from extras import loss_plot as extra
from plumbing.runs import read_log


def folders_of(trained):
    return [os.path.dirname(path) for path in trained.values()]


def test_the_loss_of_runs_is_plotted_from_their_logs(trained, tmp_path):
    out = tmp_path / "new" / "loss.png"
    runs = folders_of(trained)
    said, _ = run("-m", "extras.loss_plot", f"--runs={','.join(runs)}", f"--out={out}")
    assert out.read_bytes()[:4] == b"\x89PNG" and str(out) in said
    assert [r["step"] for r in read_log(runs[0]) if "val_loss" in r] == [3, 6]


def test_a_line_is_drawn_for_each_loss_of_each_run(trained):
    lines = []

    class Axes:
        def plot(self, x, y, style, color, label):
            lines.append((color, label.rpartition(", ")[2], len(x) == len(y) > 0))

        def set(self, **kw):
            pass

        legend = set

    class Plot:
        def subplots(self, figsize):
            return None, Axes()

    extra.plot_losses({folder: read_log(folder) for folder in folders_of(trained)}, Plot())
    kinds = [("C0", "loss"), ("C0", "val_loss"), ("C1", "loss"), ("C1", "val_loss")]
    assert lines == [(*kind, True) for kind in kinds]


def test_a_folder_without_a_log_ends_in_one_line(tmp_path, error_of):
    cfg = type(extra.cfg)(runs=str(tmp_path), out=str(tmp_path / "loss.png"))
    assert "no log.jsonl" in error_of(extra.main, cfg)
    assert not (tmp_path / "loss.png").exists()
