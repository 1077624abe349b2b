"""
Says of each exercise whether it is passed, what the first wrong value is, or which other exercise it waits for.
$ python exercises/grade.py            (or: make grade; some seconds, nothing to download)
$ python exercises/grade.py 3          (that one alone and without a time limit, for breakpoint() and debuggers)
"""

import json
import os
import re
import signal
import sys
import traceback

import graders
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = 20  # for an exercise; none needs one


def load_exercises():
    with open(os.path.join(HERE, "exercises.json"), encoding="utf-8") as f:
        return json.load(f)


def values(x):
    return torch.as_tensor(x, dtype=torch.float64).detach()  # a list of floats would become float32


def first_difference(probe, expected):
    """A Probe, the right number or list of numbers -> None, or what the first wrong value is and what is right."""
    if probe.got is None:
        return "None, no numbers. Is there a return on every way through it?"
    if isinstance(probe.got, torch.Size):
        shape = tuple(map(int, expected))
        return None if tuple(probe.got) == shape else f"{tuple(probe.got)}, expected {shape}"
    got, right = values(probe.got), values(expected).flatten()
    if got.numel() != right.numel():
        return f"{got.numel()} values of shape {tuple(got.shape)}, expected {right.numel()}"
    close = (got.flatten() - right).abs() <= probe.within  # False for NaN
    wrong = (~(close | (got.flatten() == right))).nonzero().flatten()
    if not len(wrong):
        return None
    i = int(wrong[0])
    place = [int(x) for x in torch.unravel_index(torch.tensor(i), got.shape)] if got.dim() else ""
    about = f" (within {probe.within:g})" if probe.within else ""
    return f"{place}{' is ' * bool(place)}{got.flatten()[i]:.6g}, expected {right[i]:.6g}{about}"


def verdict(exercise, name, numbers, hurry=True):
    """An exercise, a student's name, the numbers of expected.json for it -> one line. hurry: after SECONDS at most."""

    def too_slow(*_):
        raise TimeoutError(f"no answer after {SECONDS} seconds")

    hurry = hurry and hasattr(signal, "SIGALRM")  # not on Windows
    if hurry:
        signal.signal(signal.SIGALRM, too_slow)
        signal.alarm(SECONDS)
    try:
        for probe, number in zip(graders.grades(exercise, name), numbers, strict=True):
            difference = first_difference(
                probe, number if probe.expected is None else probe.expected
            )
            if difference:
                return f"wrong: {probe.what}: {difference}"
        return "passed"
    except Exception as error:  # whatever a student's code may do
        undone = isinstance(error, NotImplementedError) and re.match(r"exercise (\d+)", str(error))
        if undone:
            return (
                "not done"
                if int(undone[1]) == exercise["number"]
                else f"waits for exercise {undone[1]}"
            )
        files = [spec.split(":")[0] for spec in exercise["functions"]]
        way = traceback.extract_tb(error.__traceback__)
        at = ([line for line in way if os.path.basename(line.filename) in files] or way)[
            -1
        ]  # the student's last line
        said = (str(error) or "no message").splitlines()[0]
        return f"stops: {type(error).__name__}: {said} ({os.path.basename(at.filename)}, line {at.lineno})"
    finally:
        if hurry:
            signal.alarm(0)


def grade_all(exercises, name, numbers, hurry=True):
    """-> {number: verdict}. An exercise that needs another of them is graded once that one is passed."""
    verdicts = {}
    for exercise in exercises:
        missing = [n for n in exercise["needs"] if verdicts.get(n, "passed") != "passed"]
        here = verdict(exercise, name, numbers[exercise["key"]], hurry)
        if missing and here not in ("passed", "not done"):
            here = f"waits for exercise {missing[0]}"
        verdicts[exercise["number"]] = here
    return verdicts


def main():
    path, exercises = os.path.join(HERE, "expected.json"), load_exercises()
    if not os.path.exists(path):
        raise SystemExit(
            "There is nothing to grade here. Make a student's folder: python exercises/make_student.py FOLDER"
        )
    with open(path, encoding="utf-8") as f:
        expected = json.load(f)
    unknown = set(sys.argv[1:]) - {str(e["number"]) for e in exercises}
    if unknown:
        raise SystemExit(
            f"There is no exercise {', '.join(sorted(unknown))}: they are 1 to {len(exercises)}."
        )
    exercises = [e for e in exercises if str(e["number"]) in sys.argv[1:]] or exercises
    torch.set_num_threads(1)
    verdicts = grade_all(exercises, expected["name"], expected["numbers"], hurry=len(sys.argv) == 1)
    for exercise in exercises:
        print(f"{exercise['number']:3}  {exercise['title']:36} {verdicts[exercise['number']]}")
    print(
        f"{list(verdicts.values()).count('passed')} of {len(exercises)} passed ({expected['name']})"
    )


if __name__ == "__main__":
    main()
