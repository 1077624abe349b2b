"""
Two fast ways to compute what model.attend computes, with the same arguments. model.py chooses.
"""

import torch
import torch.nn.functional as F


def causal_mask(n_query, n_key, device):
    """
    -> (n_query, n_key) bool, True where a query may look: the queries are the last of the keys.
    """
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def sdpa(q, k, v, causal):
    """PyTorch's fused attention."""
    Tq = q.size(2)
    Tk = k.size(2)
    if not causal or Tq == 1:  # a single query is the last position: it sees all keys
        return F.scaled_dot_product_attention(q, k, v)
    if Tq < Tk:
        # new queries after cached keys: its is_causal would align them to the first key
        mask = causal_mask(Tq, Tk, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def is_slow_in_sdpa(q):
    """
    On a CPU the backward pass of sdpa is as slow in bfloat16 as in float32: there attention
    written out trains 1.4 times as fast, as long as its T x T scores stay small.
    """
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and q.requires_grad
        and q.size(2) <= 512
    )


def flash_attention(q, k, v, causal):
    """The flash-attn package. It has no float32, which takes sdpa."""
    if q.dtype == torch.float32:
        return sdpa(q, k, v, causal)
    from flash_attn import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D)
    # its causal mask aligns the last query with the last key, as ours does
    return flash_attn_func(q, k, v, causal=causal).transpose(1, 2)
