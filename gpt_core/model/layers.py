"""Dropout (Srivastava et al. 2014), quick on a CPU, too."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Dropout(nn.Module):
    """torch.nn.Dropout, in a third of its time on a CPU.

    Args:
        p: share of the numbers that become zero in training; on a CPU to the nearest 1/256. The others grow by as much.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return dropout(x, self.p) if self.training and self.p else x


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with a share `p` of it zeroed and the rest scaled by 1/(1 - p)."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    # torch's own draws a number of 24 bits for each element; one of 64 bits makes eight that are good enough.
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    cut = round(256 * p)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
    return x * keep * (256 / (256 - cut))
