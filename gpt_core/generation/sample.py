"""The sample command: continue a prompt and write the text to stdout."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import ignore_broken_pipe, write_text
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.prompts import read_prompt, refuse_long
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

MAX_RUNNING = 8  # samples that share a step
MAX_QUEUED = 64  # samples submitted at a time: enough that a long sample does not delay the others


def sample(
    *,
    model: str,
    prompt: str = "\n",
    num_samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int | None = None,
    overflow: Literal["slide", "error"] = "slide",
    special_tokens: bool = False,
    device: DeviceName = "auto",
    dtype: InferenceDtype = "auto",
) -> None:
    """Continue a prompt and stream the text to stdout.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        prompt: the beginning of the text, or FILE:path to read it from a file.
        num_samples: how many continuations to write, one after the other.
        max_new_tokens: stop after this many tokens, or at the model's end-of-text token.
        temperature: 0 always takes the most probable token; above 1 is more varied, below 1 less.
        top_k: sample only from the k most probable tokens; 0 is off.
        top_p: sample only from the smallest set of tokens with at least this total probability; 1 is off.
        min_p: drop tokens less probable than min_p times the most probable one; 0 is off.
        repetition_penalty: above 1, tokens that occur in the prompt or the text become less likely; 1 is off.
        stop: strings that end the text; they are not part of it.
        seed: makes the texts reproducible: sample i, from 0, uses seed + i; None uses a new random seed each time.
        overflow: what to do if the text is longer than the model's context. slide: continue from the second half of the
            context, as often as needed; error: stop with an error.
        special_tokens: encode special tokens in the prompt, such as <|endoftext|>, as special tokens; otherwise they
            are encoded as plain text.
        device: auto is cuda, else mps, else cpu.
        dtype: of the weights; auto is the faster of bfloat16 and float32 on this machine. int8 is smaller and changes
            the outputs slightly.
    """
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; expected at least 1.")
    params = SamplingParams(
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        stop,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        overflow=overflow,
    )
    if seed is not None:
        replace(params, seed=seed + num_samples - 1)  # checks that the last seed is in range, too
    each = (replace(params, seed=None if seed is None else seed + i) for i in range(num_samples))
    text = read_prompt(prompt)
    folder = resolve(model)  # only once: a training run may write a better checkpoint meanwhile
    tokenizer = Tokenizer.from_pretrained(folder)
    gpt = load_for_inference(folder, dtype, device)
    refuse_long(text, gpt.config.block_size)
    ids = (
        tokenizer.encode_trusted(text) if special_tokens else tokenizer.encode(text, add_special_tokens=True)
    )
    if len(ids) > gpt.config.block_size:
        raise InputError(
            f"The prompt has {len(ids)} tokens; the model's context holds {gpt.config.block_size}. Shorten the prompt."
        )
    context = min(len(ids) + max_new_tokens, gpt.config.block_size)  # limits the size of the cache
    engine = Engine(gpt, tokenizer, max_running=min(num_samples, MAX_RUNNING), context=context)
    with ignore_broken_pipe():
        _write(engine, text, ids, each)


def _write(engine: Engine, text: str, ids: list[int], each: Iterator[SamplingParams]) -> None:
    """Continue `text`, whose tokens are `ids`, once per element of `each`; write the samples one after the other."""
    submitted = (engine.submit(ids, params) for params in each)
    requests = deque(islice(submitted, MAX_QUEUED))
    between = ""
    while requests:
        write_text(between + text)
        follow(engine, requests.popleft())
        write_text("\n")
        requests.extend(islice(submitted, 1))
        between = "---------------\n"


def follow(engine: Engine, request: Request, stopped: Callable[[], bool] = lambda: False) -> None:
    """Step the engine until `request` is done, and stream its text to stdout.

    Args:
        engine: the engine to which `request` was submitted.
        request: the request whose text is written.
        stopped: called before every step; if it returns True, the request is cancelled.

    Raises:
        Exception: the error that ended the request, if the model failed.
    """
    n_written = 0
    while True:
        write_text(request.text[n_written:])
        n_written = len(request.text)
        if request.done:
            break
        if stopped():
            engine.cancel(request)
        engine.step()
    if request.error is not None:
        raise request.error
