"""Text from a model, on the terminal."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import until_nobody_reads, write_text
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.prompts import read_prompt, refuse_long
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

TOGETHER = 8  # samples that share a step
AHEAD = 64  # samples that are submitted at a time: enough that a long one does not keep the others waiting


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
    """Continue a prompt, writing the text as it comes.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        prompt: the beginning of the text, or FILE:path to read it from a file.
        num_samples: how many continuations to write, one after the other.
        max_new_tokens: stop after this many tokens, or at the model's end-of-text token.
        temperature: 0 takes the best token always; above 1 is more varied, below 1 less.
        top_k: draw from the k best tokens only; 0 is off.
        top_p: draw from the fewest best tokens that hold this share of the probability; 1 is off.
        min_p: drop the tokens that are less probable than min_p times the best one; 0 is off.
        repetition_penalty: above 1, tokens that the prompt and the text hold become less likely; 1 is off.
        stop: strings that end the text and are no part of it.
        seed: makes the texts reproducible: sample i, from 0, draws with seed + i; None draws others each time.
        overflow: what becomes of a text longer than the model's context. slide: it goes on from the second half of the
            context, as often as needed; error: it is refused.
        special_tokens: read special tokens that the prompt spells out, such as <|endoftext|>, as what they stand for;
            else they are text like any other.
        device: auto is cuda, else mps, else cpu.
        dtype: of the weights; auto is the faster of bfloat16 and float32 on this machine. int8 is smaller and changes
            the model slightly.
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
        replace(params, seed=seed + num_samples - 1)  # the last one's is in range, too
    each = (replace(params, seed=None if seed is None else seed + i) for i in range(num_samples))
    text = read_prompt(prompt)
    folder = resolve(model)  # once: a run may write a better checkpoint meanwhile
    tokenizer = Tokenizer.from_pretrained(folder)
    gpt = load_for_inference(folder, dtype, device)
    refuse_long(text, gpt.config.block_size)
    ids = (
        tokenizer.encode_trusted(text) if special_tokens else tokenizer.encode(text, add_special_tokens=True)
    )
    if len(ids) > gpt.config.block_size:
        raise InputError(
            f"The prompt has {len(ids)} tokens; the model's context holds {gpt.config.block_size}: shorten the prompt."
        )
    context = min(len(ids) + max_new_tokens, gpt.config.block_size)  # no more cache than that
    engine = Engine(gpt, tokenizer, max_running=min(num_samples, TOGETHER), context=context)
    with until_nobody_reads():
        _write(engine, text, ids, each)


def _write(engine: Engine, text: str, ids: list[int], each: Iterator[SamplingParams]) -> None:
    """Continue `text`, whose tokens are `ids`, once with each of the parameters; write one after the other."""
    coming = (engine.submit(ids, params) for params in each)
    requests = deque(islice(coming, AHEAD))
    between = ""
    while requests:
        write_text(between + text)
        follow(engine, requests.popleft())
        write_text("\n")
        requests.extend(islice(coming, 1))
        between = "---------------\n"


def follow(engine: Engine, request: Request, stopped: Callable[[], bool] = lambda: False) -> None:
    """Step the engine until `request` is done, and write its text to stdout as it comes.

    Args:
        engine: that `request` was submitted to.
        request: whose text is written.
        stopped: asked before every step; True cancels the request.

    Raises:
        Exception: what ended the request, if the model failed.
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
