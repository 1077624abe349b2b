"""
python -m pytest tests/test_lessons.py     README and lessons: links, commands, pictures
"""

import ast
import functools
import glob
import importlib
import json
import os
import re
import runpy
import shlex
import types

import pytest
import torch
from conftest import ROOT, run

import configurator
from drafters import NGram
from model import ancestral_steps, rank_in_row

LESSONS = glob.glob(os.path.join(ROOT, "lessons", "*.md"))
PAGES = ["README.md"]
PAGES += sorted(os.path.relpath(path, ROOT) for path in LESSONS)
CHAPTERS = [page for page in PAGES if re.match(r"lessons/\d_", page)]
PICTURES = types.SimpleNamespace(**runpy.run_path(os.path.join(ROOT, "lessons", "pictures.py")))


def text_of(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as f:
        return f.read()


def names_in(path):
    """A python file -> the names that it defines, those of a class as Class.name."""
    names = set()
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            for inner in getattr(node, "body", ()):
                if isinstance(inner, ast.FunctionDef):
                    names.add(f"{node.name}.{inner.name}")
    return names


def link_problem(page, text, target):
    """
    A relative link -> what is wrong with it, or None. A text like `model.unmask` must name what the
    file defines.
    """
    path = os.path.normpath(os.path.join(os.path.dirname(page), target.split("#")[0]))
    if not os.path.exists(os.path.join(ROOT, path)):
        return f"{page}: {target} is not there"
    dotted = re.fullmatch(r"`([\w.]+)`", text)
    if not dotted or not path.endswith(".py"):
        return None
    module = path.removesuffix(".py").replace("/", ".").removeprefix("lessons.")
    name = dotted[1].removeprefix(f"{module}.")
    if name == dotted[1] or name not in names_in(path):
        return f"{page}: {path} has no {dotted[1]}"
    return None


def links(page):
    """-> (text, target) of every relative link and picture."""
    found = re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text_of(page))
    return [(text, target) for text, target in found if not target.startswith(("http", "#"))]


@pytest.mark.parametrize("page", [*PAGES, "exercises/README.md"])
def test_links_lead_to_files_and_to_functions_that_exist(page):
    assert [problem for link in links(page) if (problem := link_problem(page, *link))] == []


def test_a_wrong_link_is_seen():
    assert link_problem("lessons/x.md", "`model.unmask`", "../model.py") is None
    assert link_problem("lessons/x.md", "`model.GPT.hidden`", "../model.py") is None
    assert "no model.unmusk" in link_problem("lessons/x.md", "`model.unmusk`", "../model.py")
    assert "no loop.unmask" in link_problem("lessons/x.md", "`loop.unmask`", "../model.py")
    assert "not there" in link_problem("lessons/x.md", "here", "nowhere.md")


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_test_that_a_lesson_names_exists(page):
    sources = "".join(text_of(path) for path in glob.glob(os.path.join(ROOT, "tests", "test_*.py")))
    for name in re.findall(r"`(test_\w+)`", text_of(page)):
        assert f"def {name}(" in sources, f"{page}: {name}"


LAUNCHER = r"(?:\$ )?(?:(?:\S*python3?|torchrun(?: --\S+)*) )?"
SCRIPT = r"([\w/]+\.py|-m extras\.\w+)(?= |$)(?: .*)?"


def commands(page):
    """
    -> the argv of each command, from its script on, `-m extras.x` as extras/x.py: lines of code,
    and `python ...` or `eval.py ...` in prose.
    """
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    lines = [part for line in re.findall(r"^    (.+)$", prose, re.M) for part in line.split(" && ")]
    for code in re.findall(r"`([^`]+)`", re.sub(r"^    .+$", "", prose, flags=re.M)):
        lines.append(" ".join(code.split()))
    for line in lines:
        found = re.match(LAUNCHER + SCRIPT, line)
        if not found or "..." in line or "NAME" in line:
            continue
        argv = shlex.split(line[found.start(1) :], comments=True)
        if argv[0] == "-m":
            argv[:2] = [argv[1].replace(".", "/") + ".py"]
        yield argv


