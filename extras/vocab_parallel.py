"""
The loss of soft labels with the head's vocabulary spread over processes: each computes the logits
of its own slice, for the same batch.

$ torchrun --standalone --nproc_per_node=2 -m extras.soft_labels config/soft_shakespeare_char.py \
      --vocab_parallel=True --gradient_accumulation_steps=2

As in metaseq (Zhang et al. 2022, arXiv 2205.01068), whose students learn from the top k of a
teacher. DIFFERS from tensor parallelism of whole models: all weights are on every process, only the
work and the logits are split. SameOnRanks and SumOverRanks are Megatron-LM's f and g (Shoeybi et
al. 2019, arXiv 1909.08053).
"""

import torch
import torch.distributed as dist

from plumbing.head import float32_linear


class SumOverRanks(torch.autograd.Function):
    """
    The sum of every process's x. All processes compute the same loss from it, so the gradient that
    arrives is whole already and passes as it is.
    """

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


class SameOnRanks(torch.autograd.Function):
    """
    x, which is the same on every process, for a computation that the processes share: the
    gradients of the parts add up.
    """

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def with_gradient_times(p, factor):
    """
    -> p itself, with a gradient `factor` times as large: the second term is zero, and its
    derivative is factor - 1.
    """
    return p + (factor - 1) * (p - p.detach())


def label_weights(logp, missing):
    """
    (N, K) log-probabilities of a teacher -> (N, K): weights of the named tokens in the loss; (N):
    the probability of all others together. missing: see soft_labels.soft_cross_entropy.
    """
    w = logp.exp()  # (N, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True).clamp(min=1e-30)  # an empty label has weight 0
    missing_mass = 1 - w.sum(-1)  # (N)
    return w, missing_mass.masked_fill(missing_mass < 1e-6, 0)  # below is rounding


def slice_of_vocab(V, rank, world):
    """-> first, end: the tokens whose logits this process computes."""
    first = V * rank // world
    end = V * (rank + 1) // world
    return first, end


def sliced_logits(model, h):
    """(N, C), the same on every process -> (N, V / world) logits of this process's slice, first."""
    rank = dist.get_rank()
    world = dist.get_world_size()
    first, end = slice_of_vocab(model.config.vocab_size, rank, world)
    # The training loop takes the mean of the gradients over the processes. Each has the gradient of
    # its own slice of the weights, and zero elsewhere: the mean would be 1 / world of it.
    weight = with_gradient_times(model.head_weight[first:end], world)
    bias = None
    if model.head_bias is not None:
        bias = with_gradient_times(model.head_bias[first:end], world)
    return float32_linear(SameOnRanks.apply(h), weight, bias), first


def sliced_soft_cross_entropy(logits, ids, logp, first, missing="none"):
    """
    soft_labels.soft_cross_entropy where this process has logits[:, first : first + n] only.

    Three sums over the processes instead of V numbers a position: the largest logit, the sum of
    exp, and the logits of the named tokens. Each of them is on one process.
    """
    # the largest logit needs no gradient: it cancels
    top = logits.detach().amax(-1)  # (N)
    dist.all_reduce(top, dist.ReduceOp.MAX)
    exp = (logits - top[:, None]).exp()  # (N, n): exp must not overflow
    lse = top + SumOverRanks.apply(exp.sum(-1)).log()  # (N)

    column = ids - first  # (N, K)
    mine = (column >= 0) & (column < logits.size(1))
    column = column.clamp(0, logits.size(1) - 1)
    named = SumOverRanks.apply(logits.gather(1, column).masked_fill(~mine, 0))  # (N, K)

    w, missing_mass = label_weights(logp, missing)  # (N, K), (N)
    loss = (w * (lse[:, None] - named)).sum(-1)
    if missing == "tail":
        is_named = torch.zeros_like(logits).scatter_add(1, column, mine.to(logits.dtype)) > 0
        unnamed = SumOverRanks.apply(exp.masked_fill(is_named, 0).sum(-1))  # (N)
        # where all tokens are named it is 0: without the clamp 0 * log(0), which is nan
        log_unnamed = unnamed.clamp(min=1e-38).log()
        loss = loss + missing_mass * (lse - top - log_unnamed)
    return loss
