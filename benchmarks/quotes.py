"""Benchmark prompt lookup on answers that quote: questions on SQuAD passages, with and without drafts."""

import gzip
import json
import random
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.decode import clocks
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.tokenizer.tokenizer import Tokenizer

SYSTEM = "You copy sentences out of a text, word for word."
REQUEST = "{passage}\n\n{question} Copy the sentence of the text that answers, word for word."
ANSWER_PREFIX = 'The text says: "'  # a small model would paraphrase without it
STOP_STRINGS = ('"', "\n")
ANSWER_TOKENS = 96
LONG_ANSWER_TOKENS = 24  # answers of at least this length are also reported separately
SEED = 0  # for drawing the passages


def read_questions(path: str, n: int) -> list[tuple[str, str]]:
    """(passage, question) for up to `n` different passages drawn at random.

    Args:
        path: SQuAD's JSON (`.json`, `.json.gz`).
        n: maximum number of passages.

    Raises:
        InputError: if the file is missing, damaged or has another format.
    """
    opened: Any = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            articles = json.load(file)["data"]
        found = [
            (paragraph["context"], paragraph["qas"][0]["question"])
            for article in articles
            for paragraph in article["paragraphs"]
            if paragraph["qas"]
        ]
    except OSError as error:
        raise InputError(f"--squad {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, EOFError, zlib.error):
        raise InputError(
            f"{path} is not SQuAD's JSON; expected data, paragraphs, context, qas, question."
        ) from None
    if not found:
        raise InputError(f"{path} has no questions; expected SQuAD's JSON with at least one.")
    return random.Random(SEED).sample(found, min(n, len(found)))


def quotes(
    name: str,
    dtype: InferenceDtype,
    questions: list[tuple[str, str]],
    draft: int,
    threads: int,
    device: DeviceName,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Answer greedily without drafts and with up to `draft` drafted tokens per step; call it in a separate process.

    Returns:
        For each question the answers without and with drafts: text (ids), said (the text as a string), quoted (whether
        the passage contains it verbatim), prefill_s, and wall_s, cpu_s and steps of decoding.

    Raises:
        InputError: for a model without a chat template, or a passage that does not fit the context.
    """
    torch.set_num_threads(threads)
    model, tokenizer = load_for_inference(name, dtype, device), Tokenizer.from_pretrained(name)
    plain, guessing = (Engine(model, tokenizer, max_running=1, draft=n) for n in (0, draft))
    found = []
    for number, (passage, question) in enumerate([*questions[:1], *questions]):  # the first is for warm-up
        content = REQUEST.format(passage=passage, question=question)
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        prompt = tokenizer.chat(chat) + tokenizer.encode(ANSWER_PREFIX)
        if number % 2:
            one, other = _answer(plain, prompt), _answer(guessing, prompt)
        else:
            other, one = _answer(guessing, prompt), _answer(plain, prompt)
        for answer in (one, other):
            answer["quoted"] = answer["said"].strip() in passage
        found.append((one, other))
    return found[1:]


def summary(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], draft: int, dtype: str
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows for all answers and for those that are long without drafts; and the ratios with/without drafts."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for which, min_tokens in (
        ("answers", 1),
        (f"answers of {LONG_ANSWER_TOKENS} tokens or more", LONG_ANSWER_TOKENS),
    ):
        chosen = [pair for pair in pairs if len(pair[0]["text"]) >= min_tokens]
        if not chosen:
            continue
        same = sum(one["text"] == other["text"] for one, other in chosen)
        plain, guessing = (
            _row(f"draft {n}, {which}", dtype, taken) | {"same_answers": same}
            for n, taken in zip((0, draft), zip(*chosen, strict=True), strict=True)
        )
        rows += [plain, guessing]
        for key, words in (
            ("decode_per_s", "tokens/s"),
            ("cpu_ms_per_token", "CPU-s/token"),
            ("answers_per_s", "answers/s, prefill included"),
        ):
            ratios[f"draft {draft}/draft 0 {words}, {which}"] = guessing[key] / plain[key]
        ratios[f"same answers with and without drafts, {which}"] = same / len(chosen)
    return rows, ratios


def _row(system: str, dtype: str, taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n_tokens = [len(run["text"]) for run in taken]
    steps, wall, cpu, prefill = (
        sum(run[key] for run in taken) for key in ("steps", "wall_s", "cpu_s", "prefill_s")
    )
    return {
        "system": system,
        "dtype": dtype,
        "decode_per_s": sum(n_tokens) / wall,
        "cpu_ms_per_token": 1e3 * cpu / sum(n_tokens),
        "tokens_per_step": sum(n_tokens) / steps,
        "answers_per_s": len(taken) / (wall + prefill),
        "answers": len(taken),
        "quoted": sum(run["quoted"] for run in taken),
        "median_tokens": float(np.median(n_tokens)),
    }


def _answer(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    """Prefill the prompt with one request, then answer it with a second one from the engine's cache."""
    begun = clocks()
    _run(engine, prompt, 1)
    read = clocks()
    request, steps = _run(engine, prompt, ANSWER_TOKENS)
    done = clocks()
    return {
        "text": request.token_ids,
        "said": request.text,
        "steps": steps,
        "prefill_s": read[0] - begun[0],
        "wall_s": done[0] - read[0],
        "cpu_s": done[1] - read[1],
    }


def _run(engine: Engine, prompt: list[int], n_new: int) -> tuple[Request, int]:
    request = engine.submit(prompt, SamplingParams(max_new_tokens=n_new, temperature=0.0, stop=STOP_STRINGS))
    steps = 1
    while engine.step():
        steps += 1
    if request.error is not None:
        raise request.error
    return request, steps
