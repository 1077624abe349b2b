"""
python -m pytest tests/test_project_files.py        pyproject, the workflow, CONTRIBUTING, CHANGELOG
"""

import os
import re

import pytest
import yaml
from conftest import ROOT

tomllib = pytest.importorskip("tomllib")  # of Python 3.11


def text_of(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def required(file):
    return [line for line in text_of(file).splitlines() if line and not line.startswith("#")]


def test_pyproject_depends_on_what_make_installs():
    project = tomllib.loads(text_of("pyproject.toml"))
    about = project["project"]
    assert about["name"] == "nanosdtt" and about["requires-python"] == ">=3.10"
    assert about["dependencies"] == required("requirements.txt")
    optional = about["optional-dependencies"]
    assert optional["test"] == required("requirements-test.txt")
    assert set(optional["hf"]) <= set(optional["test"])
    assert optional["hf"][0] in text_of("README.md")
    assert project["tool"]["uv"]["package"] is False and "build-system" not in project


def test_the_changelog_begins_with_the_version_of_pyproject():
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert re.search(r"^## (\S+)", text_of("CHANGELOG.md"), re.M)[1] == version


def test_every_push_runs_the_commands_of_the_readme():
    workflow = yaml.safe_load(text_of(".github", "workflows", "test.yml"))
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    readme = text_of("README.md")
    (job,) = workflow["jobs"].values()
    assert "3.10" in job["strategy"]["matrix"]["python"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "make test"
    assert all(f"    {command}" in readme for command in commands)


def test_what_contributing_names_is_there():
    page = text_of("CONTRIBUTING.md").replace("NAME", "dimo")
    for name in re.findall(r"`([\w/]+(?:\.py|\.md|/))`", page):
        assert os.path.exists(os.path.join(ROOT, name)), name
    for target in re.findall(r"`make (\w+)`", page):
        assert f"\n{target}:" in text_of("Makefile"), target
