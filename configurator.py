"""
Knobs: a script's own globals, changed by python config files and by --key=value; later ones win.
$ python train.py config/train_pydoc.py --batch_size=32         (--help prints every knob)

How it differs from nanoGPT's configurator: it is imported, not exec'd, so a debugger can step
through it; a misspelled knob raises an error, in a file as well as on the command line; and
importing a script parses nothing, so that tests can import train.py.
"""

import ast
import difflib
import json
import os
import runpy
import sys
import textwrap
import types


class UserError(ValueError):
    """A user's mistake: what was wrong, the value seen, the command that fixes it."""


def configure(script):
    """
    script: the globals() of a script, at the end of its knobs -> an object with the knobs as
    attributes. An imported script gets its defaults.

    Raises UserError for an unknown knob, a value of another type, a config file that is missing.
    """
    knobs = {name: value for name, value in script.items() if is_knob(name, value)}
    if script["__name__"] == "__main__":
        from plumbing.console import prepare_console  # not above: it imports this file

        prepare_console()
        if "--help" in sys.argv or "-h" in sys.argv:
            print(knob_block(script["__file__"]))
            raise SystemExit(0)
        changed = parse(sys.argv[1:], knobs)
        for name, value in changed.items():
            print_once(f"{name} = {value!r}")
        knobs.update(changed)
        script.update(changed)
    return types.SimpleNamespace(**knobs)


def is_knob(name, value):
    return not name.startswith("_") and isinstance(value, (bool, int, float, str, list))


def parse(argv, knobs):
    """["config/x.py", "--key=value", ...], {name: default} -> {name: new value}, of those named."""
    changed = {}
    for arg in argv:
        if not arg.startswith("--"):
            for name, value in read_config(arg).items():
                changed[name] = checked(name, value, knobs, arg)
        elif "=" in arg:
            name, text = arg[2:].split("=", 1)  # once: a value may contain '=' itself
            value = from_text(text, knobs.get(name))
            changed[name] = checked(name, value, knobs, "the command line")
        else:
            raise UserError(f"{arg} has no value. Write {arg}=VALUE.")
    return changed


def read_config(path):
    """A python file -> {name: value} of its globals, without modules, functions and classes."""
    if not (os.path.isfile(path) and path.endswith(".py")):
        raise UserError(
            f"{path} is not a config file (config/ has some). A knob is --key=value, of several "
            "numbers --key=1,2."
        )
    found = {}
    for name, value in runpy.run_path(path).items():
        is_helper = callable(value) or isinstance(value, types.ModuleType)
        if not name.startswith("_") and not is_helper:
            found[name] = value
    return found


def from_text(text, default):
    """A value as typed in a shell -> python: a string stays as typed, a list knob takes 4,8,16."""
    if isinstance(default, str):
        return text
    if isinstance(default, list) and not text.startswith("["):
        text = f"[{text}]"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # checked() names the type that was wanted


def checked(name, value, knobs, where):
    """-> the value, if the knob exists and takes its type."""
    if name not in knobs:
        near = difflib.get_close_matches(name, knobs, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{name} (in {where}) is not a knob.{hint} --help lists them all.")
    default = knobs[name]
    if isinstance(default, list):
        fits = isinstance(value, list) and all(is_like(v, default[0]) for v in value)
        if fits:
            return [type(default[0])(v) for v in value]
    elif is_like(value, default):
        return type(default)(value)
    kind = type(default).__name__
    raise UserError(f"{name} (in {where}) takes {kind}, such as {default!r}, but got {value!r}.")


def is_like(value, default):
    """Whether value has the type of default; an int may stand for a float."""
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def choose(name, value, choices):
    """Raises UserError unless the value is one of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")


def check_at_least(cfg, **least):
    """Raises UserError for a knob below its least value."""
    for name, smallest in least.items():
        value = getattr(cfg, name)
        if value < smallest:
            raise UserError(f"{name} is {value}; it must be at least {smallest}.")


def knob_block(path):
    """-> the source of a script's knobs: names, defaults, comments, up to the call of configure."""
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
    line = (str(error) or type(error).__name__).splitlines()[0]
    return textwrap.shorten(line, 120, placeholder=" ...")


def print_once(*args):
    """print, on the first process of a torchrun only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*args, flush=True)
