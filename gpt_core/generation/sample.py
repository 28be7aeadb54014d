"""The sample command: continue a prompt and write the text to stdout."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

import tyro

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import ignore_broken_pipe, write_text
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.prompts import read_prompt, refuse_long
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

SAMPLING = SamplingParams(temperature=0.8, top_k=200)  # nanoGPT's defaults
MAX_RUNNING = 8  # samples that share a step
MAX_QUEUED = 64  # samples submitted at a time: enough that a long sample does not delay the others


def sample(
    *,
    model: str,
    prompt: str = "\n",
    num_samples: int = 1,
    sampling: tyro.conf.OmitArgPrefixes[SamplingParams] = SAMPLING,
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
        sampling: how to choose tokens. Sample i, from 0, uses seed + i.
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
    params, seed = replace(sampling, overflow=overflow), sampling.seed
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
    context = gpt.config.block_size
    if params.max_new_tokens is not None:
        context = min(len(ids) + params.max_new_tokens, context)  # limits the size of the cache
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
