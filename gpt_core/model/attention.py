"""Causal self-attention: the module with its projections, and `attend`, which selects the fastest implementation.

References: attention (Vaswani et al. 2017); grouped-query attention (Ainslie et al. 2023); QK-norm (Henry et al. 2020).

Which implementation runs:

| device | case | function |
|---|---|---|
| not a CPU | all | torch's fused kernel |
| CPU | at most MAX_NEW_TOKENS_DECODE tokens after cached ones | `attend_few_queries`, per batch or per sequence |
| CPU | causal without padding, where `blocks_are_faster` | `attend_in_blocks` |
| CPU | without a mask, at most MAX_TOKENS_TWO_MATMULS tokens, bfloat16 or dropout | `attend_with_two_matmuls` |
| CPU | all else | torch's fused kernel |

Shapes: B sequences, T new tokens per sequence, S keys per sequence (T plus cached ones), C = n_embd.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gpt_core.model.cache import CacheRows
from gpt_core.model.config import GPTConfig
from gpt_core.model.cpu_attention import (
    attend_few_queries,
    attend_in_blocks,
    attend_with_two_matmuls,
    blocks_are_faster,
)
from gpt_core.model.layers import make_norm
from gpt_core.model.rope import rotate

# With at most this many tokens two plain matmuls beat the fused kernel in the cases where it is slow on a CPU.
MAX_TOKENS_TWO_MATMULS = 512
# With at most this many new tokens per sequence two plain matmuls beat the fused kernel on a CPU.
MAX_NEW_TOKENS_DECODE = 16
# All sequences share one matmul if padding makes it read at most this many times the real keys.
MAX_PADDING_FACTOR = 2


class Attention(nn.Module):
    """Causal self-attention with grouped queries: n_head query heads share n_kv_head key and value heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.scaled = config.scale_attention
        bias = config.attn_bias is True
        self.q = nn.Linear(config.n_embd, config.n_head * config.head_dim, bias=bias)  # C → n_head · head_dim
        # C → n_kv_head · head_dim
        self.k = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=bias)
        # C → n_kv_head · head_dim
        self.v = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=bias)
        # n_head · head_dim → C
        self.o = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.attn_bias is not False)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: CacheRows | None,
    ) -> Tensor:
        """Attend to the earlier tokens of each sequence.

        Args:
            x: (B, T, C).
            rope: cosine and sine from `Rope`, (B, 1, T, head_dim) or (1, T, head_dim) each; None: no rotation.
            mask: as for `attend`.
            cache: receives the new keys and values and provides the earlier ones; None: the sequences start here.

        Returns:
            (B, T, C).
        """
        q, k, v = self.project(x)  # (B, T, n_head, head_dim), then twice (B, T, n_kv_head, head_dim)
        q = self.q_norm(q).transpose(1, 2)  # (B, n_head, T, head_dim)
        k = self.k_norm(k).transpose(1, 2)  # (B, n_kv_head, T, head_dim)
        v = v.transpose(1, 2)  # (B, n_kv_head, T, head_dim)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)  # shapes unchanged
        if not self.scaled:
            q = q * math.sqrt(self.head_dim)  # (B, n_head, T, head_dim); cancels the division in `attend`
        if cache is None:
            y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, n_head, T, head_dim)
        else:
            cache.extend(self.layer, k, v)
            y = attend_cached(q, k, v, mask, cache, self.layer)  # (B, n_head, T, head_dim)
        # (B, n_head, T, head_dim) → (B, T, n_head, head_dim) → (B, T, n_head · head_dim) → (B, T, C)
        return self.o(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, C): (B, T, n_head, head_dim), then twice (B, T, n_kv_head, head_dim)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        # (B, T, C) → (B, T, heads · head_dim) → (B, T, heads, head_dim)
        return self.q(x).view(heads), self.k(x).view(heads), self.v(x).view(heads)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_share: float) -> Tensor:
    """softmax(q·kᵀ/√head_dim)·v.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, S, head_dim), S ≥ T.
        v: like k.
        mask: broadcast to (B, n_head, T, S). bool: True where a query attends to a key; float: added to
            q·kᵀ/√head_dim. None: causal, S = T.
        dropout_share: share of the attention weights that is zeroed.

    Returns:
        (B, n_head, T, head_dim).
    """
    # True under a TorchFunctionMode such as `gpt_core.training.monitoring.diagnostics.Maxima`, which records the call.
    if has_torch_function((q, k, v)):
        return handle_torch_function(attend, (q, k, v), q, k, v, mask, dropout_share)
    if mask is not None and mask.is_floating_point() and not torch.is_autocast_enabled(q.device.type):
        mask = mask.type_as(q)
    if mask is None and blocks_are_faster(v, dropout_share):
        return attend_in_blocks(q, k, v)  # (B, n_head, T, head_dim)
    # torch's fused kernel is slow on a CPU in bfloat16, and with dropout in every dtype.
    slow = v.device.type == "cpu" and (v.dtype == torch.bfloat16 or dropout_share > 0)
    # Independent of whether gradients are recorded: GradCache's two passes must draw the same dropout mask.
    if slow and mask is None and q.shape[2] <= MAX_TOKENS_TWO_MATMULS:
        return attend_with_two_matmuls(q, k, v, dropout_share)  # (B, n_head, T, head_dim)
    gqa = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout_share, enable_gqa=gqa
    )  # (B, n_head, T, head_dim)


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: CacheRows, layer: int
) -> Tensor:
    """`attend` of new tokens to the cached tokens before them and to themselves.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, T, head_dim), of the new tokens, which `cache` contains already.
        v: like k.
        mask: as for `attend`, S = `cache.end`.
        cache: the slots of this forward.
        layer: index of the layer.

    Returns:
        (B, n_head, T, head_dim).
    """
    if cache.mask is None:  # every sequence starts in this forward, so the new keys are all keys
        return attend(q, k, v, mask, 0.0)  # (B, n_head, T, head_dim)
    ends, n_tokens = cache.ends, q.shape[2]
    if q.device.type != "cpu" or n_tokens > MAX_NEW_TOKENS_DECODE:
        causal = mask is cache.mask and ends == [cache.begins[0] + n_tokens]  # one sequence, without padding
        if causal and blocks_are_faster(v, 0.0):
            return attend_in_blocks(q, *cache.one_row(layer, 0))  # (1, n_head, T, head_dim)
        return attend(q, *cache.all_rows(layer), mask, 0.0)  # (B, n_head, T, head_dim)
    plain = n_tokens == 1 and mask is cache.mask  # one new token attends to every key of its slot
    if cache.end * len(ends) <= MAX_PADDING_FACTOR * sum(ends):
        no_padding = plain and min(ends) == cache.end
        # (B, n_head, T, head_dim)
        return attend_few_queries(q, *cache.all_rows(layer), None if no_padding else mask)
    rows = []  # lengths differ much: one matmul per sequence avoids padding all to the longest
    for b, end in enumerate(ends):
        row_mask = None if mask is None or plain else mask[b : b + 1, ..., :end]  # (1, 1 or n_head, T, end)
        # (1, n_head, T, head_dim)
        rows.append(attend_few_queries(q[b : b + 1], *cache.one_row(layer, b), row_mask))
    return torch.cat(rows)  # (B, n_head, T, head_dim)
