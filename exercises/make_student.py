"""
Writes a student's folder: the project without the bodies of the functions that exercises.json
names.
$ python exercises/make_student.py ../ada --name=ada                                 (some seconds)
$ python exercises/make_student.py ../ada --name=ada --lesson=4    (only lesson 4's are missing)
$ python exercises/make_student.py ../regraded --name=x7 --handed_in=../ada    (her bodies put in)
"""

import argparse
import ast
import functools
import json
import os
import re
import subprocess
import textwrap

import grade
import graders

from configurator import UserError
from plumbing.console import prepare_console

ROOT = os.path.dirname(grade.HERE)
FOR_TEACHERS = (
    ".ci/",
    ".github/",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "exercises/another.py",
    "exercises/make_student.py",
    "exercises/student/",
    "exercises/wrong/",
    "tests/reference.py",
    "tests/test_exercises.py",
    "tests/test_lessons.py",  # of whole pages
    "tests/test_project_files.py",
)


# --------------------------------------------------------------------------------------------------
# functions and their bodies


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return f.read()


parsed = functools.lru_cache(maxsize=64)(ast.parse)


def find(source, name):
    """Source text, 'function' or 'Class.method' -> its ast node. Raises LookupError."""
    node = parsed(source)
    for part in name.split("."):
        node = next((n for n in node.body if getattr(n, "name", None) == part), None)
        if node is None:
            raise LookupError(name)
    return node


def body(source, name):
    """-> the lines of the function's body after its docstring, a slice of source.splitlines()."""
    node = find(source, name)
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is None:
        return slice(first.lineno - 1, node.end_lineno)
    return slice(first.end_lineno, node.end_lineno)  # with comments before its first statement


def replaced(source, name, lines):
    """-> source with other lines as the function's body."""
    all_lines = source.splitlines(True)
    all_lines[body(source, name)] = lines
    return "".join(all_lines)


def stripped(source, name, why):
    """-> source in which the function is a signature, a docstring, and an error that says why."""
    indent = " " * (find(source, name).col_offset + 4)
    return replaced(source, name, [f'{indent}raise NotImplementedError("{why}")\n'])


def targets(exercises):
    """-> (file, name of a function, what its empty body says) of all that a student misses."""
    for exercise in exercises:
        n = exercise["number"]
        for spec in exercise["functions"]:
            file, name = spec.split(":")
            yield file, name, f"exercise {n}: write {name} in {file}"
        for spec in exercise.get("also", ()):
            yield *spec.split(":"), f"left out: it would show exercise {n}"


# --------------------------------------------------------------------------------------------------
# what a student gets


def essence(line):
    """A line of code without comment and indentation, or '' if it is too short to say much."""
    line = re.sub(r"\s\s#.*", "", line).strip()
    return line if len(line) >= 20 and not line.startswith("#") else ""


