"""Who may look at whom: several texts in a row, and windows.

B is the number of rows, T of tokens in a row, S of tokens that they look at: T, and what a cache holds before them.
"""

import torch
from torch import Tensor


def segment_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T) bool from segments (B, T): who may look at whom."""
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril().unsqueeze(1)  # padding sees padding, never nothing


def segment_positions(segments: Tensor) -> Tensor:
    """(B, T) places from segments (B, T): each token's distance from where its run of equal numbers begins."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def window_mask(mask: Tensor | None, places: Tensor, n_seen: int, window: int) -> Tensor | None:
    """`mask`, but no token looks at one that is `window` or more places before it.

    Args:
        mask: (B, 1, T, S) bool, who may look at whom; None: all at what is not after them, which is plainly causal.
        places: (T,) or (B, T), each token's place among the S.
        n_seen: S.
        window: tokens that a token looks at, itself included.

    Returns:
        (B or 1, 1, T, S) bool, or `mask` where the window is wider than all there is to see.
    """
    if n_seen <= window:
        return mask
    # (B or 1, 1, T, S): how far back the other one lies
    behind = places.view(-1, 1, places.shape[-1], 1) - torch.arange(n_seen, device=places.device)
    return (behind < window) & (behind >= 0 if mask is None else mask)
