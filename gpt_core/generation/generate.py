"""`generate`: continue one prompt or a list of prompts."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, TypedDict, Unpack, overload

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

MAX_RUNNING = 8  # prompts that are batched in a forward
DEFAULT_NEW_TOKENS = 256  # where max_new_tokens is None


class Sampling(TypedDict, total=False):
    """The keywords of `generate` that do not change what it returns, for the type checker."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    seed: int | None
    overflow: Literal["error", "slide"]


@overload
def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stream: Literal[False] = ...,
    **sampling: Unpack[Sampling],
) -> str: ...
@overload
def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: list[str],
    *,
    stream: Literal[False] = ...,
    **sampling: Unpack[Sampling],
) -> list[str]: ...
@overload
def generate(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, stream: Literal[True], **sampling: Unpack[Sampling]
) -> Generator[str, None, None]: ...
def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | list[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    logit_bias: Mapping[int, float] = MappingProxyType({}),
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    overflow: Literal["error", "slide"] = "error",
    stream: bool = False,
) -> str | list[str] | Generator[str, None, None]:
    """Continue a prompt or a list of prompts; returns the new text without the prompt.

    Args:
        model: the model; it is put into evaluation mode.
        tokenizer: the model's tokenizer.
        prompt: a text, or a list of texts of any lengths.
        max_new_tokens: stop after this many tokens, or at the model's end-of-text token. None: 256, or as
            many as the context still holds.
        temperature: 0 always takes the most probable token; above 1 is more varied, below 1 less.
        top_k: sample only from the k most probable tokens; 0 is off.
        top_p: sample only from the smallest set of tokens with at least this total probability; 1 is off.
        min_p: drop tokens less probable than min_p times the most probable one; 0 is off.
        repetition_penalty: above 1, tokens that occur in the prompt or the text become less likely; 1 is off.
        logit_bias: token id → number added to its logit.
        stop: strings that end the text; they are not part of it.
        seed: makes the text reproducible; prompt i of a list is sampled with seed + i.
        overflow: what to do if the prompt and `max_new_tokens` do not fit the context: "error" raises; "slide"
            continues, as nanoGPT's sample.py: whenever the context is full, only its second half is kept.
        stream: return a generator of pieces of text, each as soon as it is final; closing it cancels the request.

    Returns:
        A text for one prompt, a list of texts for a list, a generator with `stream`.

    Raises:
        InputError: for an empty prompt, a prompt that does not fit the context together with `max_new_tokens`, a list
            with `stream`, or a value out of its range.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    params = SamplingParams(
        1 if max_new_tokens is None else max_new_tokens,  # validated here, set for each prompt below
        temperature,
        top_k,
        top_p,
        stop,
        seed,
        min_p,
        repetition_penalty,
        logit_bias,
        overflow=overflow,
    )
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if stream and not isinstance(prompt, str):
        raise InputError(f"stream takes one prompt, not a list of {len(prompt)}; use an Engine for several.")
    if not prompts:
        return []
    ids = tokenizer.encode_batch(prompts, add_special_tokens=True)
    block_size = model.config.block_size
    every = [
        replace(
            params,
            max_new_tokens=max_new_tokens or min(DEFAULT_NEW_TOKENS, max(1, block_size - len(prompt_ids))),
            seed=None if seed is None else seed + i,
        )
        for i, prompt_ids in enumerate(ids)
    ]
    longest = max(len(prompt_ids) + (p.max_new_tokens or 0) for prompt_ids, p in zip(ids, every, strict=True))
    context = min(longest, block_size)  # limits the size of the cache
    engine = Engine(model, tokenizer, max_running=min(len(ids), MAX_RUNNING), context=context)
    if stream:
        return engine.stream(ids[0], every[0])

    requests = [engine.submit(prompt_ids, p) for prompt_ids, p in zip(ids, every, strict=True)]
    engine.run()
    for request in requests:
        if request.error is not None:
            raise request.error
    texts = [request.text for request in requests]
    return texts[0] if isinstance(prompt, str) else texts
