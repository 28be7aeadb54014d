"""The command that prints cited answers."""

import textwrap
from dataclasses import replace
from typing import Annotated

import tyro

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import printable
from gpt_core.generation.fast_model import InferenceDtype
from gpt_core.hub.locate import DEFAULT_MODEL
from serve.answers.answer import ANSWER_TOKENS, GREEDY, Answer, answer_question
from serve.work.loading import load


def ask(
    questions: Annotated[list[str], tyro.conf.Positional],
    /,
    *,
    index: str,
    embedder: str | None = None,
    generator: str = DEFAULT_MODEL,
    dtype: InferenceDtype = "auto",
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5,
    max_tokens: int = ANSWER_TOKENS,
) -> None:
    """Answer questions from an index, citing the supporting sentence of each answer sentence.

    Args:
        questions: one or more, each in quotes.
        index: the index's folder.
        embedder: model folder or known name; default: the embedder that the index was built with.
        generator: model folder or known name.
        dtype: number format of the generator; auto is bfloat16 on machines that multiply it fast, else float32.
        k: number of passages to retrieve per question.
        max_tokens: maximum length of an answer in tokens.

    Raises:
        InputError: for a missing or empty question, and as `load` and `answer_question` raise it.
    """
    if not questions or not all(question.strip() for question in questions):
        raise InputError("A question is missing or empty; give one or more, each in quotes.")
    opened, engine = load(index, embedder, generator, max_running=1, dtype=dtype)
    with opened:
        for question in questions:
            print(f"\n? {question}", flush=True)
            params = replace(GREEDY, max_new_tokens=max_tokens)
            print(render(answer_question(question, opened, engine, k=k, params=params)), flush=True)


def render(found: Answer, width: int = 100) -> str:
    """An answer as text: [1] refers to a source below it, [?] marks a sentence that no passage supports."""
    sources = list(dict.fromkeys(s.citation for s in found.sentences if s.citation))
    if found.found:
        marks = (f"[{sources.index(s.citation) + 1}]" if s.citation else "[?]" for s in found.sentences)
        words = " ".join(f"{s.text} {mark}" for s, mark in zip(found.sentences, marks, strict=True))
    else:
        words = found.text
        if found.draft:
            words += f" (Unsupported text of the model: {found.draft})"
    lines = [words]
    for number, source in enumerate(sources, 1):
        where = f"{source.title or source.doc_id} ({source.doc_id}, {source.start}–{source.end})"
        lines.append(f"[{number}] {where}: {source.text}")
    if not found.found:
        lines += [f"nearest: {hit.title or hit.doc_id} ({hit.passage_id})" for hit in found.hits]
    return "\n".join(
        textwrap.fill(printable(" ".join(line.split())), width, initial_indent="  ", subsequent_indent="  ")
        for line in lines
    )
