"""Pooling of token states into one vector: position-weighted mean, mean, sublinear mean, last token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from embed.network.config import Pooling


def pool(hidden: Tensor, ids: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool each sequence's token states into one vector.

    The weighted mean is SGPT's (Muennighoff 2022): v = Σ w_i h_i with w_i = i / Σ_j j, where i counts real
    tokens, so the result is the same for padding on either side. It favours later tokens, which attend to
    more of the text in a causal model.

    Args:
        hidden: (B, T, C) token states of any floating dtype.
        ids: (B, T) int64 tokens, which only the sublinear mean reads.
        mask: (B, T) bool, true at real tokens.
        pooling: the mode, and which tokens count. `pooling.layer` and `final_norm` are left to the caller.

    Returns:
        (B, C) float32 (float64 for float64 states), not normalised. A sequence without a real token gives zeros.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if pooling.unit_tokens:
        hidden = F.normalize(hidden, dim=-1)
    return torch.einsum("btc,bt->bc", hidden, token_weights(ids, mask, pooling, hidden.dtype))


def token_weights(ids: Tensor, mask: Tensor, pooling: Pooling, dtype: torch.dtype) -> Tensor:
    """(B, T) weights of the tokens in `dtype`, which sum to 1 in each sequence; zeros without a real token."""
    position = mask.long().cumsum(dim=1)  # (B, T): 1 at the first real token
    if pooling.skip_first:
        alone = mask.sum(dim=1, keepdim=True) == 1
        mask = mask & ((position > 1) | alone)
        position = mask.long().cumsum(dim=1)
    if pooling.mode == "weightedmean":
        weight = position * mask
    elif pooling.mode == "mean":
        weight = mask
    elif pooling.mode == "sublinear":
        weight = torch.zeros_like(mask, dtype=dtype)
        weight[mask] = occurrences(ids, mask).to(dtype) ** -0.5  # n tokens of n^-½ each: √n together
    else:
        weight = mask & (position == mask.sum(dim=1, keepdim=True))
    weight = weight.to(dtype)
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)


def occurrences(ids: Tensor, mask: Tensor) -> Tensor:
    """How often each token is in its own sequence, at true places of `mask`.

    Args:
        ids: (B, T) int64.
        mask: (B, T) bool; tokens at false places are not counted.

    Returns:
        (number of true places,) int64, row by row.
    """
    row, _ = mask.nonzero(as_tuple=True)
    tokens = ids[mask]
    n_tokens = tokens.max() + 1 if len(tokens) else 1
    _, same, counts = torch.unique(row * n_tokens + tokens, return_inverse=True, return_counts=True)
    return counts[same]
