"""From the logits of the next token to the token.

The order of what is applied is that of transformers' `generate`: logit bias, repetition penalty, temperature, top-k,
top-p, min-p. Temperature 0 takes the best token after the first two. It is done in numpy, whose sort and partition of
a whole vocabulary are many times faster than torch's on a CPU; torch gives the randomness.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.common.errors import InputError

OVERFLOWED = "the model's weights hold no numbers, or it overflows; try it in float32, or fetch it again."


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Attributes:
        max_new_tokens: stop after this many tokens; None: go on as long as the context holds the text.
        temperature: logits are divided by it; 0 takes the best token always (greedy).
        top_k: draw from the k best tokens only; 0 is off. Tokens tied with the k-th stay.
        top_p: draw from the fewest best tokens that hold this share of the probability (nucleus sampling,
            Holtzman et al. 2019); 1 is off. Applied after top_k.
        stop: strings that end the text, and are no part of it.
        seed: the same seed gives the same tokens; None draws a new one. In bfloat16 or with 8 bits a draw between two
            tokens may turn on the rounding, and that on what else the engine is computing.
        min_p: drop the tokens that are less probable than min_p times the best one (Nguyen et al. 2024); 0 is off.
        repetition_penalty: of the tokens that the prompt and the text hold, positive logits are divided by it and
            negative ones multiplied by it (CTRL, Keskar et al. 2019); 1 is off, above 1 repeats less.
        logit_bias: token id → what is added to its logit.
        logprobs: keep the log-probability of every token, and those of this many best tokens in its place; None
            keeps none.
        overflow: what becomes of a prompt and `max_new_tokens` that the context cannot hold together: "error", or
            "slide": when the context is full, its second half is read anew and the text goes on from there; of a
            prompt that is longer, the last half context is read.

    Raises:
        InputError: for a value outside its range.
    """

    max_new_tokens: int | None = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    overflow: Literal["error", "slide"] = "error"

    def __post_init__(self) -> None:
        stop_is_good = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        bias_is_good = isinstance(self.logit_bias, Mapping) and all(
            _whole(token, 0) and _real(bias, -1e30, 1e30) for token, bias in self.logit_bias.items()
        )
        for name, is_good, expected in (
            (
                "max_new_tokens",
                _whole(self.max_new_tokens, 1) or (self.max_new_tokens is None and self.overflow != "slide"),
                'a whole number of at least 1, or None (to the end of the context; not with overflow="slide")',
            ),
            ("temperature", _real(self.temperature, 0), "0 (greedy) or a finite positive number"),
            ("top_k", _whole(self.top_k, 0), "0 (off) or how many of the best tokens to draw from"),
            (
                "top_p",
                _real(self.top_p, 0, 1) and self.top_p > 0,
                "a share of the probability above 0 and up to 1 (off)",
            ),
            ("stop", stop_is_good, "a tuple of non-empty strings"),
            ("seed", self.seed is None or _whole(self.seed, 0, 2**63 - 1), "None or 0 to 2**63 - 1"),
            ("min_p", _real(self.min_p, 0, 1), "0 (off) to 1, a share of the best token's probability"),
            (
                "repetition_penalty",
                _real(self.repetition_penalty, 0.01, 100),
                "a number from 0.01 to 100; 1 is off",
            ),
            ("logit_bias", bias_is_good, "token ids with finite numbers"),
            ("logprobs", self.logprobs is None or _whole(self.logprobs, 0), "None or a whole number from 0"),
            ("overflow", self.overflow in ("error", "slide"), '"error" or "slide"'),
        ):
            if not is_good:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))


class TokenLogprobs(NamedTuple):
    """How probable the model found a token, before temperature, penalties and biases.

    Attributes:
        token: the token that was taken.
        logprob: natural logarithm of its probability.
        best: (token, log-probability) of the most probable tokens in its place, the best first.
    """

    token: int
    logprob: float
    best: list[tuple[int, float]]


def check_vocabulary(params: SamplingParams, n_tokens: int) -> None:
    """Raise InputError if `params` names a token that is none of the `n_tokens` that can be drawn."""
    for token in params.logit_bias:
        if token >= n_tokens:
            raise InputError(
                f"logit_bias names token {token}; expected ids from 0 to {n_tokens - 1}, the model's vocabulary."
            )


