"""
Knobs: a script's own globals, changed by python config files and by --key=value, later ones winning.
$ python train.py config/train_pydoc.py --batch_size=32         (--help prints every knob)

How it differs from nanoGPT's configurator: it is imported, not exec'd, so a debugger can step
through it; a misspelled knob raises an error, in a file as well as on the command line; and
importing a script parses nothing.
"""

import ast
import difflib
import json
import os
import runpy
import sys
import types


class UserError(ValueError):
    """A mistake of the person at the keyboard: what was wrong, the value seen, the command that mends it."""


def configure(script):
    """script: the globals() of a script whose globals so far are its knobs -> SimpleNamespace of their values.

    Imported (script["__name__"] is not "__main__"), it just returns the defaults. Raises UserError for an unknown
    knob, a value of another type, and a config file that is missing.
    """
    knobs = {k: v for k, v in script.items() if is_knob(k, v)}
    if script["__name__"] == "__main__":
        sys.excepthook = one_line_for_user_errors
        if "--help" in sys.argv or "-h" in sys.argv:
            print(knob_block(script["__file__"]))
            raise SystemExit(0)
        changed = parse(sys.argv[1:], knobs)
        for key, value in changed.items():
            print_once(f"{key} = {value!r}")
        knobs.update(changed)
        script.update(changed)
    return types.SimpleNamespace(**knobs)


def parse(argv, knobs):
    """["config/x.py", "--key=value", ...], {name: default} -> {name: new value} of the knobs that were named."""
    changed = {}
    for arg in argv:
        if not arg.startswith("--"):
            if not (os.path.isfile(arg) and arg.endswith(".py")):
                raise UserError(
                    f"{arg} is not a config file. Knobs are given as --key=value; config/ holds the files."
                )
            given = {
                k: v for k, v in runpy.run_path(arg).items() if k[0] != "_" and not is_helper(v)
            }
            changed.update({k: checked(k, v, knobs, arg) for k, v in given.items()})
        elif "=" not in arg:
            raise UserError(f"{arg} has no value. Write {arg}=VALUE.")
        else:
            key, text = arg[2:].split("=", 1)  # once: a value may contain '=' itself
            changed[key] = checked(key, from_text(text, knobs.get(key)), knobs, "the command line")
    return changed


def from_text(text, default):
    """A value as typed in a shell -> python: a string stays as typed, a list knob takes 4,8,16."""
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(
            f"[{text}]" if isinstance(default, list) and not text.startswith("[") else text
        )
    except (ValueError, SyntaxError):
        return text  # checked() names the type that was wanted


def checked(key, value, knobs, where):
    if key not in knobs:
        near = difflib.get_close_matches(key, knobs, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{key} (in {where}) is not a knob.{hint} --help lists them all.")
    wanted = type(knobs[key])
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is list and type(value) is list and type(knobs[key][0]) is float:
        value = [float(v) if type(v) is int else v for v in value]
    if type(value) is not wanted or (
        wanted is list and {type(v) for v in value} - {type(knobs[key][0])}
    ):
        raise UserError(
            f"{key} (in {where}) takes {wanted.__name__}, such as {knobs[key]!r}, but got {value!r}."
        )
    return value


def choose(name, value, choices):
    """Refuses a value that is not one of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")


def is_knob(name, value):
    return not name.startswith("_") and isinstance(value, (bool, int, float, str, list))


def is_helper(value):
    """What a config file may hold beside knobs: modules, functions, classes."""
    return callable(value) or isinstance(value, types.ModuleType)


def knob_block(path):
    """The source of a script's knobs, names, defaults and comments: from its first rule to configure."""
    with open(path, encoding="utf-8") as f:
        source = f.read()
    start = source.index("# ---")
    end = source.index("cfg = configure(")
    return source[start:end].strip()


def save_config(cfg, out_dir, **more):
    """Every knob, and what else the run is, to out_dir/config.json."""
    with open(os.path.join(out_dir, "config.json"), "w", encoding="utf-8") as f:
        json.dump({**vars(cfg), **more}, f, indent=2)


def first_line(error):
    """-> the first line of an exception's message, for a message of one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:100]


def print_once(*args):
    """print on the first process of a torchrun only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*args, flush=True)


def one_line_for_user_errors(kind, error, traceback):
    if issubclass(kind, UserError):
        print(error, file=sys.stderr)
    elif issubclass(kind, NotImplementedError) and "MPS" in str(error):
        print(
            "An Apple GPU lacks an operation: set PYTORCH_ENABLE_MPS_FALLBACK=1, or --device=cpu.",
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, traceback)
