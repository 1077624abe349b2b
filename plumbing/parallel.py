"""
Many processes: joining them, sharing work, gradients (DDP) and weights (FSDP2).
"""

import contextlib
import datetime
import functools
import os

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from configurator import UserError
from plumbing.hardware import check_attention, pick_device


def join_processes(cfg):
    """
    -> this process's device, and a note on it. Under torchrun, joins the other processes first.
    """
    device, _, note = pick_device(cfg.device, cfg.dtype)
    check_attention(cfg.attention, cfg.device, cfg.dtype)
    if "WORLD_SIZE" in os.environ:
        # the first process may write data for hours while the others wait
        patience = datetime.timedelta(days=1)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        if device.type == "cuda":
            cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
            device = torch.device(cfg.device)
            torch.cuda.set_device(device)
    return device, note


def rank_and_world():
    """-> the number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def map_over_ranks(f, items, desc, *args):
    """-> [f(item, *args) for item in items], each process of a torchrun working on some of them."""
    rank, world = rank_and_world()
    mine = tqdm(items[rank::world], desc=desc, leave=False, disable=rank > 0)
    own = [f(item, *args) for item in mine]
    parts = [own]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, own)
    return [parts[i % world][i // world] for i in range(len(items))]


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def is_first_process():
    """Whether this is the one that writes and prints, also before the processes have joined."""
    return int(os.environ.get("RANK", 0)) == 0


def on_first_process(f):
    """f() on the first process. The others wait for it, if they have joined; else they go on."""
    if is_first_process():
        f()
    wait_for_all()


def leave_processes():
    """The end of a script that has joined them."""
    if dist.is_initialized():
        dist.destroy_process_group()


class LossModule(nn.Module):
    """
    The loss as a module: DDP and FSDP take care of the weights that its forward uses and of their
    gradients.
    """

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch, generator):
        return self.loss(self.model, batch, generator)


def parallel_loss(model, loss, device, world, fsdp):
    """
    -> f(batch, generator): the loss, for gradients that are the mean over the processes. fsdp:
    shards the model.

    FSDP gathers weights for a forward: a block gathers its own, and LossModule all others
    (embeddings, ln_f, head), because hidden and head are no forward. Every backward scatters
    its gradient: to keep it whole until the last of a step would save a third of the traffic and
    cost the memory that FSDP is there to save.
    """
    if fsdp and not hasattr(model, "blocks"):
        raise UserError(
            "fsdp shards our own blocks, not those of a model of transformers. Use --fsdp=False."
        )
    if fsdp:
        from torch.distributed.fsdp import fully_shard  # not before: it takes a second

        mesh = dist.init_device_mesh(device.type, (world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(LossModule(model, loss), mesh=mesh)
    if world > 1:
        return nn.parallel.DistributedDataParallel(
            LossModule(model, loss), [device] if device.type == "cuda" else None
        )
    return functools.partial(loss, model)


def no_sync_until_last(batch_loss, fsdp, world, last):
    """
    -> a context for a backward pass: DDP averages the gradients over the processes in the last one
    of a step, and until then they add up here. (FSDP does it in every one.)
    """
    if last or world == 1 or fsdp:
        return contextlib.nullcontext()
    return batch_loss.no_sync()


@contextlib.contextmanager
def whole_weights(batch_loss, fsdp):
    """
    Inside, the weights that belong to no block are whole on every process, as in the loss's own
    forward.
    """
    if fsdp:
        batch_loss.unshard()
    yield
    if fsdp:
        batch_loss.reshard()


def is_shard(x):
    """Whether a tensor is FSDP's, a DTensor."""
    return hasattr(x, "device_mesh")


def shard_like(weight, x):
    """
    -> this process's part of x, a whole tensor, if the weight is in shards; a number stays whole.
    """
    if is_shard(weight) and x.dim():
        from torch.distributed.tensor import distribute_tensor

        # all have read the file
        return distribute_tensor(x, weight.device_mesh, weight.placements, src_data_rank=None)
    return x.to(weight.device)


def whole(saved):
    """
    Dicts and lists of tensors, the sharded ones gathered into the first process's memory. All have
    to call it.
    """

    def gather(x):
        if is_shard(x):
            x = x.full_tensor()  # on every GPU, one at a time
            x = x.cpu() if dist.get_rank() == 0 else None
        return x

    return tree_map(gather, saved)
