"""
The last layer and its loss without a tensor of N x V numbers; and with the vocabulary spread over processes.
"""

import torch
import torch.distributed as dist

# (rows, logits): a chunk has as many rows as make so many logits, but at least so many rows
ROWS_AT_ONCE = {"cpu": (128, 2**19), "cuda": (1024, 2**26), "mps": (256, 2**22)}


class HeadLoss(torch.autograd.Function):
    """sum_n loss_of(h_n W^T + b, rows_n), in chunks of n.

    The plain way: loss_of(F.linear(h, W, b), rows).sum(), whose N x V logits and their gradient are what a large
    vocabulary costs. Here the gradient of a chunk's losses by its logits z is taken at once and carried on:
    dh = dz W, dW = dz^T h, db = sum dz. No N x V tensor ever exists, and nothing is computed twice (under checkpointing
    it would be). The backward pass only multiplies what the forward has found by the gradient that arrives.
    """

    @staticmethod
    def forward(ctx, loss_of, chunk, h, weight, bias, V, need_grad, *rows):
        dtype = (
            torch.get_autocast_dtype(h.device.type)
            if torch.is_autocast_enabled(h.device.type)
            else h.dtype
        )
        if (
            not need_grad
        ):  # evaluation: GPT-2's logits are about -100, where bfloat16 counts in halves
            dtype = torch.float32
        W = weight[:V].to(dtype)  # (V, C)
        n = max(1, min(h.size(0), chunk))
        loss = torch.zeros((), device=h.device)
        ctx.n_rows = len(rows)
        if need_grad:
            dh, dW = torch.zeros_like(h), torch.zeros_like(weight)
            db = None if bias is None else torch.zeros_like(bias)
            ctx.grads = (
                dh,
                dW,
                db,
            )  # not save_for_backward: nobody else holds them, so backward may scale them in place
        with torch.autocast(h.device.type, enabled=False):
            for i in range(0, h.size(0), n):
                hi = h[i : i + n].to(dtype)
                z = (hi @ W.T).float()  # (n, V), multiplied in dtype; the loss is taken in float32
                if bias is not None:
                    z += bias
                with torch.set_grad_enabled(
                    need_grad
                ):  # a graph of this chunk alone, from z to its losses
                    value = loss_of(
                        z.requires_grad_(need_grad), *(r[i : i + n] for r in rows)
                    ).sum()
                loss += value.detach()
                if not need_grad:
                    continue
                (dz,) = torch.autograd.grad(value, z)
                del value, z  # and all that they hold, before the next chunk needs as much
                if bias is not None:
                    db += dz.sum(0)
                dz = dz.to(dtype)
                dh[i : i + n] = dz @ W
                dW[:V] += dz.T @ hi
        return loss

    @staticmethod
    def backward(ctx, grad):
        """Once only: it gives away what the forward has found."""
        dh, dW, db = (g if g is None else g.mul_(grad) for g in ctx.grads)
        ctx.grads = None
        return None, None, dh, dW, db, *[None] * (2 + ctx.n_rows)


def with_gradient_times(p, factor):
    """p itself, with a gradient `factor` times as large: the second term is zero, but its derivative is factor - 1."""
    return p + (factor - 1) * (p - p.detach())


def slice_of_vocab(V, part, parts):
    """-> first, end: the tokens of the part-th of so many parts."""
    return V * part // parts, V * (part + 1) // parts


# ----------------------------------------------------------------------------------------------------------------------
# the vocabulary in parts, one on each process


class SumOverRanks(torch.autograd.Function):
    """The sum of every process's x. All have the same loss after it, so its gradient is whole already."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


class SameOnRanks(torch.autograd.Function):
    """x, the same on every process, for a computation of which each does a part: the gradients add up."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def vocab_parallel_soft_cross_entropy(z, ids, logp, first, missing="none"):
    """soft_cross_entropy where this process has only z = logits[:, first : first + n_own].

    DIFFERS from tensor parallelism of whole models: the weights are on every process, their work and logits are split.
    """
    top = z.detach().amax(-1)
    dist.all_reduce(top, dist.ReduceOp.MAX)  # (n)
    lse = top + SumOverRanks.apply((z - top[:, None]).exp().sum(-1)).log()
    w, own = logp.exp(), ids - first  # (n, K)
    mine = (own >= 0) & (own < z.size(1))
    own = own.clamp(0, z.size(1) - 1)
    picked = SumOverRanks.apply(z.gather(1, own).masked_fill(~mine, 0))  # (n, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - picked)).sum(-1)
    if missing == "tail":
        named = torch.zeros_like(z).scatter_add(1, own, mine.to(z.dtype)) > 0
        others = SumOverRanks.apply((z - top[:, None]).exp().masked_fill(named, 0).sum(-1))
        gone = 1 - w.sum(-1)
        loss = loss + torch.where(gone > 1e-6, gone, 0) * (
            lse - top - others.clamp(min=1e-38).log()
        )
    return loss
