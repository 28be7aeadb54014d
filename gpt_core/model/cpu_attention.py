"""Attention implementations that are faster on a CPU than torch's fused kernel.

Shapes: B sequences, T queries and S keys per sequence, G = n_head / n_kv_head query heads per KV head.
"""

import math

import torch
from torch import Tensor

from gpt_core.hardware.onednn import multiplies_bfloat16
from gpt_core.model.layers import dropout

# Number of elements of k above which bfloat16 matmuls are faster than casting the keys to float32.
MIN_KEY_ELEMENTS_BF16 = 2**17


# With at most this many queries per KV head, k @ qᵀ is faster than q @ kᵀ (float32).
MAX_QUERIES_KEYS_FIRST = 6


# Queries in one block of `attend_in_blocks`.
QUERY_BLOCK = 64


def blocks_are_faster(v: Tensor, dropout_share: float) -> bool:
    """Whether `attend_in_blocks` applies and is faster than torch's fused kernel: bfloat16 on a CPU, inference only."""
    plain = not torch.is_grad_enabled() and not dropout_share
    return plain and v.device.type == "cpu" and v.dtype == torch.bfloat16


def attend_few_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of few queries to many keys, as in decoding.

    The query heads of a group are rows of one matmul with their shared keys, so the keys are read once and never
    repeated.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, S, head_dim).
        v: like k.
        mask: as for `attend`; None: every query attends to every key.

    Returns:
        (B, n_head, T, head_dim).
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_keys, dtype = k.shape[2], q.dtype
    many = k.numel() > MIN_KEY_ELEMENTS_BF16
    if not (many and dtype == torch.bfloat16 and multiplies_bfloat16()):
        precise = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(precise), k.to(precise), v.to(precise)
    # (B·n_kv_head, G·T, head_dim)
    grouped = (q / math.sqrt(head_dim)).reshape(n_rows * k.shape[1], -1, head_dim)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B·n_kv_head, S, head_dim)
    if many and (k.dtype == torch.bfloat16 or grouped.shape[1] <= MAX_QUERIES_KEYS_FIRST):
        # (B·n_kv_head, S, G·T) → (B·n_kv_head, G·T, S); up to three times as fast as q @ kᵀ
        logits = (k @ grouped.mT).mT.contiguous()
    else:
        logits = grouped @ k.mT  # (B·n_kv_head, G·T, S)
    if mask is not None:
        # Adding is faster than masked_fill, since the mask is the same for all heads.
        added = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
        logits.view(n_rows, n_head, n_tokens, n_keys).add_(added.type_as(logits))  # (B, n_head, T, S)
    weights = logits.softmax(dim=-1)  # (B·n_kv_head, G·T, S)
    # (B·n_kv_head, G·T, head_dim) → (B, n_head, T, head_dim)
    return (weights.type_as(v) @ v).view(q.shape).to(dtype)


def attend_with_two_matmuls(q: Tensor, k: Tensor, v: Tensor, dropout_share: float) -> Tensor:
    """Causal attention with S = T that allocates all weights (B·n_head, T, T); shapes as for `attend`."""
    n_rows, n_head, n_tokens, head_dim = q.shape
    if k.shape[1] != n_head:
        k, v = (x.repeat_interleave(n_head // x.shape[1], dim=1) for x in (k, v))  # (B, n_head, T, head_dim)
    future = torch.full((n_tokens, n_tokens), -math.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    # (B·n_head, T, head_dim) @ (B·n_head, head_dim, T) → (B·n_head, T, T)
    logits = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(head_dim))
    weights = logits.softmax(dim=-1)  # (B·n_head, T, T)
    if dropout_share:
        weights = dropout(weights, dropout_share)
    # (B·n_head, T, head_dim) → (B, n_head, T, head_dim)
    return (weights @ v.flatten(0, 1)).view(n_rows, n_head, n_tokens, head_dim)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, `QUERY_BLOCK` queries at a time, each block with the keys up to its last query.

    The T queries belong to the last T of the S keys. This is half the work of two full matmuls, and the weights of a
    block fit into the processor's cache: in bfloat16 on a CPU two to three times as fast as torch's fused kernel. In
    float32, where that kernel is fast, the gain is too small.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, S, head_dim), S ≥ T.
        v: like k.

    Returns:
        (B, n_head, T, head_dim).
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_before = k.shape[2] - n_tokens
    k, v = (x.flatten(0, 1) for x in (k, v))  # (B·n_kv_head, S, head_dim)
    q = q / math.sqrt(head_dim)  # (B, n_head, T, head_dim)
    # (QUERY_BLOCK, QUERY_BLOCK)
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    # (B, n_head, T, head_dim), in the memory order (B, T, n_head, head_dim) of the output projection
    out = q.new_empty(n_rows, n_tokens, n_head, head_dim).transpose(1, 2)
    for start in range(0, n_tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n_tokens)
        # positions of these n = stop - start queries among the keys
        first, end = n_before + start, n_before + stop
        block = q[:, :, start:stop].reshape(len(k), -1, head_dim)  # (B·n_kv_head, G·n, head_dim)
        # (B·n_kv_head, G·n, end) → (B, n_head, n, end)
        logits = (block @ k[:, :end].mT).view(n_rows, n_head, stop - start, end)
        logits[..., first:] += future[: stop - start, : stop - start]  # (B, n_head, n, n)
        weights = logits.softmax(dim=-1).view(len(k), -1, end)  # (B·n_kv_head, G·n, end)
        # (B·n_kv_head, G·n, head_dim) → (B, n_head, n, head_dim)
        out[:, :, start:stop] = (weights @ v[:, :end]).view(n_rows, n_head, -1, head_dim)
    return out  # (B, n_head, T, head_dim)
