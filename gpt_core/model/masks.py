"""Attention masks: packed segments, sliding windows (Beltagy et al. 2020), ALiBi (Press et al. 2022).

Shapes: B sequences, T new tokens per sequence, S keys per sequence: T, plus the cached ones.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.model.config import GPTConfig


def segment_mask(segments: Tensor) -> Tensor:
    """Mask (B, 1, T, T) bool of segments (B, T): True where a token attends, to earlier tokens of its segment."""
    same = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    # (B, 1, T, T). Padding attends to padding: a row without a True would give NaN in softmax.
    return same.tril().unsqueeze(1)


def segment_positions(segments: Tensor) -> Tensor:
    """Positions (B, T) int64 of segments (B, T): each token's distance from the first token of its segment."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)  # (B, T)
    begins = torch.ones_like(segments, dtype=torch.bool)  # (B, T), True at the first token of a segment
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]  # (B, T - 1)
    return index - torch.where(begins, index, 0).cummax(dim=1).values  # (B, T)


def window_mask(mask: Tensor | None, positions: Tensor, n_keys: int, window: int) -> Tensor | None:
    """`mask`, limited to keys that are fewer than `window` positions before the query.

    Args:
        mask: (B, 1, T, S) bool, True where a token attends; None: causal.
        positions: (T,) or (B, T) int64, the position of each query among the S keys.
        n_keys: S.
        window: number of tokens that a token attends to, itself included.

    Returns:
        (B or 1, 1, T, S) bool; `mask` itself if no key is outside the window.
    """
    if n_keys <= window:
        return mask
    distances = _distances(positions, n_keys)  # (B or 1, 1, T, S)
    return (distances < window) & (distances >= 0 if mask is None else mask)  # (B or 1, 1, T, S)


class Alibi(nn.Module):
    """ALiBi: adds −slope · distance to the attention logits, with one slope per head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(config.n_head), persistent=False)  # (n_head,)

    def forward(self, mask: Tensor | None, positions: Tensor, n_keys: int) -> Tensor:
        """The bias that is added to the attention logits: −slope · distance, and −inf where `mask` is False.

        Args:
            mask: as for `window_mask`.
            positions: as for `window_mask`.
            n_keys: S.

        Returns:
            (B or 1, n_head, T, S) float32, or the dtype of autocast.
        """
        distances = _distances(positions, n_keys)  # (B or 1, 1, T, S)
        bias = -distances * self.slopes.float().view(-1, 1, 1)  # type: ignore[operator]  # (B or 1, n_head, T, S)
        # (B or 1, n_head, T, S)
        bias = bias.masked_fill(~(distances >= 0 if mask is None else mask), -math.inf)
        # Cast once under autocast: each layer would cast it again and save the result for its backward pass.
        device = bias.device.type
        return bias.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else bias


def alibi_slopes(n_head: int) -> Tensor:
    """(n_head,) float32: 2^(-8/n), 2^(-16/n) … for n heads.

    If n_head is no power of two: the slopes of the next lower power, then every second slope of the next higher one,
    as in the paper's code.
    """
    below = 2 ** int(math.log2(n_head))
    powers = [8 * i / below for i in range(1, below + 1)]
    powers += [8 * i / (2 * below) for i in range(1, 2 * below, 2)][: n_head - below]
    return 2 ** -torch.tensor(powers)  # (n_head,)


def _distances(positions: Tensor, n_keys: int) -> Tensor:
    """Query position minus key position, (B or 1, 1, T, S) int64; negative for keys after the query."""
    # (B or 1, 1, T, 1) - (S,) → (B or 1, 1, T, S)
    return positions.view(-1, 1, positions.shape[-1], 1) - torch.arange(n_keys, device=positions.device)
