"""Text from a model, on the terminal."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gpt_core.device import DeviceName, pick_device
from gpt_core.engine import Engine
from gpt_core.errors import InputError
from gpt_core.hub import resolve
from gpt_core.model import GPT
from gpt_core.sampling import SamplingParams
from gpt_core.tokenizer import Tokenizer


def sample(
    *,
    model: str,
    prompt: str = "\n",
    num_samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    seed: int | None = None,
    device: DeviceName = "auto",
) -> None:
    """Continue a prompt, writing the text as it comes.

    A text longer than the model's context goes on from the second half of the context.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        prompt: the beginning of the text, or FILE:path to read it from a file.
        num_samples: how many continuations to write, one after the other.
        max_new_tokens: stop after this many tokens.
        temperature: 0 takes the best token always; above 1 is more varied, below 1 less.
        top_k: draw from the k best tokens only; 0 is off.
        top_p: draw from the fewest best tokens that hold this share of the probability; 1 is off.
        seed: makes the texts reproducible; None draws others each time.
        device: auto is cuda, else mps, else cpu.
    """
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; expected at least 1.")
    if prompt.startswith("FILE:"):
        prompt = _read_prompt(Path(prompt.removeprefix("FILE:")))
    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, seed=seed)
    folder = resolve(model)  # once: a run may write a better checkpoint meanwhile
    tokenizer = Tokenizer.from_pretrained(folder)
    engine = Engine(GPT.from_pretrained(folder).to(pick_device(device)), tokenizer, max_running=1)
    seeds = torch.Generator()
    seeds.seed() if seed is None else seeds.manual_seed(seed)
    try:
        for i in range(num_samples):
            if i:
                print("---------------")
            _write(engine, tokenizer, prompt, params, seeds)
    except (
        BrokenPipeError
    ):  # `| head` has read enough; the null device takes what Python still flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(
    engine: Engine, tokenizer: Tokenizer, prompt: str, params: SamplingParams, seeds: torch.Generator
) -> None:
    """Write one sample to stdout, in as many requests as contexts are needed."""

    def write(text: str) -> None:
        # A context may end inside a character: its first bytes are dropped here and drawn again below.
        print(text.rstrip("\ufffd"), end="", flush=True)

    ids = tokenizer.encode(prompt, add_special_tokens=True)
    left, unwritten = params.max_new_tokens, prompt
    while left > 0:
        seed = int(torch.randint(2**62, (), generator=seeds))
        request = engine.submit(ids, replace(params, max_new_tokens=left, seed=seed), on_text=write)
        print(unwritten, end="")  # not before the engine has taken it
        unwritten = ""
        engine.run()
        if request.error is not None:
            raise request.error
        if request.finish_reason == "stop":
            break
        new = request.token_ids
        while len(new) > 1 and tokenizer.decode(new).endswith("\ufffd"):
            new = new[:-1]
        left -= len(new)
        ids = (ids + new)[-(engine.context + 1) // 2 :]
    print()


def _read_prompt(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path} to read the prompt from.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first.") from error
