"""Sampling the next token from its logits.

The steps have the order of transformers' `generate`: logit bias, repetition penalty, temperature, top-k, top-p, min-p.
Temperature 0 takes the argmax after the first two. The implementation uses numpy, whose sort and partition of a whole
vocabulary are many times faster than torch's on a CPU; the random numbers come from torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.common.errors import InputError

NON_FINITE = "the model's weights contain NaN or its activations overflow. Try float32, or download it again."


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        max_new_tokens: stop after this many tokens, or earlier at the end-of-text token; None: at the end of the
            context.
        temperature: divisor of the logits; 0 always takes the most probable token (greedy).
        top_k: sample only from the k most probable tokens; 0 is off. Ties with the k-th are kept.
        top_p: sample only from the smallest set of tokens with at least this total probability (nucleus sampling,
            Holtzman et al. 2019); 1 is off. Applied after top_k.
        stop: strings that end the text; they are not part of it.
        seed: the same seed gives the same tokens; None uses a random seed. In bfloat16 and int8, rounding depends on
            the other requests in the batch, so two nearly equal tokens may still be exchanged.
        min_p: drop tokens less probable than min_p times the most probable one (Nguyen et al. 2024); 0 is off.
        repetition_penalty: for tokens that occur in the prompt or the text, positive logits are divided by it and
            negative ones multiplied by it (CTRL, Keskar et al. 2019); 1 is off, above 1 repeats less.
        logit_bias: token id → number added to its logit.
        logprobs: record the log-probability of every token, and of this many most probable tokens at its position;
            None records none.
        overflow: what to do if the prompt and `max_new_tokens` do not fit the context: "error" raises; "slide": when
            the context is full, its second half is prefilled again and generation continues; of a longer prompt,
            only the last half context is prefilled.

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
    # Not options of the commands: for programs only, except `overflow`, which `sample` offers.
    logit_bias: Annotated[Mapping[int, float], tyro.conf.Suppress] = field(default_factory=dict)
    logprobs: Annotated[int | None, tyro.conf.Suppress] = None
    overflow: Annotated[Literal["error", "slide"], tyro.conf.Suppress] = "error"

    def __post_init__(self) -> None:
        stop_is_good = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        bias_is_good = isinstance(self.logit_bias, Mapping) and all(
            _is_int(token, 0) and _is_number(bias, -1e30, 1e30) for token, bias in self.logit_bias.items()
        )
        for name, is_good, expected in (
            (
                "max_new_tokens",
                _is_int(self.max_new_tokens, 1) or (self.max_new_tokens is None and self.overflow != "slide"),
                'an integer of at least 1, or None (to the end of the context; not with overflow="slide")',
            ),
            ("temperature", _is_number(self.temperature, 0), "0 (greedy) or a finite positive number"),
            ("top_k", _is_int(self.top_k, 0), "0 (off) or the number of most probable tokens to sample from"),
            (
                "top_p",
                _is_number(self.top_p, 0, 1) and self.top_p > 0,
                "a probability above 0 and up to 1 (off)",
            ),
            ("stop", stop_is_good, "a tuple of non-empty strings"),
            ("seed", self.seed is None or _is_int(self.seed, 0, 2**63 - 1), "None or 0 to 2**63 - 1"),
            ("min_p", _is_number(self.min_p, 0, 1), "0 (off) to 1, a fraction of the highest probability"),
            (
                "repetition_penalty",
                _is_number(self.repetition_penalty, 0.01, 100),
                "a number from 0.01 to 100; 1 is off",
            ),
            ("logit_bias", bias_is_good, "a mapping of token ids to finite numbers"),
            (
                "logprobs",
                self.logprobs is None or _is_int(self.logprobs, 0),
                "None or an integer of at least 0",
            ),
            ("overflow", self.overflow in ("error", "slide"), '"error" or "slide"'),
        ):
            if not is_good:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position, before temperature, penalties and biases.

    Attributes:
        token: id of the sampled token.
        logprob: natural logarithm of its probability.
        best: (id, log-probability) of the most probable tokens at that position, in descending order.
    """

    token: int
    logprob: float
    best: list[tuple[int, float]]


def check_vocabulary(params: SamplingParams, n_tokens: int) -> None:
    """Raise InputError if `params.logit_bias` has an id outside 0 … `n_tokens` - 1."""
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
    """Sample the id of the next token.

    Args:
        logits: (V,) of any floating dtype.
        params: sampling parameters; bias ids must be below V (`check_vocabulary`).
        generator: random number generator on the CPU; torch's global one if None.
        history: ids of prompt and text, for the repetition penalty.

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
    """Apply temperature (above 0), top_k, top_p and min_p to logits (V,), with the same results as transformers.

    Returns:
        The remaining ids (n,), ascending, and their probabilities (n,), which sum to 1.

    Raises:
        FloatingPointError: if the best logit is NaN or infinite.
    """
    x = _adjusted(logits, params, history)
    with np.errstate(over="ignore"):  # a logit far below the maximum may become -inf: probability 0
        # Subtracting the maximum and clamping the temperature avoid overflow to +inf.
        x = (x - x[_best(x)]) / np.float32(max(params.temperature, 1e-9))
    ids = np.arange(len(x))
    if params.top_k > 0:
        kept = _top_k(x, params.top_k)
        ids, x = ids[kept], x[kept]
    if params.top_p < 1:
        kept = _top_p(x, params.top_p)
        ids, x = ids[kept], x[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(x >= math.log(params.min_p))  # the maximum of x is 0
        ids, x = ids[kept], x[kept]
    probability = np.exp(x)
    return ids, probability / probability.sum()


def token_logprobs(logits: Tensor, token: int, n: int) -> TokenLogprobs:
    """Log-probabilities of `token` and of the `n` most probable tokens from unmodified logits (V,); ties by id."""
    x = _as_numpy(logits)
    best = x[_best(x)]
    with np.errstate(over="ignore"):
        x = x - best - np.log(np.exp(x - best).sum())
    ids = _top_k(x, n) if n else np.arange(0)
    ids = ids[np.argsort(-x[ids], kind="stable")][:n]
    return TokenLogprobs(token, float(x[token]), [(int(i), float(x[i])) for i in ids])


def _adjusted(logits: Tensor, params: SamplingParams, history: Sequence[int]) -> NDArray[np.float32]:
    """Logits (V,) in float32 after bias and repetition penalty; copied before any change."""
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
    """Argmax of x (V,); the first of ties. A NaN counts as the largest, so that it raises."""
    best = int(x.argmax())
    if not np.isfinite(x[best]):
        raise FloatingPointError(f"the best logit is {x[best]}: {NON_FINITE}")
    return best


def _top_k(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices, ascending, of the k largest values and of ties with the k-th."""
    if k >= len(x):
        return np.arange(len(x))
    return np.flatnonzero(x >= np.partition(x, -k)[-k])


def _top_p(x: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest largest x (n,) whose exp sums to at least top_p * sum(exp(x)).

    The maximum of x must be 0. Of tied values the first are kept.
    """
    descending = np.sort(x)[::-1]
    cumulative = _cumulative(np.exp(descending))
    n_kept = min(int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1, len(cumulative))
    least = descending[n_kept - 1]
    indices = np.flatnonzero(x >= least)
    tied = np.flatnonzero(x[indices] == least)
    return np.delete(indices, tied[n_kept - len(indices) + len(tied) :])


def _cumulative(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cumulative sum in float64; torch's is faster than numpy's."""
    sums: NDArray[np.float64] = torch.from_numpy(weights).cumsum(0, dtype=torch.float64).numpy()
    return sums


def _is_int(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
