"""`generate`: continue one prompt or a list of prompts."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, overload

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

MAX_RUNNING = 8  # prompts that are batched in a forward
DEFAULT_NEW_TOKENS = 256  # where max_new_tokens is None


class Sampling(TypedDict, total=False):
    """The fields of `SamplingParams` that `generate` takes, for the type checker."""

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
    stream: bool = False,
    **sampling: Unpack[Sampling],
) -> str | list[str] | Generator[str, None, None]:
    """Continue a prompt or a list of prompts; returns the new text without the prompt.

    Args:
        model: the model; it is put into evaluation mode.
        tokenizer: the model's tokenizer.
        prompt: a text, or a list of texts of any lengths.
        stream: return a generator of pieces of text, each as soon as it is final; closing it cancels the request.
        sampling: fields of `SamplingParams` by name. A single string is a valid `stop`; `max_new_tokens` None, the
            default, means 256, or as many as the context still holds; prompt i of a list uses seed + i.

    Returns:
        A text for one prompt, a list of texts for a list, a generator with `stream`.

    Raises:
        InputError: for an empty prompt, a prompt that does not fit the context together with `max_new_tokens`, a list
            with `stream`, or a value out of its range.
    """
    stop, max_new_tokens = sampling.get("stop", ()), sampling.get("max_new_tokens")
    fields: dict[str, Any] = {
        **sampling,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "max_new_tokens": 1
        if max_new_tokens is None
        else max_new_tokens,  # validated here, set per prompt below
    }
    params = SamplingParams(**fields)
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
            seed=None if params.seed is None else params.seed + i,
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
