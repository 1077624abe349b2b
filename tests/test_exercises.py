"""
python -m pytest tests/test_exercises.py          the class: its graders, known mistakes, and what a student is given
"""

import ast
import glob
import importlib
import inspect
import math
import operator
import os
import re

import grade
import graders
import make_student as M
import pytest
import torch
from conftest import ROOT, run

EXERCISES = grade.load_exercises()
NUMBERS = M.expected(EXERCISES, "ada")["numbers"]
WRONG = sorted(glob.glob(os.path.join(ROOT, "exercises", "wrong", "*.py")))


def put(patch, spec, source):
    """The function file:name runs the body that it has in this source, wherever it was imported to."""
    file, name = spec.split(":")
    function = inspect.unwrap(
        operator.attrgetter(name)(importlib.import_module(file[:-3].replace("/", ".")))
    )
    node = M.find(source, name if "class " in source else name.split(".")[-1])
    node.decorator_list, node.args.defaults, scope = [], [], {}
    exec(compile(ast.Module([node], []), file, "exec"), scope)
    patch.setattr(function, "__code__", scope[node.name].__code__)


def verdicts():
    return {e["number"]: grade.verdict(e, "ada", NUMBERS[e["key"]]) for e in EXERCISES}


def test_the_solution_passes_whatever_the_name():
    other = M.expected(EXERCISES, "grace")["numbers"]
    assert all(v == "passed" for v in grade.grade_all(EXERCISES, "ada", NUMBERS).values())
    for exercise in EXERCISES:
        law = all(number is None for number in NUMBERS[exercise["key"]])
        assert law or other[exercise["key"]] != NUMBERS[exercise["key"]]
        assert grade.verdict(exercise, "grace", other[exercise["key"]]) == "passed"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e["key"])
def test_another_way_to_write_it_passes(exercise, monkeypatch):
    for spec in exercise["functions"]:
        put(monkeypatch, spec, M.read(ROOT, "exercises", "another.py"))
    assert grade.verdict(exercise, "ada", NUMBERS[exercise["key"]]) == "passed"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e["key"])
def test_a_function_not_written_fails_its_grader_and_those_that_need_it_wait(exercise, monkeypatch):
    n, seen = exercise["number"], {}
    for spec in exercise["functions"]:
        with monkeypatch.context() as patch:
            file, name = spec.split(":")
            put(
                patch,
                spec,
                M.stripped(M.read(ROOT, file), name, f"exercise {n}: write {name} in {file}"),
            )
            for m, said in verdicts().items():
                seen.setdefault(m, set()).add(said)
    assert seen[n] == {"not done"}
    waiting = {m for m, said in seen.items() if f"waits for exercise {n}" in said}
    assert waiting == {e["number"] for e in EXERCISES if n in e["needs"]}
    assert all(said == {"passed"} for m, said in seen.items() if m not in waiting | {n})


def test_every_exercise_has_a_known_mistake():
    assert len(WRONG) >= 15
    claimed = {open(path).readline().split(":")[1].split(",")[1] for path in WRONG}
    assert claimed == {f" exercise {e['number']}" for e in EXERCISES}


@pytest.mark.parametrize("path", WRONG, ids=lambda path: os.path.basename(path)[:-3])
def test_a_known_mistake_is_caught_by_the_grader_that_claims_it(path, monkeypatch):
    source = open(path).read()
    spec, number = source.splitlines()[0][2:].split(": ")[0].split(", exercise ")
    exercise = EXERCISES[int(number) - 1]
    assert spec in exercise["functions"]
    put(monkeypatch, spec, source)
    said = grade.verdict(exercise, "ada", NUMBERS[exercise["key"]])
    assert said.startswith("wrong: "), said


def test_an_exercise_waits_for_one_that_is_wrong(monkeypatch):
    put(monkeypatch, "model.py:draw_from", M.read(ROOT, "exercises", "wrong", "best_token.py"))
    said = grade.grade_all(EXERCISES, "ada", NUMBERS)
    assert said[5].startswith("wrong: how often each token is drawn: [")
    assert {said[9], said[15]} == {"waits for exercise 5"} and said[1] == said[6] == "passed"