def secret_lines(sources, exercises):
    """
    {file: text} -> {line: (what is left of its function, why)} of the lines that occur in the
    bodies to be written and nowhere else.
    """
    secret = {}
    left = dict(sources)
    for file, name, why in targets(exercises):
        node = find(sources[file], name)
        lines = sources[file].splitlines(True)
        signature = textwrap.dedent("".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
        for line in lines[body(sources[file], name)]:
            secret[essence(line)] = signature, why
        left[file] = stripped(left[file], name, why)
    known = {essence(line) for text in left.values() for line in text.splitlines()}
    return {line: instead for line, instead in secret.items() if line not in known}


def without_secrets(text, secret):
    """Markdown -> each block of code that shows a body has the function's signature instead."""

    def instead(block):
        left = {secret[line] for line in map(essence, block[0].splitlines()) if line in secret}
        if not left:
            return block[0]
        parts = []
        for signature, why in sorted(left):
            parts.append(f"# left out here, {why}\n{signature.rstrip()} ...\n")
        return "```python\n" + "\n\n".join(parts) + "```\n"

    return re.sub(r"^```python\n.*?^```\n", instead, text, flags=re.M | re.S)


def without_dead_links(text, page, files):
    """Markdown -> a link to a file that the folder lacks becomes its text."""

    def instead(link):
        target = link[2].split("#")[0]
        path = os.path.normpath(os.path.join(os.path.dirname(page), target))
        there = path in files or any(f.startswith(path + "/") for f in files)
        return link[0] if not target or "://" in target or there else link[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", instead, text)


def project_files():
    """-> all files of the project, as git has them; without git all that are not hidden."""
    if os.path.exists(os.path.join(ROOT, ".git")):
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [f for f in listed.stdout.splitlines() if os.path.exists(os.path.join(ROOT, f))]
    found = []
    for folder, inner, files in os.walk(ROOT):
        inner[:] = [d for d in inner if d[0] != "." and d not in ("out", "__pycache__")]
        for f in files:
            found.append(os.path.relpath(os.path.join(folder, f), ROOT).replace(os.sep, "/"))
    kinds = (".py", ".md", ".json", ".png", ".html", ".svg", "requirements.txt", "toml", "Makefile")
    return [f for f in sorted(found) if f.endswith(kinds)]


def words_of(source):
    """-> the names that a python file uses: variables, attributes, what it imports."""
    words = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            words |= {part for alias in node.names for part in alias.name.split(".")}
            words |= set((getattr(node, "module", None) or "").split("."))
    return words


def tests_to_drop(tests, exercises):
    """
    {file: text} -> the files that use a function to be written, the reference, or such a file.
    """
    missing = {name.split(".")[-1] for _, name, _ in targets(exercises)} | {"reference"}
    dropped = set()
    while True:
        found = {f for f, text in tests.items() if words_of(text) & missing} - {"tests/conftest.py"}
        if found == dropped:
            return dropped
        dropped = found
        missing |= {os.path.basename(f)[:-3] for f in found}


def settings(text):
    """
    pyproject.toml -> the imports that only a missing body uses are no mistakes, and a test that
    fails says all of it, so that skip_missing.py finds which body is missing.
    """
    text = text.replace("ignore = [", 'ignore = ["F401", ')
    return text.replace("testpaths = ", 'verbosity_assertions = "2"\ntestpaths = ')


def page_of(text, exercises):
    """exercises/README.md -> its first half, with the rows of these exercises."""
    numbers = {str(e["number"]) for e in exercises}
    page = text.split("## For the teacher")[0]
    return re.sub(
        r"^\| (\d+) \|.*\n", lambda row: row[0] if row[1] in numbers else "", page, flags=re.M
    )


def student_files(exercises):
    """-> {file: text or bytes} of a student's folder, except expected.json."""
    files = [f for f in project_files() if not f.startswith(FOR_TEACHERS)]
    texts = {f: read(ROOT, f) for f in files if not f.endswith(".png")}
    tests = {f: texts[f] for f in texts if f.startswith("tests/") and f.endswith(".py")}
    sources = {f: text for f, text in texts.items() if f.endswith(".py") and f not in tests}
    secret = secret_lines(sources, exercises)
    for f in tests_to_drop(tests, exercises):
        del texts[f]
    for file, name, why in targets(exercises):
        texts[file] = stripped(texts[file], name, why)
    texts["pyproject.toml"] = settings(texts["pyproject.toml"])
    texts["tests/skip_missing.py"] = read(ROOT, "exercises/student/skip_missing.py")
    texts["tests/conftest.py"] += "\nfrom skip_missing import pytest_runtest_makereport  # noqa\n"
    texts[".github/workflows/grade.yml"] = read(ROOT, "exercises/student/grade.yml")
    texts["exercises/README.md"] = page_of(texts["exercises/README.md"], exercises)
    texts["exercises/exercises.json"] = json.dumps(exercises, indent=1)
    there = {f for f in files if f in texts or f.endswith(".png")}
    for f in texts:
        if f.endswith(".md"):
            texts[f] = without_dead_links(without_secrets(texts[f], secret), f, there)
    for f in files:
        if f.endswith(".png"):
            with open(os.path.join(ROOT, f), "rb") as image:
                texts[f] = image.read()
    return texts


def with_handed_in(texts, folder, exercises):
    """-> the student's files with the bodies of the named functions, no more, from a folder."""
    texts = dict(texts)
    for exercise in exercises:
        for file, name in (spec.split(":") for spec in exercise["functions"]):
            try:
                source = read(folder, file)
                lines = source.splitlines(True)[body(source, name)]
                lines[-1] = lines[-1].rstrip("\n") + "\n"
                texts[file] = replaced(texts[file], name, lines)
                ast.parse(texts[file])
            except (OSError, LookupError, SyntaxError, UnicodeDecodeError) as error:
                raise UserError(f"{name} cannot be taken from {folder}/{file}: {error}.") from None
    return texts


def of_lesson(exercises, lesson):
    """-> the exercises of one lesson; what they need elsewhere is solved in the folder. 0: all."""
    chosen = [e for e in exercises if lesson in (0, e["lesson"])]
    if not chosen:
        have = sorted({e["lesson"] for e in exercises})
        raise UserError(f"Lesson {lesson} has no exercises; {', '.join(map(str, have))} have.")
    numbers = [e["number"] for e in chosen]
    return [{**e, "needs": [n for n in e["needs"] if n in numbers]} for e in chosen]


def expected(exercises, name):
    """-> the dict of expected.json: every number that a student with this name has to find."""
    numbers = {}
    for exercise in exercises:
        rows = []
        for probe in graders.grades(exercise, name):
            rows.append(grade.values(probe.got).tolist() if probe.expected is None else None)
        numbers[exercise["key"]] = rows
    return {"name": name, "numbers": numbers}


def make_student(folder, name, handed_in=None, lesson=0):
    """Writes the folder, which must be new and outside of the project. Raises UserError."""
    inside = os.path.realpath(folder).startswith(os.path.realpath(ROOT) + os.sep)
    if os.path.exists(folder) or inside:
        raise UserError(
            f"{folder} is there already, or lies inside the project. Take a new folder beside it."
        )
    exercises = of_lesson(grade.load_exercises(), lesson)
    texts = student_files(exercises)
    if handed_in:
        texts = with_handed_in(texts, handed_in, exercises)
    texts["exercises/expected.json"] = json.dumps(expected(exercises, name))
    for f, text in texts.items():
        path = os.path.join(folder, f)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(text if isinstance(text, bytes) else text.encode())
    return texts


if __name__ == "__main__":
    prepare_console()
    parser = argparse.ArgumentParser(description="Writes a student's folder.")
    parser.add_argument("folder", help="to be made, beside the project")
    parser.add_argument("--name", default="student", help="another name, other numbers")
    parser.add_argument("--handed_in", help="a student's folder: its functions are put in, no more")
    parser.add_argument(
        "--lesson", type=int, default=0, help="this lesson's exercises only; 0: all"
    )
    args = parser.parse_args()
    make_student(args.folder, args.name, args.handed_in, args.lesson)
    print(f"{args.folder} is ready: cd {args.folder}; make grade")
