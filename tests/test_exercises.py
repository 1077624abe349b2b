"""
python -m pytest tests/test_exercises.py

the class: its graders, known mistakes, a student's folder
"""

import ast
import glob
import importlib
import inspect
import math
import operator
import os
import re
import subprocess
import sys

import grade
import graders
import make_student as M
import pytest
import torch
import yaml
from conftest import ROOT, run

EXERCISES = grade.load_exercises()
BY_KEY = {e["key"]: e for e in EXERCISES}
NUMBERS = M.expected(EXERCISES, "ada")["numbers"]
WRONG = sorted(glob.glob(os.path.join(ROOT, "exercises", "wrong", "*.py")))


def put(patch, spec, source):
    """file:name runs the body that it has in this source, wherever it was imported to."""
    file, name = spec.split(":")
    module = importlib.import_module(file[:-3].replace("/", "."))
    function = inspect.unwrap(operator.attrgetter(name)(module))
    node = M.find(source, name if "class " in source else name.split(".")[-1])
    node.decorator_list = []
    node.args.defaults = []
    scope = {}
    exec(compile(ast.Module([node], []), file, "exec"), scope)
    patch.setattr(function, "__code__", scope[node.name].__code__)


def verdict_of(key):
    return grade.verdict(BY_KEY[key], "ada", NUMBERS[key])


def wrong_body(name):
    return M.read(ROOT, "exercises", "wrong", f"{name}.py")


def test_the_solution_passes_whatever_the_name():
    other = M.expected(EXERCISES, "grace")["numbers"]
    assert set(grade.grade_all(EXERCISES, "ada", NUMBERS).values()) == {"passed"}
    for exercise in EXERCISES:
        key = exercise["key"]
        random_only = all(number is None for number in NUMBERS[key])
        assert random_only or other[key] != NUMBERS[key]
        assert grade.verdict(exercise, "grace", other[key]) == "passed"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e["key"])
def test_another_way_to_write_it_passes(exercise, monkeypatch):
    for spec in exercise["functions"]:
        put(monkeypatch, spec, M.read(ROOT, "exercises", "another.py"))
    assert verdict_of(exercise["key"]) == "passed"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e["key"])
def test_a_missing_function_fails_its_own_grader_and_those_that_need_it_wait(exercise, monkeypatch):
    n = exercise["number"]
    seen = {}
    for spec in exercise["functions"]:
        file, name = spec.split(":")
        empty = M.stripped(M.read(ROOT, file), name, f"exercise {n}: write {name} in {file}")
        with monkeypatch.context() as patch:
            put(patch, spec, empty)
            for e in EXERCISES:
                seen.setdefault(e["number"], set()).add(verdict_of(e["key"]))
    assert seen[n] == {"not done"}
    waiting = {m for m, said in seen.items() if f"waits for exercise {n}" in said}
    assert waiting == {e["number"] for e in EXERCISES if n in e["needs"]}
    assert all(said == {"passed"} for m, said in seen.items() if m not in waiting | {n})


def claim(path):
    """-> file:function and the number of the exercise that its first line names."""
    with open(path, encoding="utf-8") as f:
        spec, number = re.match(r"# (\S+:\S+), exercise (\d+): ", f.readline()).groups()
    return spec, int(number)


def test_every_exercise_has_a_known_mistake():
    assert {number for _, number in map(claim, WRONG)} == {e["number"] for e in EXERCISES}


@pytest.mark.parametrize("path", WRONG, ids=lambda path: os.path.basename(path)[:-3])
def test_a_known_mistake_is_caught_by_the_grader_that_claims_it(path, monkeypatch):
    spec, number = claim(path)
    exercise = EXERCISES[number - 1]
    assert spec in exercise["functions"]
    with open(path, encoding="utf-8") as f:
        put(monkeypatch, spec, f.read())
    said = verdict_of(exercise["key"])
    assert re.match(r"wrong: .+: got .+, expected ", said), said


def test_an_exercise_waits_for_one_that_is_wrong(monkeypatch):
    put(monkeypatch, "model.py:draw", wrong_body("best_token"))
    said = grade.grade_all(EXERCISES, "ada", NUMBERS)
    assert said[4].startswith("wrong: how often each token is drawn: got ")
    assert {said[6], said[14]} == {"waits for exercise 4"}
    assert {said[1], said[5]} == {"passed"}


def test_the_plain_case_is_reported_first(monkeypatch):
    put(monkeypatch, "model.py:diffusion_loss", wrong_body("weight_forgotten"))
    said = verdict_of("diffusion_loss")
    assert said.startswith("wrong: diffusion_loss, the mean over 60000 texts: got ")
    assert re.search(r"got \d\.\d+, expected about \d\.\d+ \(within 0.06\)$", said)