def test_what_is_no_answer_is_one_line(monkeypatch):
    for text, words in {
        "return None": " ...: None, no numbers. Is there a return",
        "return t[:2]": "wrong: ancestral",
        "return 1 / 0": "stops: ZeroDivisionError: division by zero (model.py, line 2)",
        "return t * float('nan')": "is nan",
        "return torch.nn.Linear(1, 1)(t)": "(model.py, line 2)",  # and not the line in torch that raises
        "while True: pass": "stops: TimeoutError: no answer after 1 seconds (model.py, line 2)",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(grade, "SECONDS", 1)
            put(
                patch,
                "model.py:reveal_rate",
                f"def reveal_rate(t, s, sampler='ancestral'):\n    {text}\n",
            )
            said = grade.verdict(EXERCISES[5], "ada", NUMBERS["reveal_rate"])
        assert words in said and "\n" not in said, said
    shape = graders.Probe("its shape", torch.zeros(8).shape, 0)
    assert grade.first_difference(shape, (8,)) is None
    assert grade.first_difference(shape, [8.0, 1.0]) == "(8,), expected (8, 1)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("class") / "ada")
    M.make_student(folder, "ada")
    return folder


def test_a_student_is_given_none_of_the_solution(folder):
    files = [
        os.path.relpath(os.path.join(d, f), folder)
        for d, _, names in os.walk(folder)
        for f in names
    ]
    assert not [
        f
        for f in files
        if f.endswith((".pyc", "reference.py", "make_student.py")) or f.startswith((".git/", ".ci"))
    ]
    assert not os.path.exists(os.path.join(folder, "exercises", "wrong"))
    sources = {f: M.read(ROOT, f) for f in files if f.endswith(".py")}
    secret = M.secret_lines(sources, EXERCISES)
    assert len(secret) > 100
    for f in files:
        if not f.endswith(".png"):
            found = {M.essence(line) for line in M.read(folder, f).splitlines()} & set(secret)
            assert not found, (f, found)
    for file, name, why in M.targets(EXERCISES):
        left = M.find(M.read(folder, file), name)
        assert [type(node) for node in left.body] == [ast.Expr, ast.Raise] and why in ast.unparse(
            left
        )
        assert ast.get_docstring(left) == ast.get_docstring(M.find(M.read(ROOT, file), name))


def test_a_student_s_folder_grades_itself(folder):
    out, _ = run("exercises/grade.py", cwd=folder)
    assert out.count("not done") == len(EXERCISES) and f"0 of {len(EXERCISES)} passed (ada)" in out
    out, _ = run("exercises/grade.py", "3", cwd=folder)
    assert "The loss of masked diffusion" in out and "0 of 1 passed (ada)" in out
    with pytest.raises(SystemExit, match=r"make_student\.py"):
        grade.main()  # the project itself


def test_what_is_handed_in_is_its_functions_and_nothing_else(tmp_path, refused):
    files = M.student_files(EXERCISES)
    for file in {file for file, _, _ in M.targets(EXERCISES)} - {"plumbing/head.py"}:
        text = M.read(ROOT, file) + "\nraise SystemExit('not one of the named functions')\n"
        (tmp_path / file).write_text(text)
    back = M.with_handed_in(files, tmp_path, EXERCISES)
    changed = {f for f in files if back[f] != files[f]}
    assert all(back[f] == M.read(ROOT, f) for f in changed) and changed == {
        f.name for f in tmp_path.iterdir()
    }
    (tmp_path / "metrics.py").write_text("def entropies(x):\n    return (\n")
    assert "entropies cannot be taken from" in refused(M.with_handed_in, files, tmp_path, EXERCISES)
    (tmp_path / "metrics.py").unlink()
    assert "metrics.py" in refused(M.with_handed_in, files, tmp_path, EXERCISES)
    assert "is there already" in refused(M.make_student, str(tmp_path), "ada")
    assert "inside the project" in refused(M.make_student, os.path.join(ROOT, "ada"), "ada")


def test_a_folder_for_one_chapter_lacks_its_functions_only_and_needs_one_file_back(
    tmp_path, refused
):
    chosen = M.of_lesson(EXERCISES, 4)
    assert [(e["number"], e["needs"]) for e in chosen] == [(10, []), (11, []), (12, [10, 11])]
    folder = str(tmp_path / "ada")
    M.make_student(folder, "ada", lesson=4)
    assert M.read(folder, "model.py") == M.read(ROOT, "model.py")
    table = M.read(folder, "exercises", "README.md").split("**What runs when**")[0]
    assert re.findall(r"^\| (\d+) ", table, re.M) == ["10", "11", "12"]
    out, _ = run("exercises/grade.py", cwd=folder)
    assert out.count("not done") == 3 and "0 of 3 passed (ada)" in out
    (tmp_path / "distill.py").write_text(M.read(ROOT, "distill.py"))
    M.make_student(str(tmp_path / "regraded"), "x7", tmp_path, lesson=4)
    assert "3 of 3 passed (x7)" in run("exercises/grade.py", cwd=str(tmp_path / "regraded"))[0]
    assert "Chapter 9 has no exercises" in refused(M.of_lesson, EXERCISES, 9)


def flat(x):
    return (
        [value for part in x for value in flat(part)]
        if isinstance(x, list)
        else [math.nan if x is None else x]
    )


def test_the_teacher_s_page_has_every_exercise():
    page = M.read(ROOT, "exercises", "README.md")
    rows = [f"| {e['number']} | {e['title']} | `" for e in EXERCISES]
    for exercise, row in zip(EXERCISES, rows, strict=True):
        line = next(line for line in page.splitlines() if line.startswith(row))
        assert line.endswith(
            f"| {exercise['lesson']} | {exercise['minutes']} | {str(exercise['needs'])[1:-1]} |"
        )
        assert all(spec.split(":")[1] in line for spec in exercise["functions"])
    assert [e["number"] for e in EXERCISES] == list(range(1, len(EXERCISES) + 1))
    assert [e["lesson"] for e in EXERCISES] == sorted(e["lesson"] for e in EXERCISES)
    assert str(sum(e["minutes"] for e in EXERCISES)) in page
    again = M.expected(EXERCISES, "ada")["numbers"]  # the same name, the same numbers
    assert again.keys() == NUMBERS.keys()
    for name in NUMBERS:
        assert flat(again[name]) == pytest.approx(
            flat(NUMBERS[name]), rel=1e-4, abs=1e-6, nan_ok=True
        )
