"""
The folder of a run: who may write there, what it holds, its log.
"""

import json
import os

import filelock
import numpy as np
from tqdm import tqdm

from configurator import UserError
from data import matching, read_json, write_json, write_jsonl
from plumbing.checkpoints import load_checkpoint
from plumbing.console import leave_interrupts


class Log:
    """
    Appends objects to out_dir/log.jsonl, a line each, and to Weights & Biases if that is asked for.
    """

    def __init__(self, out_dir, start, wandb_project="", config=None):
        """start: what was logged after this step is redone, so it is cut."""
        path = os.path.join(out_dir, "log.jsonl")
        old = read_log(out_dir) if start and os.path.exists(path) else []
        write_jsonl(path, [record for record in old if record["step"] <= start])
        self.file = open(path, "a", encoding="utf-8")
        self.wandb = None
        if wandb_project:
            import wandb

            self.wandb = wandb.init(
                project=wandb_project, name=out_dir, config=config, resume="allow"
            )

    def write(self, record):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.wandb:
            self.wandb.log(record, step=record["step"])


def read_log(folder):
    """
    The folder of a run -> the objects of its log.jsonl, except a line that is only half written.
    """
    try:
        with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as f:
            return [json.loads(line) for line in f if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no log.jsonl of a training ({error}).") from None


def files_of_run(out_dir, names=("ckpt.pt", "round_*.pt", "ngram.txt")):
    """-> the paths of what a run has left in out_dir, in order: of any kind, or those names."""
    return [os.path.join(out_dir, path) for name in names for path in matching(name, out_dir)]


def to_resume(out_dir, name):
    """-> the checkpoints of that name in out_dir, at least one."""
    found = files_of_run(out_dir, [name])
    if not found:
        hint = "Leave --init_from=resume out"
        if files_of_run(out_dir):
            hint = "It is the folder of another kind of run"
        raise UserError(f"There is nothing to resume in {out_dir}: it holds no {name}. {hint}.")
    return found


def checkpoint_to_resume(cfg):
    """-> the checkpoint that a run without rounds goes on from, or None."""
    if cfg.init_from != "resume":
        return None
    return load_checkpoint(os.path.join(cfg.out_dir, "ckpt.pt"))


def check_unused(out_dir):
    """A new run never writes into the folder of another."""
    if files_of_run(out_dir):
        hint = "Take another --out_dir, delete it, or continue it with --init_from=resume."
        if files_of_run(out_dir, ["ngram.txt"]):
            hint = "Take another --out_dir, or delete it: n-grams cannot be resumed."
        raise UserError(f"{out_dir} already holds a run. {hint}")


LOCKS = {}  # folder that this process has claimed -> its lock, which dies with it


def claim(out_dir):
    """Makes the folder. Raises UserError if it cannot, or if another process is writing there."""
    try:
        os.makedirs(out_dir, exist_ok=True)
    except OSError as error:  # a file of that name, no permission
        raise UserError(f"Cannot make {out_dir} ({error}). Take another --out_dir.") from None
    LOCKS[out_dir] = filelock.FileLock(os.path.join(out_dir, "lock"))
    try:
        LOCKS[out_dir].acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(
            f"Another run is writing to {out_dir}. Wait for it, or take another --out_dir."
        ) from None
    except (OSError, NotImplementedError):  # some network disks lock nothing
        pass


def release(out_dir):
    """Undoes claim, and a training's hold on Ctrl-C. (So does the end of the process.)"""
    leave_interrupts()
    if out_dir in LOCKS:
        LOCKS[out_dir].release()


# Knobs that may differ when a run is resumed: where it is, how far it goes, what it runs on, how
# often it reports, and the learning rate, which a user lowers where the loss became NaN. Any other
# one, changed half-way, would make a run that no single command can repeat.
MAY_CHANGE_ON_RESUME = {"out_dir", "init_from", "rounds", "device", "dtype", "compile", "attention"}
MAY_CHANGE_ON_RESUME |= {"fsdp", "wandb", "eval_interval", "eval_iters", "sample_interval"}
MAY_CHANGE_ON_RESUME |= {"learning_rate"}


def check_folder(cfg, pattern, free=()):
    """
    A new distillation takes a new folder, a resumed one its own, with the same knobs.

    pattern: of its checkpoints' names. free: what else may differ.
    """
    if cfg.init_from == "teacher":
        return check_unused(cfg.out_dir)
    for path in to_resume(cfg.out_dir, pattern):
        was = load_checkpoint(path)["config"]
        for key in sorted((vars(cfg).keys() & was.keys()) - MAY_CHANGE_ON_RESUME - set(free)):
            value = getattr(cfg, key)
            if value != was[key]:
                raise UserError(
                    f"{path} was distilled with {key} {was[key]}, not {value!r}. "
                    "Resume it with the same, or choose another --out_dir."
                )


def check_origin(path, origin):
    """
    origin: a dict that says what the data beside `path` are made from. It is written there, or, if
    path exists, must be the same.
    """
    if not os.path.exists(path):
        return write_json(path, origin)
    was = read_json(path)
    folder = os.path.dirname(path)
    for name, value in origin.items():
        if was.get(name, value) != value:
            raise UserError(
                f"{folder} was begun with {name} {was.get(name)!r}, not {value!r}. "
                "Delete it, or take another --out_dir."
            )


def write_chunks(path, n_chunks, shape, dtype, make_chunk):
    """
    -> (n, T) memory-mapped tokens, the rows of n_chunks chunks: make_chunk(i) -> (rows, T), which
    is shape. They are appended to path. If it is interrupted, the next call goes on.
    """
    rows, T = shape
    dtype = np.dtype(dtype)
    size = rows * T * dtype.itemsize  # bytes of a chunk
    done = os.path.getsize(path) // size if os.path.exists(path) else 0
    bar = tqdm(
        range(done, n_chunks), initial=done, total=n_chunks, desc="pseudo-data", unit="chunk"
    )
    with open(path, "ab") as f:
        f.truncate(done * size)  # a chunk that was cut off is written again
        for i in bar:
            f.write(make_chunk(i).cpu().numpy().astype(dtype).tobytes())
            f.flush()
    return np.memmap(path, dtype=dtype, mode="r").reshape(-1, T)[: n_chunks * rows]
