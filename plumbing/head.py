"""
The product of a head, in float32 whatever format the rest is in. 16 bits round a logit near -100,
where GPT-2 has all of them, to a multiple of 0.5 (bfloat16) or 0.06 (float16): another token may be
the best one then, and the divergence of two models is mostly rounding.
"""

import torch
import torch.nn.functional as F

# Rows of h. A product of fewer takes as long as its weights take to be read, and a cast of them
# reads and writes more than float32 does.
FEW_ROWS = 64


class SumsInFloat32(torch.autograd.Function):
    """
    x (N, C), weight (V, C), both of 16 bits -> x weight^T (N, V) in float32: as fast as a product
    in 16 bits, whose sums are float32 as well until the end. (torch has this one without a
    gradient.) Gradients are products in 16 bits, as autocast has them.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        return grad @ weight, grad.t() @ x


def format_of_factors(h, weight):
    """
    -> 16 bits on a GPU, where the weights have them or autocast asks for them; else float32. On a
    CPU a head in float32 takes less time than what is done with its logits.
    """
    if h.device.type != "cuda":
        return torch.float32
    few = h.numel() <= FEW_ROWS * h.size(-1)
    if torch.is_autocast_enabled("cuda") and weight.dtype == torch.float32 and not few:
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def float32_linear(h, weight, bias=None):
    """(..., C), (V, C), (V) -> (..., V): F.linear, of which autocast rounds nothing to 16 bits."""
    factors = format_of_factors(h, weight)
    if factors != torch.float32:
        x = h.reshape(-1, h.size(-1)).to(factors)  # (N, C)
        logits = SumsInFloat32.apply(x, weight.to(factors)).view(*h.shape[:-1], -1)
        return logits if bias is None else logits + bias
    if not torch.is_autocast_enabled(h.device.type):
        return F.linear(h, weight, bias)
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.to(weight.dtype), weight, bias)
