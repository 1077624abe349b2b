"""
The head's logits, in float32 even where the rest of the network has 16 bits. GPT-2's logits are
all near -100; bfloat16 would round them to a multiple of 0.5, float16 of 0.06. That can change the
most probable token, and the divergence of two models would be mostly rounding.
"""

import torch
import torch.nn.functional as F

# With at most this many rows of h, reading the weights takes all the time, and casting them to 16
# bits first would read and write more memory than a product in float32.
FEW_ROWS = 64


class SumsInFloat32(torch.autograd.Function):
    """
    x (N, C), weight (V, C), both of 16 bits -> x weight^T (N, V) in float32: as fast as a product
    in 16 bits, which also sums in float32 and only rounds the result. (torch.mm with out_dtype has
    no gradient of its own.) The gradients are products in 16 bits, as under autocast.
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


def factor_dtype(h, weight):
    """
    -> 16 bits on a GPU, where the weights have them or autocast asks for them; else float32. A CPU
    has no product of 16-bit factors with float32 sums. There exact logits cost time: a step through
    a head of GPT-2's vocabulary takes up to 1.4 times as long.
    """
    if h.device.type != "cuda":
        return torch.float32
    few = h.numel() <= FEW_ROWS * h.size(-1)
    if torch.is_autocast_enabled("cuda") and weight.dtype == torch.float32 and not few:
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def float32_linear(h, weight, bias=None):
    """(..., C), (V, C), (V) -> (..., V): F.linear, with float32 sums and result under autocast."""
    factors = factor_dtype(h, weight)
    if factors != torch.float32:
        x = h.reshape(-1, h.size(-1)).to(factors)  # (N, C)
        logits = SumsInFloat32.apply(x, weight.to(factors)).view(*h.shape[:-1], len(weight))
        return logits if bias is None else logits + bias
    if not torch.is_autocast_enabled(h.device.type):
        return F.linear(h, weight, bias)
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.to(weight.dtype), weight, bias)
