"""
The folder of a run: who may write there, what it holds, its log.
"""

import hashlib
import json
import os

import filelock

from configurator import UserError
from data import matching, read_json, write_json, write_jsonl
from plumbing.checkpoints import load_checkpoint


def open_log(cfg, start):
    """-> f(dict): appends a line to out_dir/log.jsonl (and to wandb). Lines after step `start` are redone: cut."""
    path = os.path.join(cfg.out_dir, "log.jsonl")
    old = read_log(cfg.out_dir) if start and os.path.exists(path) else []
    write_jsonl(path, [record for record in old if record["step"] <= start])
    file = open(path, "a", encoding="utf-8")
    run = None
    if cfg.wandb:
        import wandb

        run = wandb.init(project=cfg.wandb, name=cfg.out_dir, config=vars(cfg), resume="allow")

    def log(record):
        file.write(json.dumps(record) + "\n")
        file.flush()
        if run:
            run.log(record, step=record["step"])

    return log


def read_log(folder):
    """The folder of a run -> the objects of its log.jsonl, but not a line that is only half written."""
    try:
        with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as f:
            return [json.loads(line) for line in f if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no log.jsonl of a training ({error}).") from None


def files_of_run(out_dir, names=("ckpt.pt", "round_*.pt", "ngram.txt")):
    """-> the paths of what a run of any kind, or of the one that writes such names, has left in out_dir, in order."""
    return [os.path.join(out_dir, path) for name in names for path in matching(name, out_dir)]


def to_resume(out_dir, name):
    """-> the checkpoints of that name in out_dir, at least one."""
    if not (found := files_of_run(out_dir, [name])):
        mend = (
            "It is the folder of another kind of run"
            if files_of_run(out_dir)
            else "Leave --init_from=resume out"
        )
        raise UserError(f"There is nothing to resume in {out_dir}: it holds no {name}. {mend}.")
    return found


def saved_of(cfg):
    """-> the checkpoint that a run without rounds goes on from, or None."""
    return (
        load_checkpoint(os.path.join(cfg.out_dir, "ckpt.pt")) if cfg.init_from == "resume" else None
    )


def refuse_used(out_dir):
    """A new run never writes into the folder of another."""
    if files_of_run(out_dir):
        mend = "Take another --out_dir, delete it, or (but for an n-gram) continue it with --init_from=resume"
        raise UserError(f"{out_dir} already holds a run. {mend}.")


LOCKS = {}  # folder -> its lock, which dies with its process


def claim(out_dir):
    """Makes the folder and refuses it if another process is writing there."""
    os.makedirs(out_dir, exist_ok=True)
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
    """Undoes claim. (So does the end of the process.)"""
    if out_dir in LOCKS:
        LOCKS.pop(out_dir).release()


def refuse_wrong_folder(cfg, writes):
    """A new distillation takes a new folder, a resumed one its own. writes: the pattern of its checkpoints' names."""
    if cfg.init_from == "teacher":
        return refuse_used(cfg.out_dir)
    for path in to_resume(cfg.out_dir, writes):
        refuse_other_knobs(cfg, path)


def refuse_other_knobs(cfg, path):
    """A resumed run keeps the knobs that what it has written depends on."""
    free = {
        "rounds",
        "final_steps",
        "out_dir",
        "init_from",
        "export",
        "device",
        "dtype",
        "compile",
        "attention",
    }
    free |= {
        "wandb",
        "fsdp",
        "laptop_minutes",
        "eval_interval",
        "eval_iters",
        "sample_interval",
        "log_interval",
    }
    free |= {"learning_rate"}
    free |= (
        set() if cfg.method == "sdtt" else {"iters_per_round", "max_iters"}
    )  # a run without rounds may be prolonged
    was = load_checkpoint(path)["config"]
    for key in sorted((vars(cfg).keys() & was.keys()) - free):
        if getattr(cfg, key) != was[key]:
            mend = "Resume it with the same, or choose another --out_dir."
            raise UserError(
                f"{path} was distilled with {key} {was[key]}, not {getattr(cfg, key)!r}. {mend}"
            )


def refuse_other_origin(path, cfg, T):
    """Writes down what the text or labels beside `path` come from, or refuses them if it was something else."""
    names = (
        "teacher",
        "teacher_step",
        "teacher_loss",
        "dataset",
        "seed",
        "topk",
        "soft_data",
        "soft_length",
    )
    names += (
        ("pseudo_tokens",) if cfg.method == "soft" and not cfg.soft_data else ()
    )  # pseudo.bin may grow
    made = {"T": T} | {name: getattr(cfg, name, None) for name in names}
    if cfg.soft_data.endswith(".jsonl"):
        digest = hashlib.sha256()
        with open(cfg.soft_data, "rb") as f:
            for part in iter(lambda: f.read(2**20), b""):
                digest.update(part)
        made["soft_data holds"] = digest.hexdigest()[:16]
    if not os.path.exists(path):
        return write_json(path, made)
    was, folder = read_json(path), os.path.dirname(path)
    for name, value in made.items():
        if was.get(name, value) != value:
            mend = "Delete it, or take another --out_dir."
            raise UserError(
                f"{folder} was begun with {name} {was.get(name)!r}, not {value!r}. {mend}"
            )