def test_what_is_no_answer_is_one_line(monkeypatch):
    for text, words in {
        "return None": "got None. Is there a return",
        "return q[:1]": "not causal: got shape (1, 3, 5, 8), expected (2, 3, 5, 8)",
        "return 1 / 0": "stops: ZeroDivisionError: division by zero (model.py, line 2)",
        "return q * float('nan')": "wrong: not causal: got nan at [0, 0, 0, 0], expected ",
        "return torch.nn.Linear(1, 1)(q)": "(model.py, line 2)",  # not the line in torch
        "while True: pass": "stops: TimeoutError: no answer after 1 seconds (model.py, line 2)",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(grade, "SECONDS", 1)
            put(patch, "model.py:attend", f"def attend(q, k, v, causal):\n    {text}\n")
            said = verdict_of("attend")
        assert words in said and "\n" not in said, said
    shape = graders.Probe("its shape", torch.zeros(8).shape, 0)
    assert grade.first_difference(shape, (8,)) is None
    assert grade.first_difference(shape, [8, 1]) == "got (8,), expected (8, 1)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("class") / "ada")
    M.make_student(folder, "ada")
    return folder


def files_in(folder):
    found = []
    for inner, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(inner, name), folder) for name in names]
    return found


def test_a_student_is_given_none_of_the_solution(folder):
    files = files_in(folder)
    left_out = (".pyc", "reference.py", "make_student.py", "another.py")
    assert not [f for f in files if f.endswith(left_out) or f.startswith((".git/", ".ci"))]
    assert not os.path.exists(os.path.join(folder, "exercises", "wrong"))
    given = set(M.project_files())
    sources = {f: M.read(ROOT, f) for f in files if f.endswith(".py") and f in given}
    secret = M.secret_lines(sources, EXERCISES)
    assert len(secret) > 100
    for f in files:
        if f.endswith(".png"):
            continue
        found = {M.essence(line) for line in M.read(folder, f).splitlines()} & set(secret)
        assert not found, (f, found)
    for file, name, why in M.targets(EXERCISES):
        left = M.find(M.read(folder, file), name)
        assert [type(node) for node in left.body] == [ast.Expr, ast.Raise]
        assert why in ast.unparse(left)
        assert ast.get_docstring(left) == ast.get_docstring(M.find(M.read(ROOT, file), name))


def test_a_student_is_given_what_is_beside_the_exercises(folder):
    files = set(files_in(folder))
    for f in M.project_files():
        if f.startswith("extras/") and f not in {file for file, _, _ in M.targets(EXERCISES)}:
            assert f in files and M.read(folder, f) == M.read(ROOT, f)
    assert "tests/conftest.py" in files
    for page in sorted(f for f in files if f.endswith(".md")):
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", M.read(folder, page)):
            path = os.path.normpath(os.path.join(os.path.dirname(page), target))
            assert target.startswith("http") or os.path.exists(os.path.join(folder, path)), (
                page,
                target,
            )


def test_a_block_of_code_that_shows_a_body_becomes_its_signature():
    source = "def f(x):\n    '''Doc.'''\n    y = x + 1234567890123\n    return y\n"
    exercise = {"number": 3, "functions": ["model.py:f"]}
    secret = M.secret_lines({"model.py": source}, [exercise])
    page = "These lines are all of it:\n\n```python\ny = x + 1234567890123\n```\n\nAnd on.\n"
    shown = M.without_secrets(page, secret)
    assert "1234567890123" not in shown and "def f(x):" in shown
    assert "exercise 3" in shown and "left out" in shown and shown.endswith("And on.\n")


def test_ruff_finds_nothing_in_a_student_s_folder(folder):
    for command in (["check", "."], ["format", "--check", "."]):
        ruff = [sys.executable, "-m", "ruff", *command]
        result = subprocess.run(ruff, capture_output=True, text=True, cwd=folder)
        assert result.returncode == 0, result.stdout + result.stderr


def grading_command(folder):
    """-> what the workflow of a student's folder runs at last, without the python."""
    workflow = yaml.safe_load(M.read(folder, ".github", "workflows", "grade.yml"))
    commands = [step["run"] for step in workflow["jobs"]["grade"]["steps"] if "run" in step]
    assert commands[0] in M.read(ROOT, "README.md")  # the small torch
    assert commands[1].startswith("make ")
    make = ["make", "-n", commands[1].split()[1]]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)
    python, *command = commands[-1].split()
    assert python == ".venv/bin/python"
    return command


def test_a_wrong_exercise_fails_its_workflow(tmp_path):
    folder = str(tmp_path / "ada")
    M.make_student(folder, "ada", lesson=7)
    file = os.path.join(folder, "extras", "soft_labels.py")
    wrong = wrong_body("named_by_weight")
    lines = wrong.splitlines(True)[M.body(wrong, "soft_cross_entropy")]
    with open(file, "r+", encoding="utf-8") as f:
        text = M.replaced(f.read(), "soft_cross_entropy", lines)
        f.seek(0)
        f.write(text)
    out, _ = run(*grading_command(folder), cwd=folder, ok=False)
    assert "wrong: missing=tail" in out and "0 of 1 passed (ada)" in out


