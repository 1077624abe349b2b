"""
What a script says in any terminal or pipe: text with replacements, a user's mistakes in one line,
after Ctrl-C how to go on.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading

from configurator import UserError


def prepare_console():
    """Before a script prints: no text ever stops it, and its errors are for its user."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has an encoding of its own
        # a Windows pipe or an old terminal cannot write every character. stderr replaces already
        sys.stdout.reconfigure(errors="replace")
    sys.excepthook = say_error
    if hasattr(os, "register_at_fork"):  # a worker leaves Ctrl-C to who started it
        os.register_at_fork(after_in_child=ignore_interrupts)


def ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def say_error(kind, error, traceback):
    """One line for what a user can do something about; a traceback for what we should."""
    if is_interrupt(error):
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\n{after_interrupt()}", file=sys.stderr)
        if kind is not KeyboardInterrupt:  # to that Python gives this status itself
            raise SystemExit(130)
    elif issubclass(kind, UserError):
        print(error, file=sys.stderr)
    elif issubclass(kind, NotImplementedError) and "for the MPS device" in str(error):
        hint = "set PYTORCH_ENABLE_MPS_FALLBACK=1, or --device=cpu"
        print(f"An Apple GPU lacks an operation: {hint}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# --------------------------------------------------------------------------------------------------
# Ctrl-C


def is_interrupt(error):
    """Whether it is that of Ctrl-C, or came up while something put an end to its work after one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


TAKEN = []  # whether Ctrl-C is not Python's own at present: it holds who wants to know of the first


def take_first_interrupt(ask):
    """The next Ctrl-C calls ask() and goes on, one after it ends at once, as ever."""
    here = threading.current_thread() is threading.main_thread()
    # some have another use for it, or are deaf to it, as what a shell runs in the background
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        TAKEN.append(ask)
        signal.signal(signal.SIGINT, on_first_interrupt)


def on_first_interrupt(number, frame):
    (ask,) = TAKEN
    leave_interrupts()
    ask()


def leave_interrupts():
    """Ctrl-C ends at once, if it was taken."""
    if TAKEN:
        TAKEN.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def after_interrupt():
    """-> what Ctrl-C has left of a run, and the command that continues it."""
    # Not imported: that takes seconds, and an import now makes Python forget the exit status.
    runs = sys.modules.get("plumbing.runs")
    if not runs or not runs.LOCKS:
        return "Interrupted."
    out_dir = list(runs.LOCKS)[-1]
    saved = runs.files_of_run(out_dir, ["ckpt.pt", "round_*.pt"])
    if not saved:
        return f"Interrupted before the first checkpoint. Again: {this_command()}"
    command = this_command("--init_from=resume")
    return f"Interrupted. The last checkpoint is {saved[-1]}. Continue: {command}"


def this_command(*more):
    """-> the command that runs this script, with other values of these knobs."""
    if "WORLD_SIZE" in os.environ:  # nobody tells a process what torchrun was called with
        return " and ".join(["the same torchrun", *more])
    module = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", module.name] if module else sys.argv[:1]
    names = tuple(knob.partition("=")[0] + "=" for knob in more)
    args = [arg for arg in sys.argv[1:] if not arg.startswith(names)] if names else sys.argv[1:]
    words = ["python", *script, *args, *more]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
