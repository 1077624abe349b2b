"""
What the training loop has around it: its state for a checkpoint, its bar and log.
"""

import math
import os
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import UserError, print_once
from plumbing.console import leave_interrupts, take_first_interrupt
from plumbing.hardware import dtype_of
from plumbing.parallel import is_shard, rank_and_world, shard_like, whole
from plumbing.runs import Log, files_of_run

# --------------------------------------------------------------------------------------------------
# float16


def make_scaler(device, autocast):
    """
    -> a GradScaler, which does something in float16 only: that has no numbers below 6e-8, where
    many gradients are, so the loss is multiplied by a large scale before its backward pass, and the
    gradients are divided by it afterwards.
    """
    is_float16 = dtype_of(autocast) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=is_float16)


# --------------------------------------------------------------------------------------------------
# what is saved, and how a run goes on from it


def training_state(model, optimizer, averaged, scaler, step):
    """
    -> a dict. With FSDP all processes must call this; the first one gets the whole weights.
    """
    state = {
        "model": model.state_dict(),
        "ema": averaged or None,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": step,
    }
    sharded = any(is_shard(p) for p in model.parameters())
    return whole(state) if sharded else state


def restore(resume, optimizer, averaged, scaler, cfg):
    """Loads optimizer, averages and scaler from the checkpoint `resume` -> its step."""
    if bool(resume["ema"]) != bool(cfg.ema):
        ema = resume["config"]["ema"]
        raise UserError(f"{cfg.out_dir} was trained with --ema={ema}; resume it with the same.")
    saved = resume["optimizer"]
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for i, moments in saved["state"].items():
        state[i] = {key: shard_like(ordered[i], x) for key, x in moments.items()}
    optimizer.load_state_dict({**saved, "state": state})
    for name, average in averaged.items():
        averaged[name] = shard_like(average, resume["ema"][name])
    if resume.get("scaler"):  # of a run in another format it is empty
        scaler.load_state_dict(resume["scaler"])
    if resume["step"] >= cfg.max_iters:
        print_once(f"{cfg.out_dir} is already trained for {resume['step']} steps.")
    return resume["step"]


# --------------------------------------------------------------------------------------------------
# what a run says

LOG_INTERVAL = 10  # steps


class Progress:
    """The progress bar and log.jsonl. Stops a run at a loss that is not finite, or at Ctrl-C."""

    def __init__(self, cfg, start, steps_before):
        self.out_dir = cfg.out_dir
        self.steps_before = steps_before
        self.is_untrained = True  # no step has changed a weight
        self.rank, self.world = rank_and_world()
        self.log = None
        if self.rank == 0:
            self.log = Log(cfg.out_dir, steps_before + start, cfg.wandb, vars(cfg))
        self.bar = tqdm(
            total=cfg.max_iters,
            initial=start,
            unit="step",
            disable=self.rank != 0,
            dynamic_ncols=True,
        )
        self.interrupted = False
        if self.world == 1:  # several processes cannot agree on a last step
            take_first_interrupt(self.ask_for_the_end)
        self.begin()

    def ask_for_the_end(self):
        self.interrupted = True
        # not print, which may have been interrupted itself
        os.write(2, b"\nThis step is the last: it is saved. Ctrl-C again ends at once.\n")

    def close(self):
        self.bar.close()
        leave_interrupts()

    def begin(self):
        self.losses = []
        self.tokens = 0
        self.began = time.perf_counter()

    def add(self, step, loss, lr, tokens, evaluating):
        """Counts a step. Every LOG_INTERVAL steps, and before a validation, logs loss and speed."""
        self.losses.append(loss)
        self.tokens += tokens
        self.bar.update()
        if (step + 1) % LOG_INTERVAL and not evaluating:
            return
        losses = torch.stack(self.losses)
        if self.world > 1:
            dist.all_reduce(losses)
            losses /= self.world
        self.check_finite(losses.tolist(), step, lr)
        self.is_untrained = False
        mean = losses.mean().item()
        speed = self.tokens / (time.perf_counter() - self.began)
        self.bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
        record = {"step": self.steps_before + step + 1, "loss": round(mean, 4), "lr": lr}
        self.write({**record, "tokens_per_s": round(speed)})
        self.begin()

    def validated(self, step, val_loss):
        """Logs the validation loss. Raises KeyboardInterrupt if Ctrl-C has ended the run."""
        self.write({"step": self.steps_before + step + 1, "val_loss": round(val_loss, 4)})
        self.began = time.perf_counter()  # validation does not count as training time
        if self.interrupted:
            self.close()
            raise KeyboardInterrupt

    def write(self, record):
        if self.log:
            self.log.write(record)

    def check_finite(self, losses, step, lr):
        """losses: of all steps since the last log, up to this step (counted from 0)."""
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)]
        if not bad:
            return
        self.close()
        first_step = self.steps_before + step + 2 - len(losses)  # of losses[0], counted from 1
        at = first_step + bad[0]
        value = losses[bad[0]]
        if self.is_untrained and bad[0] == 0:
            raise UserError(
                f"The loss is {value} at step {at}, before a step has changed any weight. Look at "
                "the data or the model that the run starts from, not at the learning rate."
            )
        good = files_of_run(self.out_dir)
        hint = "No checkpoint was saved yet: start again with a lower --learning_rate."
        if good:
            hint = f"Resume {good[-1]} with --init_from=resume and a lower --learning_rate."
        raise UserError(f"The loss became {value} at step {at}, learning rate {lr:.2e}. {hint}")
