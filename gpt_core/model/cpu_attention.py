"""Attention on a CPU, in the forms that are faster there than torch's fused kernel."""

import math

import torch
from torch import Tensor

from gpt_core.hardware.onednn import multiplies_bfloat16
from gpt_core.model.layers import dropout

# Number of elements of k above which bfloat16 products are faster than widening the keys to float32.
MIN_KEY_ELEMENTS_BF16 = 2**17


# With at most this many queries per KV head, k @ qᵀ is faster than q @ kᵀ (float32).
MAX_QUERIES_KEYS_FIRST = 6


# Queries in one block of `attend_in_blocks`.
QUERY_BLOCK = 64


def suits_blocks(v: Tensor, dropout_share: float) -> bool:
    """Whether `attend_in_blocks` can do it, and faster than torch's fused kernel."""
    plain = not torch.is_grad_enabled() and not dropout_share
    return plain and v.device.type == "cpu" and v.dtype == torch.bfloat16


def attend_from_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention from few queries to many keys, as in decoding; shapes and mask as for `attend`, but None sees all.

    The heads of a group share their keys, so they are rows of one product: the keys are read once, never repeated.
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_keys, dtype = k.shape[2], q.dtype
    many = k.numel() > MIN_KEY_ELEMENTS_BF16
    if not (many and dtype == torch.bfloat16 and multiplies_bfloat16()):
        precise = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(precise), k.to(precise), v.to(precise)
    # (B·n_kv_head, group · T, head_dim) · (B·n_kv_head, head_dim, S)
    grouped = (q / math.sqrt(head_dim)).reshape(n_rows * k.shape[1], -1, head_dim)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    if many and (k.dtype == torch.bfloat16 or grouped.shape[1] <= MAX_QUERIES_KEYS_FIRST):
        logits = (k @ grouped.mT).mT.contiguous()  # up to three times as fast as the other way round
    else:
        logits = grouped @ k.mT
    if mask is not None:
        # Quicker than filling by it, since the mask is the same for all heads.
        added = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
        logits.view(n_rows, n_head, n_tokens, n_keys).add_(added.type_as(logits))
    weights = logits.softmax(dim=-1)
    return (weights.type_as(v) @ v).view(q.shape).to(dtype)


def attend_in_two_products(q: Tensor, k: Tensor, v: Tensor, dropout_share: float) -> Tensor:
    """Causal attention whose weights (B·n_head, T, T) exist in memory; shapes as in `attend`."""
    n_rows, n_head, n_tokens, head_dim = q.shape
    if k.shape[1] != n_head:
        k, v = (x.repeat_interleave(n_head // x.shape[1], dim=1) for x in (k, v))
    future = torch.full((n_tokens, n_tokens), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    logits = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(head_dim))
    weights = logits.softmax(dim=-1)
    if dropout_share:
        weights = dropout(weights, dropout_share)
    return (weights @ v.flatten(0, 1)).view(n_rows, n_head, n_tokens, head_dim)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, `QUERY_BLOCK` queries at a time with the keys up to the last of them; shapes as in `attend`.

    The queries are those of the last T of the S tokens. Half the work of two whole products, with weights that stay in
    the processor's cache: two to three times as fast as torch's fused kernel in 16 bits on a CPU. In float32, where
    that kernel is good, the gain is not worth it.
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_before = k.shape[2] - n_tokens
    # (B·n_kv_head, S, head_dim): the heads of a group share one product.
    k, v = (x.flatten(0, 1) for x in (k, v))
    q = q / math.sqrt(head_dim)
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    out = q.new_empty(n_rows, n_tokens, n_head, head_dim).transpose(1, 2)
    for start in range(0, n_tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n_tokens)
        first, end = n_before + start, n_before + stop  # where these queries stand among the keys
        block = q[:, :, start:stop].reshape(len(k), -1, head_dim)
        logits = (block @ k[:, :end].mT).view(n_rows, n_head, stop - start, end)
        logits[..., first:] += future[: stop - start, : stop - start]
        weights = logits.softmax(dim=-1).view(len(k), -1, end)
        out[:, :, start:stop] = (weights @ v[:, :end]).view(n_rows, n_head, -1, head_dim)
    return out
