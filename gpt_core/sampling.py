"""From the logits of the next token to the token: temperature, top-k, top-p, seed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_core.errors import InputError


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Attributes:
        max_new_tokens: stop after this many tokens.
        temperature: logits are divided by it; 0 takes the best token always (greedy).
        top_k: draw from the k best tokens only; 0 is off.
        top_p: draw from the fewest best tokens that hold this share of the probability (nucleus sampling,
            Holtzman et al. 2019); 1 is off. Applied after top_k.
        stop: strings that end the text, and are no part of it.
        seed: the same seed gives the same tokens; None draws a new one.

    Raises:
        InputError: for a value outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        stop_is_good = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        seed_is_good = self.seed is None or 0 <= self.seed < 2**63
        for name, is_good, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a finite positive number"),
            ("top_k", self.top_k >= 0, "0 (off) or how many of the best tokens to draw from"),
            ("top_p", 0 < self.top_p <= 1, "a share of the probability above 0 and up to 1 (off)"),
            ("stop", stop_is_good, "a tuple of non-empty strings"),
            ("seed", seed_is_good, "None or a whole number from 0 to 2**63 - 1"),
        ):
            if not is_good:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}.")


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """What a temperature above 0, top_k and top_p make of logits (V,): float32 (V,) that add up to 1.

    The tokens left with a probability are those that transformers' logits processors leave.
    """
    logits = logits.float()
    # With 0 as the best, and above float32's smallest number, no temperature overflows.
    logits = (logits - logits.max()) / max(params.temperature, 1e-9)
    if 0 < params.top_k < len(logits):
        kth = logits.topk(params.top_k).values[-1]
        logits[logits < kth] = -torch.inf
    if params.top_p < 1:
        ascending, order = logits.sort()
        in_tail = ascending.softmax(-1).cumsum(-1) <= 1 - params.top_p
        in_tail[-1] = False  # rounding must not drop the best token
        logits[order[in_tail]] = -torch.inf
    return logits.softmax(-1)


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None) -> int:
    """Choose the next token.

    Args:
        logits: (V,) of any floating dtype.
        params: temperature, top_k and top_p are read.
        generator: the source of randomness, on the device of `logits`; torch's global one if None.

    Raises:
        FloatingPointError: if the best logit is NaN or infinite.
    """
    best = logits.max()
    if not best.isfinite():
        raise FloatingPointError(f"the best logit is {best.item()}: the model overflowed")
    if params.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, params), 1, generator=generator))
