"""Attention: the module with its projections, and `attend`, which chooses the form that is fastest here.

References: attention (Vaswani et al. 2017); grouped-query attention (Ainslie et al. 2023); QK-norm (Henry et al. 2020).

B is the number of rows, T of tokens in a row, C the width n_embd.
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
    attend_from_few,
    attend_in_blocks,
    attend_in_two_products,
    suits_blocks,
)
from gpt_core.model.layers import make_norm
from gpt_core.model.rope import rotate

# With at most this many tokens two plain products beat the fused kernel where that is slow on a CPU.
MAX_TOKENS_TWO_PRODUCTS = 512
# With at most this many new tokens per row two plain products beat the fused kernel on a CPU.
MAX_NEW_TOKENS_DECODE = 16
# All rows share one product if their padding makes it read at most this many times the real keys.
MAX_PADDING_FACTOR = 2


class Attention(nn.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.scaled = config.scale_attention
        bias = config.attn_bias is True
        self.q = nn.Linear(config.n_embd, config.n_head * config.head_dim, bias=bias)
        self.k = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=bias)
        self.v = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=bias)
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
        """(B, T, C) → (B, T, C). `mask` is as for `attend`."""
        q, k, v = self.project(x)  # (B, T, n_head or n_kv_head, head_dim)
        q = self.q_norm(q).transpose(1, 2)  # (B, n_head, T, head_dim)
        k = self.k_norm(k).transpose(1, 2)  # (B, n_kv_head, T, head_dim)
        v = v.transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if not self.scaled:
            q = q * math.sqrt(self.head_dim)  # what `attend` divides by
        if cache is None:
            y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        else:
            cache.extend(self.layer, k, v)
            y = attend_cached(q, k, v, mask, cache, self.layer)
        return self.o(
            y.transpose(1, 2).flatten(2)
        )  # (B, n_head, T, head_dim) → (B, T, n_head · head_dim) → (B, T, C)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, C): (B, T, n_head, head_dim), then twice (B, T, n_kv_head, head_dim)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        return self.q(x).view(heads), self.k(x).view(heads), self.v(x).view(heads)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_share: float) -> Tensor:
    """softmax(q·kᵀ/√head_dim)·v.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, S, head_dim), S ≥ T.
        v: like k.
        mask: broadcast to (B, n_head, T, S), bool, True where a token may look, or what is added to q·kᵀ/√head_dim;
            None: plainly causal, S = T.
        dropout_share: of the attention weights.

    Returns:
        (B, n_head, T, head_dim).
    """
    if has_torch_function(
        (q, k, v)
    ):  # somebody watches, such as `gpt_core.training.monitoring.diagnostics.Maxima`
        return handle_torch_function(attend, (q, k, v), q, k, v, mask, dropout_share)
    if mask is not None and mask.is_floating_point() and not torch.is_autocast_enabled(q.device.type):
        mask = mask.type_as(q)
    if mask is None and suits_blocks(v, dropout_share):
        return attend_in_blocks(q, k, v)
    # What torch's fused kernel does slowly on a CPU: all in 16 bits, and dropout in any number of them.
    slow = v.device.type == "cpu" and (v.dtype == torch.bfloat16 or dropout_share > 0)
    # With dropout whether gradients are recorded or not: GradCache must drop the same both times.
    if slow and mask is None and q.shape[2] <= MAX_TOKENS_TWO_PRODUCTS:
        return attend_in_two_products(q, k, v, dropout_share)
    gqa = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout_share, enable_gqa=gqa
    )


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: CacheRows, layer: int
) -> Tensor:
    """`attend` of new tokens to themselves and to what the cache holds before them.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_kv_head, T, head_dim), of the new tokens; the cache has been extended by them.
        v: like k.
        mask: as for `attend`, S up to the end of the longest row.
        cache: the rows.
        layer: which.

    Returns:
        (B, n_head, T, head_dim).
    """
    if cache.mask is None:  # every row begins here: the new keys are all there are
        return attend(q, k, v, mask, 0.0)
    ends, n_tokens = cache.ends, q.shape[2]
    if q.device.type != "cpu" or n_tokens > MAX_NEW_TOKENS_DECODE:
        causal = mask is cache.mask and ends == [cache.begins[0] + n_tokens]  # one row, without padding
        if causal and suits_blocks(v, 0.0):
            return attend_in_blocks(q, *cache.one_row(layer, 0))
        return attend(q, *cache.all_rows(layer), mask, 0.0)
    plain = n_tokens == 1 and mask is cache.mask  # a new token sees all that its row holds
    if cache.end * len(ends) <= MAX_PADDING_FACTOR * sum(ends):
        all_seen = plain and min(ends) == cache.end
        return attend_from_few(q, *cache.all_rows(layer), None if all_seen else mask)
    rows = []  # of very different lengths: none shall pay for the longest
    for b, end in enumerate(ends):
        seen = None if mask is None or plain else mask[b : b + 1, ..., :end]
        rows.append(attend_from_few(q[b : b + 1], *cache.one_row(layer, b), seen))
    return torch.cat(rows)
