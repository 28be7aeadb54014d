"""`generate`: text in, text out."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

from gpt_core.engine import Engine
from gpt_core.errors import InputError
from gpt_core.model import GPT
from gpt_core.sampling import SamplingParams
from gpt_core.tokenizer import Tokenizer

MAX_RUNNING = 8  # prompts that share a forward


class Sampling(TypedDict, total=False):
    """The keywords of `generate` that do not change what it returns, for the type checker."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    stop: str | Sequence[str]
    seed: int | None


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
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    stream: bool = False,
) -> str | list[str] | Generator[str, None, None]:
    """Continue a prompt, or several at once; the prompt is no part of what comes back.

    Args:
        model: is put into evaluation mode.
        tokenizer: the model's own.
        prompt: a text, or a list of texts of any lengths.
        max_new_tokens: stop after this many tokens, or where the context ends.
        temperature: 0 takes the best token always; above 1 is more varied, below 1 less.
        top_k: draw from the k best tokens only; 0 is off.
        top_p: draw from the fewest best tokens that hold this share of the probability; 1 is off.
        stop: strings that end the text and are no part of it.
        seed: makes the text reproducible; prompt i of a list draws with seed + i.
        stream: give a generator of pieces of text, as soon as they are certain; closing it stops the work.

    Returns:
        The text for a text, a list of texts for a list, a generator with `stream`.

    Raises:
        InputError: for an empty prompt, one that fills the context, a list with `stream`, or a value out of
            its range.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, stop, seed)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if stream and not isinstance(prompt, str):
        raise InputError(f"stream takes one prompt, not a list of {len(prompt)}; use an Engine for several.")
    if not prompts:
        return []
    ids = tokenizer.encode_batch(prompts, add_special_tokens=True)
    longest = max(map(len, ids)) + max_new_tokens  # no more cache than that
    context = min(longest, model.config.block_size)
    engine = Engine(model, tokenizer, max_running=min(len(ids), MAX_RUNNING), context=context)
    if stream:
        return engine.stream(ids[0], params)

    requests = [
        engine.submit(prompt_ids, params if seed is None else replace(params, seed=seed + i))
        for i, prompt_ids in enumerate(ids)
    ]
    engine.run()
    for request in requests:
        if request.error is not None:
            raise request.error
    texts = [request.text for request in requests]
    return texts[0] if isinstance(prompt, str) else texts
