"""Rotation angles of rotary positions, also for models extended to a longer context than in pretraining.

References: RoPE (Su et al. 2021); linear scaling (Chen et al. 2023, Position Interpolation); dynamic NTK scaling
(u/emozilla 2023); YaRN (Peng et al. 2023); Llama 3.1 (Grattafiori et al. 2024); LongRoPE (Ding et al. 2024). The
angles equal those of transformers.
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
    """A method that lowers the rotation angles so that a longer context covers the same range.

    Attributes:
        kind: linear: divide the angles of all pairs by `factor`; dynamic: depends on the length, and changes nothing
            within the model's context; llama3: divide those of low-frequency pairs by `factor`, keep those of
            high-frequency pairs, interpolate between them; yarn: likewise, with another ramp, and `attention_factor`;
            longrope: divide those of pair i by `factors[i]`.
        factor: divisor of the angles, above 0; unused by longrope.
        original_length: the context in pretraining, in tokens; for llama3 and yarn.
        low_freq_factor: llama3: pairs with fewer rotations in `original_length` are low-frequency.
        high_freq_factor: llama3: pairs with more rotations in `original_length` are high-frequency.
        beta_fast: yarn: pairs with more rotations in `original_length` are high-frequency.
        beta_slow: yarn: pairs with fewer rotations in `original_length` are low-frequency.
        truncate: yarn: round the ends of the ramp to integer pairs.
        attention_factor: factor of sine and cosine; for yarn and longrope.
        factors: longrope: head_dim / 2 divisors, one per pair.

    Raises:
        InputError: for values that are out of range or contradict each other.
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
    """Rotation angle per position of each of the head_dim/2 pairs, in radians.

    Args:
        head_dim: width of a head; the angle of pair i is theta^(-2i / head_dim) without scaling.
        theta: the base.
        scaling: how the angles are lowered; None: not at all.

    Returns:
        (head_dim / 2,) float32 angles, and the factor of sine and cosine.

    Raises:
        InputError: if longrope's `factors` are not head_dim / 2.
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (head_dim / 2,)
    if scaling is None or scaling.kind == "dynamic":
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "longrope":
        if len(scaling.factors) != len(plain):
            raise InputError(
                f"RoPE scaling has {len(scaling.factors)} factors; expected one for each pair of a head, {len(plain)}."
            )
        return plain / torch.tensor(scaling.factors), scaling.attention_factor  # (head_dim / 2,)
    assert scaling.original_length is not None
    if scaling.kind == "llama3":
        # (head_dim / 2,), in the original context
        rotations = scaling.original_length * plain / (2 * math.pi)
        fast = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        fast = fast.clamp(0, 1)  # (head_dim / 2,), 1 for high-frequency pairs
        return (1 - fast) * plain / scaling.factor + fast * plain, 1.0  # (head_dim / 2,)
    slow = _yarn_ramp(head_dim, theta, scaling, scaling.original_length)  # (head_dim / 2,)
    return plain / scaling.factor * slow + plain * (1 - slow), scaling.attention_factor  # (head_dim / 2,)


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling, original_length: int) -> Tensor:
    """(head_dim / 2,) float32: 0 for pairs whose angle YaRN keeps, 1 for those whose angle it divides by `factor`."""

    def pair_with_rotations(n: float) -> float:
        """Index, not rounded, of the pair with n rotations in the original context."""
        return head_dim * math.log(original_length / (n * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with_rotations(scaling.beta_fast), pair_with_rotations(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)  # (head_dim / 2,)
