"""
What a script says in any terminal or pipe: text with replacements, a user's mistakes in one line.
"""

import sys

from configurator import UserError


def prepare_console():
    """Before a script prints: no text ever stops it, and its errors are for its user."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has an encoding of its own
        # a Windows pipe or an old terminal cannot write every character. stderr replaces already
        sys.stdout.reconfigure(errors="replace")
    sys.excepthook = one_line_for_user_errors


def one_line_for_user_errors(kind, error, traceback):
    if issubclass(kind, UserError):
        print(error, file=sys.stderr)
    elif issubclass(kind, NotImplementedError) and "MPS" in str(error):
        hint = "set PYTORCH_ENABLE_MPS_FALLBACK=1, or --device=cpu"
        print(f"An Apple GPU lacks an operation: {hint}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
