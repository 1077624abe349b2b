"""
In a student's folder tests/conftest.py takes this hook: a test that needs a function which is still
to be written is skipped, and says which.
"""

import re

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    missing = r"NotImplementedError: ((exercise \d+|left out)[^\\\n\"']*)"
    why = re.search(missing, report.longreprtext)
    if report.failed and why:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1], f"Skipped: {why[1]}")
    return report
