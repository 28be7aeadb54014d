"""Who may look at whom, and how gladly: several texts in a row, windows, ALiBi (Press et al. 2022).

B is the number of rows, T of tokens in a row, S of tokens that they look at: T, and what a cache holds before them.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.model.config import GPTConfig


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
    behind = _behind(places, n_seen)
    return (behind < window) & (behind >= 0 if mask is None else mask)


class Alibi(nn.Module):
    """ALiBi: no positions, but a head looks the less gladly the further back, each head by its own slope."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(config.n_head), persistent=False)

    def forward(self, mask: Tensor | None, places: Tensor, n_seen: int) -> Tensor:
        """What is added to the attention logits: minus slope times distance, and -inf where nobody may look.

        Args:
            mask: as for `window_mask`.
            places: likewise.
            n_seen: S.

        Returns:
            (B or 1, n_head, T, S) float32, or what autocast asks for.
        """
        behind = _behind(places, n_seen)
        bias = -behind * self.slopes.float().view(-1, 1, 1)  # type: ignore[operator]
        bias = bias.masked_fill(~(behind >= 0 if mask is None else mask), -math.inf)
        place = bias.device.type  # under autocast once for all layers, whose backwards keep it
        return bias.to(torch.get_autocast_dtype(place)) if torch.is_autocast_enabled(place) else bias


def alibi_slopes(n_head: int) -> Tensor:
    """(n_head,) float32: 2^(-8/n), 2^(-16/n) … for n heads.

    Where n_head is no power of two, those of the power below it, and then every second one of the power above it, as
    in the paper's own code.
    """
    below = 2 ** int(math.log2(n_head))
    powers = [8 * i / below for i in range(1, below + 1)]
    powers += [8 * i / (2 * below) for i in range(1, 2 * below, 2)][: n_head - below]
    return 2 ** -torch.tensor(powers)


def _behind(places: Tensor, n_seen: int) -> Tensor:
    """(B or 1, 1, T, S): how far back from each token the others lie."""
    return places.view(-1, 1, places.shape[-1], 1) - torch.arange(n_seen, device=places.device)
