"""How fast rotary positions turn, where a model was stretched to a longer context than it was first trained on.

References: RoPE (Su et al. 2021); linear scaling (Chen et al. 2023, Position Interpolation); dynamic NTK scaling
(u/emozilla 2023); YaRN (Peng et al. 2023); Llama 3.1's (Grattafiori et al. 2024); LongRoPE (Ding et al. 2024). The
numbers are those of transformers.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt_core.common.errors import InputError

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeScaling:
    """One way of slowing rotary positions down.

    Attributes:
        kind: linear: all pairs by `factor`; dynamic: all by what the length asks for, which is nothing within the
            model's context; llama3: the slow ones by `factor`, the fast ones not, a ramp between them; yarn: likewise,
            with another ramp and louder; longrope: each by its own number of `factors`.
        factor: how many times as slow; unused by longrope.
        original_length: the context in pretraining, in tokens; for llama3 and yarn.
        low_freq_factor: llama3: pairs that turn fewer times in `original_length` are slow.
        high_freq_factor: llama3: pairs that turn more often are fast.
        beta_fast: yarn: pairs that turn more often in `original_length` are fast.
        beta_slow: yarn: pairs that turn fewer times are slow.
        truncate: yarn: whether the ramp begins and ends at whole pairs.
        attention_factor: what sine and cosine are multiplied with; for yarn and longrope.
        factors: longrope: how many times as slow each pair is.

    Raises:
        InputError: for numbers that do not make sense together.
    """

    kind: RopeKind
    factor: float = 1.0
    original_length: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(number > 0 for number in (self.factor, self.attention_factor, *self.factors)):
            raise InputError(
                f"RoPE scaling has factor = {self.factor}, attention_factor = {self.attention_factor} and factors = "
                f"{self.factors}; expected numbers above 0."
            )
        if self.kind in ("llama3", "yarn") and (self.original_length is None or self.original_length < 1):
            raise InputError(
                f"RoPE scaling of kind {self.kind} has the original length {self.original_length}; expected at least 1."
            )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise InputError(
                    f"RoPE scaling has {low} = {getattr(self, low)} and {high} = {getattr(self, high)}; expected the "
                    "first above 0 and below the second."
                )


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """How far each pair of a head turns from one place to the next.

    Args:
        head_dim: width of a head; pair i of its head_dim / 2 turns by theta^(-2i / head_dim) without scaling.
        theta: the base.
        scaling: how that is changed.

    Returns:
        (head_dim / 2,) float32 radians, and what sine and cosine are multiplied with.

    Raises:
        InputError: for a scaling that has another number of factors.
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None or scaling.kind == "dynamic":
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "longrope":
        if len(scaling.factors) != len(plain):
            raise InputError(
                f"RoPE scaling has {len(scaling.factors)} factors; expected one for each pair of a head, {len(plain)}."
            )
        return plain / torch.tensor(scaling.factors), scaling.attention_factor
    assert scaling.original_length is not None
    if scaling.kind == "llama3":
        turns = scaling.original_length * plain / (2 * math.pi)
        fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        fast = fast.clamp(0, 1)
        return (1 - fast) * plain / scaling.factor + fast * plain, 1.0
    slow = _yarn_ramp(head_dim, theta, scaling, scaling.original_length)
    return plain / scaling.factor * slow + plain * (1 - slow), scaling.attention_factor


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling, original_length: int) -> Tensor:
    """(head_dim / 2,): 0 for pairs that YaRN leaves as fast as they were, 1 for those that become slow."""

    def pair_that_turns(times: float) -> float:
        """Which pair, not rounded, turns so often in the original context."""
        return head_dim * math.log(original_length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
