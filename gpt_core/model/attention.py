"""Attention, and what belongs to it: norms and rotary positions.

References: attention (Vaswani et al. 2017); RoPE (Su et al. 2021); RMSNorm (Zhang & Sennrich 2019); grouped-query
attention (Ainslie et al. 2023); QK-norm (Henry et al. 2020).

B is the number of rows, T of tokens in a row, C the width n_embd.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gpt_core.hardware.onednn import multiplies_bfloat16
from gpt_core.model.cache import CacheRows
from gpt_core.model.config import GPTConfig
from gpt_core.model.layers import dropout
from gpt_core.model.rope_scaling import frequencies

SHORT = 512  # tokens up to which two plain products beat the fused kernel where that is slow
FEW = 16  # new tokens up to which two plain products beat the fused kernel on a CPU
WASTE = 2  # times the keys that there are may be looked at, if all rows then share one product
MANY = 2**17  # numbers in all keys beyond which products in 16 bits are faster than widening them to float32
THIN = 6  # queries that share so many keys up to which the keys had better stand left, in float32
BLOCK = 64  # queries that are attended from at a time where the fused kernel is slow and nothing is kept for a backward


class Rope(nn.Module):
    """Rotary positions: each pair (x_i, x_{i + head_dim/2}) turns by position · theta^(-2i/head_dim), or as scaled."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        turns, attention_factor = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        angles = torch.outer(torch.arange(config.block_size).float(), turns)
        # (block_size, head_dim) each; the sine of the left half carries the minus of its turn
        sin = angles.sin()
        self.register_buffer("cos", angles.cos().repeat(1, 2) * attention_factor, persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=1) * attention_factor, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for `positions` (B, T) or (T,), shaped to broadcast over heads: (…, 1, T, head_dim)."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # type: ignore[index]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x (B, n, T, head_dim) by the angles of `Rope`."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat((right, left), dim=-1), sin).type_as(x)


class RMSNorm(nn.RMSNorm):
    """torch's, in the precision of its weights: autocast hands it queries and keys in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return super().forward(x.type_as(self.weight))


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """RMSNorm or LayerNorm over the last `width` numbers."""
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(width, eps=config.norm_eps)


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
        self.qkv: nn.Module | None = None  # the three in one, in `gpt_core.generation.fast_model`
        self.n_heads = (config.n_head, config.n_kv_head, config.n_kv_head)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: CacheRows | None,
    ) -> Tensor:
        """(B, T, C) → (B, T, C). `mask` is as for `attend`."""
        heads = (*x.shape[:2], -1, self.head_dim)
        if self.qkv is None:
            q, k, v = self.q(x).view(heads), self.k(x).view(heads), self.v(x).view(heads)
        else:
            q, k, v = self.qkv(x).view(heads).split(self.n_heads, dim=2)
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
        return self.o(y.transpose(1, 2).flatten(2))


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
    if slow and mask is None and q.shape[2] <= SHORT:
        return attend_in_two_products(q, k, v, dropout_share)
    gqa = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout_share, enable_gqa=gqa
    )


def suits_blocks(v: Tensor, dropout_share: float) -> bool:
    """Whether `attend_in_blocks` can do it, and faster than torch's fused kernel."""
    plain = not torch.is_grad_enabled() and not dropout_share
    return plain and v.device.type == "cpu" and v.dtype == torch.bfloat16


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
    if q.device.type != "cpu" or n_tokens > FEW:
        causal = mask is cache.mask and ends == [cache.begins[0] + n_tokens]  # one row, without padding
        if causal and suits_blocks(v, 0.0):
            return attend_in_blocks(q, *cache.one_row(layer, 0))
        return attend(q, *cache.all_rows(layer), mask, 0.0)
    plain = n_tokens == 1 and mask is cache.mask  # a new token sees all that its row holds
    if cache.end * len(ends) <= WASTE * sum(ends):
        all_seen = plain and min(ends) == cache.end
        return attend_from_few(q, *cache.all_rows(layer), None if all_seen else mask)
    rows = []  # of very different lengths: none shall pay for the longest
    for b, end in enumerate(ends):
        seen = None if mask is None or plain else mask[b : b + 1, ..., :end]
        rows.append(attend_from_few(q[b : b + 1], *cache.one_row(layer, b), seen))
    return torch.cat(rows)


def attend_from_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention from few queries to many keys, as in decoding; shapes and mask as for `attend`, but None sees all.

    The heads of a group share their keys, so they are rows of one product: the keys are read once, never repeated.
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_keys, dtype = k.shape[2], q.dtype
    many = k.numel() > MANY
    if not (many and dtype == torch.bfloat16 and multiplies_bfloat16()):
        precise = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(precise), k.to(precise), v.to(precise)
    # (B·n_kv_head, group · T, head_dim) · (B·n_kv_head, head_dim, S)
    grouped = (q / math.sqrt(head_dim)).reshape(n_rows * k.shape[1], -1, head_dim)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    if many and (k.dtype == torch.bfloat16 or grouped.shape[1] <= THIN):
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
    """Causal attention, `BLOCK` queries at a time with the keys up to the last of them; shapes as in `attend`.

    The queries are those of the last T of the S tokens. Half the work of two whole products, with weights that stay in
    the processor's cache: two to three times as fast as torch's fused kernel in 16 bits on a CPU. In float32, where
    that kernel is good, the gain is not worth it.
    """
    n_rows, n_head, n_tokens, head_dim = q.shape
    n_before = k.shape[2] - n_tokens
    # (B·n_kv_head, S, head_dim): the heads of a group share one product.
    k, v = (x.flatten(0, 1) for x in (k, v))
    q = q / math.sqrt(head_dim)
    future = torch.full((BLOCK, BLOCK), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    out = q.new_empty(n_rows, n_tokens, n_head, head_dim).transpose(1, 2)
    for start in range(0, n_tokens, BLOCK):
        stop = min(start + BLOCK, n_tokens)
        first, end = n_before + start, n_before + stop  # where these queries stand among the keys
        block = q[:, :, start:stop].reshape(len(k), -1, head_dim)
        logits = (block @ k[:, :end].mT).view(n_rows, n_head, stop - start, end)
        logits[..., first:] += future[: stop - start, : stop - start]
        weights = logits.softmax(dim=-1).view(len(k), -1, end)
        out[:, :, start:stop] = (weights @ v[:, :end]).view(n_rows, n_head, -1, head_dim)
    return out
