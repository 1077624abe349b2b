"""
Says of each exercise whether it is passed, what the first wrong value is, or which other exercise
it waits for. Its exit status is 1 if one is wrong or stops.
$ python exercises/grade.py            (or: make grade; some seconds, nothing to download)
$ python exercises/grade.py 3          (that one alone, without a time limit, for debuggers)
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
SECONDS = 20  # of the CPU, for an exercise; a second is enough for most


def load_exercises():
    with open(os.path.join(HERE, "exercises.json"), encoding="utf-8") as f:
        return json.load(f)


def values(x):
    """A number, a list of them or a tensor -> a float64 tensor."""
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], torch.Tensor):
        x = torch.stack([values(part) for part in x])
    return torch.as_tensor(x, dtype=torch.float64).detach()  # a list of floats would become float32


def first_difference(probe, expected):
    """A Probe, the right number or (nested) list of numbers -> None, or the first difference."""
    if probe.got is None:
        return "got None. Is there a return on every way through it?"
    got = values(probe.got)
    right = values(expected)
    if isinstance(probe.got, torch.Size):  # a shape is what is asked for
        shape = tuple(int(n) for n in right)
        return None if tuple(probe.got) == shape else f"got {tuple(probe.got)}, expected {shape}"
    if got.shape != right.shape:
        return f"got shape {tuple(got.shape)}, expected {tuple(right.shape)}"
    close = (got - right).abs() <= probe.within  # False for NaN
    wrong = (~(close | (got == right))).nonzero()
    if not len(wrong):
        return None
    i = tuple(wrong[0].tolist())
    at = f" at {list(i)}" if i else ""
    if not probe.within:
        return f"got {got[i]:.6g}{at}, expected {right[i]:.6g}"
    # a number that was itself found by drawing is no more exact than that
    about = "about " if probe.expected is None and probe.within > 1e-3 else ""
    digits = 6 if probe.within <= 1e-3 else 4
    within = f"(within {probe.within:g})"
    return f"got {got[i]:.{digits}g}{at}, expected {about}{right[i]:.{digits}g} {within}"


def too_slow(*_):
    raise TimeoutError(f"no answer after {SECONDS} seconds")


def verdict(exercise, name, numbers, hurry=True):
    """
    An exercise, a student's name, the numbers of expected.json for it -> one line.

    hurry: after SECONDS at most.
    """
    hurry = hurry and hasattr(signal, "SIGPROF")  # not on Windows
    if hurry:
        signal.signal(signal.SIGPROF, too_slow)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # a busy machine is not the student's fault
        signal.signal(signal.SIGALRM, too_slow)
        signal.alarm(10 * SECONDS)  # waiting, as at a breakpoint() left behind, takes no CPU
    try:
        for probe, number in zip(graders.grades(exercise, name), numbers, strict=True):
            right = number if probe.expected is None else probe.expected
            difference = first_difference(probe, right)
            if difference:
                return f"wrong: {probe.what}: {difference}"
        return "passed"
    except Exception as error:  # whatever a student's code may do
        return what_stopped(exercise, error)
    finally:
        if hurry:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)


def what_stopped(exercise, error):
    """-> 'not done', 'waits for exercise 3', or the error with the student's last line."""
    undone = isinstance(error, NotImplementedError) and re.match(r"exercise (\d+)", str(error))
    if undone:
        n = int(undone[1])
        return "not done" if n == exercise["number"] else f"waits for exercise {n}"
    files = [os.path.basename(spec.split(":")[0]) for spec in exercise["functions"]]
    way = traceback.extract_tb(error.__traceback__)
    theirs = [line for line in way if os.path.basename(line.filename) in files]
    at = (theirs or way)[-1]
    said = (str(error) or "no message").splitlines()[0]
    file = os.path.basename(at.filename)
    return f"stops: {type(error).__name__}: {said} ({file}, line {at.lineno})"


def grade_all(exercises, name, numbers, hurry=True):
    """-> {number: verdict}. An exercise that needs another one is graded once that is passed."""
    verdicts = {}
    for exercise in exercises:
        missing = [n for n in exercise["needs"] if verdicts.get(n, "passed") != "passed"]
        here = verdict(exercise, name, numbers[exercise["key"]], hurry)
        if missing and here not in ("passed", "not done"):
            here = f"waits for exercise {missing[0]}"
        verdicts[exercise["number"]] = here
    return verdicts


def main():
    path = os.path.join(HERE, "expected.json")
    exercises = load_exercises()
    if not os.path.exists(path):
        raise SystemExit(
            "There is nothing to grade here. Make a student's folder: "
            "python exercises/make_student.py FOLDER"
        )
    with open(path, encoding="utf-8") as f:
        expected = json.load(f)
    numbers = [str(e["number"]) for e in exercises]
    unknown = sorted(set(sys.argv[1:]) - set(numbers))
    if unknown:
        raise SystemExit(
            f"There is no exercise {', '.join(unknown)} here, only {', '.join(numbers)}."
        )
    exercises = [e for e in exercises if str(e["number"]) in sys.argv[1:]] or exercises
    torch.set_num_threads(1)
    verdicts = grade_all(exercises, expected["name"], expected["numbers"], hurry=len(sys.argv) == 1)
    for exercise in exercises:
        print(f"{exercise['number']:3}  {exercise['title']:36} {verdicts[exercise['number']]}")
    passed = list(verdicts.values()).count("passed")
    print(f"{passed} of {len(exercises)} passed ({expected['name']})")
    if any(said.startswith(("wrong", "stops")) for said in verdicts.values()):
        sys.exit(1)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `grade.py | head` ends without a traceback
    main()
