"""
python -m pytest tests/test_notebook.py          notebooks/start.ipynb, all of it at toy size
"""

import html
import json
import os
import shutil

import pytest
from conftest import ROOT, run

NOTEBOOK = os.path.join("notebooks", "start.ipynb")


def cells_of(folder):
    with open(os.path.join(folder, NOTEBOOK), encoding="utf-8") as f:
        return json.load(f)["cells"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A copy of the project in which the notebook was executed -> its folder."""
    copy = tmp_path_factory.mktemp("notebook") / "project"
    left = ("tests", "out", ".*", "__pycache__", "*.bin", "meta.json", "*.png", "shared")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left))
    options = ["--to=notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=300"]
    env = {"TOY": "1", "OMP_NUM_THREADS": "1"}
    run("-m", "nbconvert", *options, copy / NOTEBOOK, cwd=copy, env=env)
    return copy


@pytest.mark.slow
def test_every_cell_does_its_work_on_a_cpu(executed):
    outputs = [output for cell in cells_of(executed) for output in cell.get("outputs", ())]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    for line in (
        "saved to out/pydoc_ar/ckpt.pt",
        "saved to out/pydoc/ckpt.pt",
        "Rounds done: out/sdtt_pydoc/round_3.pt",
        "sample 1",
        "The page is out/page.html",
    ):
        assert line in said


@pytest.mark.slow
def test_the_page_is_shown_inside_the_notebook(executed):
    *_, last = (cell for cell in cells_of(executed) if cell["cell_type"] == "code")
    (output,) = last["outputs"]
    shown = "".join(output["data"]["text/html"])
    page = (executed / "out" / "page.html").read_text(encoding="utf-8")
    assert html.unescape(shown.split('"')[1]) == page


def test_the_notebook_is_kept_without_output():
    for cell in cells_of(ROOT):
        assert not cell.get("outputs") and cell.get("execution_count") is None