def sample(
    logits: Tensor,
    params: SamplingParams,
    generator: torch.Generator | None = None,
    history: Sequence[int] = (),
) -> int:
    """Choose the next token.

    Args:
        logits: (V,) of any floating dtype.
        params: how to choose; bias ids must be below V (`check_vocabulary`).
        generator: the source of randomness, on the CPU; torch's global one if None.
        history: ids of the prompt's and the text's tokens; only the repetition penalty reads them.

    Raises:
        FloatingPointError: if the best logit is NaN or infinite.
    """
    if params.temperature == 0:
        return _best(_adjusted(logits, params, history))
    ids, probability = candidates(logits, params, history)
    cumulative = _cumulative(probability)
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * cumulative[-1]
    return int(ids[np.searchsorted(cumulative, point, side="right")])


def candidates(
    logits: Tensor, params: SamplingParams, history: Sequence[int] = ()
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens that a temperature above 0, top_k, top_p and min_p leave of logits (V,), as transformers leaves them.

    Returns:
        Their ids (n,) ascending, and their probabilities (n,), which add up to 1.

    Raises:
        FloatingPointError: if the best logit is NaN or infinite.
    """
    x = _adjusted(logits, params, history)
    with np.errstate(over="ignore"):  # a logit far below the best may become -inf: probability 0
        # With 0 as the best, and above float32's smallest number, no temperature overflows.
        x = (x - x[_best(x)]) / np.float32(max(params.temperature, 1e-9))
    ids = np.arange(len(x))
    if params.top_k > 0:
        kept = _top_k(x, params.top_k)
        ids, x = ids[kept], x[kept]
    if params.top_p < 1:
        kept = _top_p(x, params.top_p)
        ids, x = ids[kept], x[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(x >= math.log(params.min_p))  # the best one is 0
        ids, x = ids[kept], x[kept]
    probability = np.exp(x)
    return ids, probability / probability.sum()


def token_logprobs(logits: Tensor, token: int, n: int) -> TokenLogprobs:
    """Log-probabilities of `token` and of the `n` best tokens by the model's own logits (V,); ties by id."""
    x = _as_numpy(logits)
    best = x[_best(x)]
    with np.errstate(over="ignore"):
        x = x - best - np.log(np.exp(x - best).sum())
    ids = _top_k(x, n) if n else np.arange(0)
    ids = ids[np.argsort(-x[ids], kind="stable")][:n]
    return TokenLogprobs(token, float(x[token]), [(int(i), float(x[i])) for i in ids])


def _adjusted(logits: Tensor, params: SamplingParams, history: Sequence[int]) -> NDArray[np.float32]:
    """The logits (V,) in float32 after bias and repetition penalty; a copy if these change anything."""
    x = _as_numpy(logits)
    if params.logit_bias:
        x = x.copy()
        x[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    if params.repetition_penalty != 1 and len(history):
        seen = np.asarray(history)
        penalty = np.float32(params.repetition_penalty)
        x = x.copy()
        x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    return x


def _as_numpy(logits: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = logits.detach().float().cpu().numpy()
    return array


def _best(x: NDArray[np.float32]) -> int:
    """The place of the largest; the first one of equals. A NaN counts as the largest."""
    best = int(x.argmax())
    if not np.isfinite(x[best]):
        raise FloatingPointError(f"the best logit is {x[best]}: {OVERFLOWED}")
    return best


def _top_k(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places, ascending, of the k largest and what is tied with the k-th."""
    if k >= len(x):
        return np.arange(len(x))
    return np.flatnonzero(x >= np.partition(x, -k)[-k])


def _top_p(x: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Places, ascending, of the largest of x (n,), whose largest is 0, that hold the share top_p of sum(exp(x)).

    One more belongs to them as long as those before it hold less; of equals the first come first.
    """
    descending = np.sort(x)[::-1]
    held = _cumulative(np.exp(descending))
    n_kept = min(int(np.searchsorted(held, top_p * held[-1])) + 1, len(held))
    least = descending[n_kept - 1]
    places = np.flatnonzero(x >= least)
    tied = np.flatnonzero(x[places] == least)
    return np.delete(places, tied[n_kept - len(places) + len(tied) :])


def _cumulative(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums of the first 1, 2, … weights, of which only this is faster in torch."""
    sums: NDArray[np.float64] = torch.from_numpy(weights).cumsum(0, dtype=torch.float64).numpy()
    return sums


def _whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