@functools.cache
def knobs_of(script):
    """A script -> its knobs, or None where it has none."""
    if "cfg = configure(" not in text_of(script):
        return None
    if script.startswith("extras/"):
        names = vars(importlib.import_module(script.removesuffix(".py").replace("/", ".")))
    else:
        names = runpy.run_path(os.path.join(ROOT, script))
    return {k: v for k, v in names.items() if configurator.is_knob(k, v)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_names_a_script_and_knobs_that_it_has(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for script, *argv in commands(page):
        assert os.path.exists(script), f"{page}: {script}"
        knobs = knobs_of(script)
        if not knobs or "--learning_rat=1e-3" in argv:  # README's example of a misspelled one
            continue
        monkeypatch.setattr("sys.argv", [script, *argv])  # config/debug.py looks at it
        # `sample.py --trace` in prose
        mentioned = {arg for arg in argv if arg.startswith("--") and "=" not in arg}
        assert mentioned <= {"--help", *(f"--{name}" for name in knobs)}, page
        configurator.parse([arg for arg in argv if arg not in mentioned], knobs)


def test_commands_are_found_and_wrong_ones_raise(error_of):
    found = list(commands("README.md"))
    assert len(found) > 15 and ["eval.py", "config/eval_pydoc.py"] in found
    scripts = {script for page in CHAPTERS for script, *_ in commands(page)}
    assert {"lessons/languages.py", "extras/dimo.py", "distill.py"} <= scripts
    assert "Did you mean steps" in error_of(
        configurator.parse, ["--stepps=3"], knobs_of("sample.py")
    )


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_has_its_parts_in_order(page):
    parts = re.findall(
        r"^## (In words|On paper|In code|Run it|Predict|Break it|Open question)$",
        text_of(page),
        re.M,
    )
    assert parts == [
        "In words",
        "On paper",
        "In code",
        "Run it",
        "Predict",
        "Break it",
        "Open question",
    ]
    assert text_of(page).count("<details>") == text_of(page).count("</details>") == 2


def test_pictures_are_drawn_and_each_is_in_a_chapter(tmp_path):
    drawn = {os.path.basename(path) for path in PICTURES.draw_all(tmp_path)}
    assert drawn == {f"{name}.png" for name in PICTURES.PICTURES}
    shown = {
        os.path.basename(target)
        for page in CHAPTERS
        for _, target in links(page)
        if target.endswith(".png")
    }
    for name in drawn:
        assert name in shown
        for folder in (tmp_path, os.path.join(ROOT, "assets")):
            assert 5_000 < os.path.getsize(os.path.join(folder, name)) < 60_000
    _, said = run("lessons/pictures.py", ok=False)
    assert said.strip() == "Where to? python lessons/pictures.py FOLDER, of the repository: assets."


def numbers_in(text):
    """'1, 4 to 6 and 9' -> [1, 4, 5, 6, 9]"""
    found = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def test_the_syllabus_has_the_exercises_and_their_minutes():
    exercises = json.loads(text_of("exercises/exercises.json"))
    page = text_of("lessons/README.md")
    reading = {}
    for row in re.findall(r"^\| (\d) \[.*", page, re.M):
        line = next(x for x in page.splitlines() if x.startswith(f"| {row} ["))
        _, _, minutes, cell, _ = (x.strip() for x in line.strip("|").split("|"))
        reading[int(row)] = int(minutes)
        here = [e for e in exercises if e["lesson"] == int(row)]
        if here:
            which, writing = cell.split(": ")
            assert numbers_in(which) == [e["number"] for e in here]
            assert int(writing) == sum(e["minutes"] for e in here)
    assert len(reading) == 9
    weeks = page.split("**Four weeks**")[1]
    done = []
    for line in re.findall(r"^\| \d \|.*", weeks, re.M):
        _, lessons, minutes, which, writing, _ = (x.strip() for x in line.strip("|").split("|"))
        assert int(minutes) == sum(reading[n] for n in numbers_in(lessons))
        here = [e for e in exercises if e["number"] in numbers_in(which)]
        assert int(writing) == sum(e["minutes"] for e in here)
        assert {e["lesson"] for e in here} <= set(numbers_in(lessons))
        done += numbers_in(which)
    assert done == list(range(1, 17))


def test_the_lecture_walks_through_functions_that_exist():
    lecture = text_of("lessons/README.md").split("**One lecture")[1].split("**Four weeks**")[0]
    steps = re.findall(r"\| `(\w+\.py)`: ([^|]*) \|", lecture)
    assert len(steps) == 6
    for file, names in steps:
        assert set(re.findall(r"`(\w+)`", names)) <= names_in(file)


def row_of(page, first):
    """-> the cells of the first row of a table that begins so, as numbers."""
    line = next(x for x in text_of(page).splitlines() if x.startswith(f"| {first} |"))
    return [float(x.split()[0]) for x in line.split("|")[2:-1] if x.strip()]


def test_the_rows_that_lessons_work_out_are_the_functions():
    page = "lessons/3_sampling_and_orders.md"
    u = torch.tensor([row_of(page, "u")])
    assert row_of(page, "step of `ancestral`") == ancestral_steps(u, 1, 1 / 4, 4)[0].tolist()
    rank = row_of(page, "step of `first_hitting`: the rank of u, from the top")
    assert rank == (1 + rank_in_row(-u))[0].tolist()
    spread = row_of(page, "step of `spread`, if the classes come in the order 2, 0, 3, 1")
    classes = row_of(page, "class i mod 4")
    assert [[2, 0, 3, 1][int(step) - 1] for step in spread] == classes == [0, 1, 2, 3, 0, 1]
    page = "lessons/4_sdtt.md"
    u = torch.tensor([row_of(page, "u")])
    assert row_of(page, "step_of") == ancestral_steps(u, 1 / 2, 1 / 8, 2)[0].tolist()
    page = "lessons/5_drafters.md"
    ngram = NGram(2, 3).fit([0, 1, 0, 2, 0, 1, 1])
    assert row_of(page, "key: 3 * context + last token") == ngram.keys[1].tolist()
    assert row_of(page, "start") == ngram.start[1].tolist()
    fraction = row_of(page, "fraction: (count - 0.75) / count of the context")
    assert fraction == pytest.approx(ngram.fraction[1].tolist(), abs=1e-3)
    backoff = row_of(page, "backoff: 0.75 * different followers / count")
    assert backoff == pytest.approx(ngram.backoff[1].tolist())
    said = ", ".join(f"{x:.3f}" for x in ngram.probs([0]))
    assert f"= ({said})" in text_of(page)


def test_the_code_of_chapter_2_runs(pydoc, tmp_path, capsys):
    toy = [
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=16",
        "--block_size=128",
        "--max_iters=1",
        "--eval_iters=1",
    ]
    run(
        "train.py",
        f"--dataset={pydoc}",
        *toy,
        "--batch_size=2",
        "--device=cpu",
        f"--out_dir={tmp_path}",
    )
    (code,) = re.findall(r"^```python\n(.*?)^```", text_of("lessons/2_the_bound.md"), re.M | re.S)
    code = code.replace("out/pydoc/ckpt.pt", f"{tmp_path}/ckpt.pt").replace('"pydoc"', repr(pydoc))
    with torch.no_grad():
        exec(compile(code.replace("128, 64)", "128, 4)"), "lessons/2_the_bound.md", "exec"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(n) for n, _ in rows] == [1, 8, 32, 64, 96, 120, 128] and all(
        3 < float(nats) < 7 for _, nats in rows
    )