def test_a_test_that_needs_a_missing_function_is_skipped(folder):
    test = "tests/test_extras_loss_plot.py"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", test]
    result = subprocess.run(pytest_, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "exercise 2: write diffusion_loss in model.py" in result.stdout


def test_a_student_s_folder_grades_itself(folder):
    out, _ = run(*grading_command(folder), cwd=folder)  # nothing is wrong: status 0
    assert out.count("not done") == len(EXERCISES)
    assert f"0 of {len(EXERCISES)} passed (ada)" in out
    out, _ = run("exercises/grade.py", "2", cwd=folder)
    assert "The loss of masked diffusion" in out and "0 of 1 passed (ada)" in out
    with pytest.raises(SystemExit, match=r"make_student\.py"):
        grade.main()  # the project itself


def test_what_is_handed_in_is_its_functions_and_nothing_else(tmp_path, error_of):
    files = M.student_files(EXERCISES)
    handed_in = {spec.split(":")[0] for e in EXERCISES for spec in e["functions"]}
    for file in handed_in:
        text = M.read(ROOT, file) + "\nraise SystemExit('not one of the named functions')\n"
        os.makedirs(os.path.dirname(tmp_path / file), exist_ok=True)
        (tmp_path / file).write_text(text)
    back = M.with_handed_in(files, tmp_path, EXERCISES)
    changed = {f for f in files if back[f] != files[f]}
    assert changed == handed_in
    assert all(back[f] == M.read(ROOT, f) for f in changed)
    (tmp_path / "metrics.py").write_text("def entropies(x):\n    return (\n")
    assert "entropies cannot be taken from" in error_of(
        M.with_handed_in, files, tmp_path, EXERCISES
    )
    (tmp_path / "metrics.py").unlink()
    assert "metrics.py" in error_of(M.with_handed_in, files, tmp_path, EXERCISES)
    assert "is there already" in error_of(M.make_student, str(tmp_path), "ada")
    assert "inside the project" in error_of(M.make_student, os.path.join(ROOT, "ada"), "ada")


def test_a_folder_for_one_lesson_lacks_its_functions_only(tmp_path, error_of):
    chosen = M.of_lesson(EXERCISES, 4)
    assert [(e["number"], e["needs"]) for e in chosen] == [
        (8, []),
        (9, []),
        (10, []),
        (11, [8, 9, 10]),
    ]
    folder = str(tmp_path / "ada")
    M.make_student(folder, "ada", lesson=4)
    assert M.read(folder, "model.py") == M.read(ROOT, "model.py")
    table = M.read(folder, "exercises", "README.md").split("**What runs when**")[0]
    assert re.findall(r"^\| (\d+) ", table, re.M) == ["8", "9", "10", "11"]
    out, _ = run("exercises/grade.py", cwd=folder)
    assert out.count("not done") == 4 and "0 of 4 passed (ada)" in out
    (tmp_path / "distill.py").write_text(M.read(ROOT, "distill.py"))
    M.make_student(str(tmp_path / "regraded"), "x7", tmp_path, lesson=4)
    assert "4 of 4 passed (x7)" in run("exercises/grade.py", cwd=str(tmp_path / "regraded"))[0]
    assert "Lesson 9 has no exercises" in error_of(M.of_lesson, EXERCISES, 9)


def flat(x):
    if isinstance(x, list):
        return [value for part in x for value in flat(part)]
    return [math.nan if x is None else x]


def test_the_page_has_every_exercise():
    page = M.read(ROOT, "exercises", "README.md")
    for exercise in EXERCISES:
        row = f"| {exercise['number']} | {exercise['title']} | `"
        line = next(line for line in page.splitlines() if line.startswith(row))
        needs = str(exercise["needs"])[1:-1]
        assert line.endswith(f"| {exercise['lesson']} | {exercise['minutes']} | {needs} |")
        assert all(spec.split(":")[1] in line for spec in exercise["functions"])
    assert [e["number"] for e in EXERCISES] == list(range(1, len(EXERCISES) + 1))
    assert [e["lesson"] for e in EXERCISES] == sorted(e["lesson"] for e in EXERCISES)
    assert str(sum(e["minutes"] for e in EXERCISES)) in page
    assert f"{len(WRONG)} known mistakes" in page


def test_the_same_name_has_the_same_numbers():
    again = M.expected(EXERCISES, "ada")["numbers"]
    assert again.keys() == NUMBERS.keys()
    for name in NUMBERS:
        assert flat(again[name]) == pytest.approx(
            flat(NUMBERS[name]), rel=1e-4, abs=1e-6, nan_ok=True
        )
