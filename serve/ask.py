"""The command that prints answers."""

import json as json_format
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt_core.common.errors import InputError
from gpt_core.common.terminal import printable
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype
from gpt_core.hub.locate import DEFAULT_GENERATOR
from index import Index
from serve.answers.answer import (
    ANSWER_TOKENS,
    GREEDY,
    LEXICAL_ONLY,
    Answer,
    answer_question,
    lexical_only,
    not_answered,
    second_stage_of,
)
from serve.answers.attribution import Citation
from serve.answers.quotes import Quote
from serve.answers.reader import open_reader
from serve.work.loading import load
from serve.work.remote import TOTAL_SECONDS, RemoteGenerator, remote_generator

QUOTE_FIELDS = ("text", "doc_id", "title", "headings", "start", "end", "probability", "pages")


def ask(
    question: Annotated[list[str], tyro.conf.Positional],
    /,
    *,
    index: str,
    questions: Path | None = None,
    json: bool = False,
    answer: Literal["quote", "generate"] = "quote",
    embedder: str | None = None,
    generator: str = DEFAULT_GENERATOR,
    generator_model: str | None = None,
    generator_seconds: float = TOTAL_SECONDS,
    dtype: InferenceDtype = "auto",
    k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None,
    answered: float | None = None,
    perhaps: float | None = None,
    second_stage: bool = False,
    reader: str | None = None,
    max_tokens: int = ANSWER_TOKENS,
) -> None:
    """Answer questions from an index, by quoting the sentences that answer them.

    An answer is one to three sentences of a document; or the nearest sentences, said to be only perhaps an answer; or
    that the corpus does not say.

    Args:
        question: one or more questions, each in quotes.
        index: the index's folder.
        questions: a file with a question per line, which are answered after those of the command line.
        json: print a line of JSON per question: question, kind (quote, perhaps, generated or not_found), text,
            probability, unanswered (of several questions in a line), failure (of the generator's server, or null), span
            (the reader's short answer, with text, start, end and probability, or null), and quotes with text, doc_id,
            title, headings, start, end (in code points) and probability.
        answer: quote, or generate: a text of the generator, of which only sentences are kept that a passage supports.
        embedder: model folder or known name; default: the embedder that the index was built with.
        generator: model folder or known name, for --answer generate; or the URL of a server with OpenAI's API (vLLM,
            Ollama, llama.cpp), http://HOST/v1. Its API key, if it needs one, is the environment's ZHIZHI_GENERATOR_KEY.
        generator_model: name of the model of the generator's server; default: the first one that the server lists.
        generator_seconds: maximum time that the generator's server may take for an answer.
        dtype: number format of the generator; auto is bfloat16 on machines that multiply it fast, else float32.
        k: number of passages to retrieve per question; by default as many as the ranker was fitted with.
        answered: least probability that a quote is right for an answer, 0 to 1; by default the ranker's.
        perhaps: least probability that the corpus answers for showing the nearest quotes, 0 to 1; by default the
            ranker's.
        second_stage: order the best four sentences again by how much each helps the embedder's GPT to predict the
            question; more answers are right, for about a second per question.
        reader: model folder, run's out_dir (scripts/finetune.py) or known name of the task span, which marks the short
            answer inside the first quote; default: zhizhi-reader if smollm2-135m-instruct is in the model cache. none:
            no short answer.
        max_tokens: maximum length of a generated answer in tokens.

    Raises:
        InputError: for a missing or empty question, a probability out of range, and as `load` and `answer_question`
            raise it.
    """
    for name, value in (("answered", answered), ("perhaps", perhaps)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; expected a probability, 0 to 1.")
    if k is not None and k < 1:
        raise InputError(f"k is {k}; expected at least 1.")
    if not all(text.strip() for text in question):
        raise InputError("A question is empty; give one or more, each in quotes.")
    asked = [*question, *(_read(questions) if questions else [])]
    if not asked:
        raise InputError(
            "There is no question; give one or more, each in quotes, or a file with --questions."
        )
    writer: Engine | RemoteGenerator | None = None
    if answer == "generate":
        writer = remote_generator(generator, generator_model, generator_seconds)
    if answer == "generate" and writer is None:
        opened, writer = load(index, embedder, generator, max_running=1, dtype=dtype)
    else:
        opened = Index.open(index, embedder)
    params = replace(GREEDY, max_new_tokens=max_tokens)
    short = open_reader(reader)
    with opened:
        if lexical_only(opened):
            print(LEXICAL_ONLY, file=sys.stderr)
        rescore = second_stage_of(opened) if second_stage else None
        for text in asked:
            if not json:
                print(f"\n? {printable(text)}", flush=True)
            found = answer_question(
                text,
                opened,
                writer,
                k=k,
                answered=answered,
                perhaps=perhaps,
                second_stage=rescore,
                reader=short,
                params=params,
            )
            if found.failure:
                print(printable(found.failure), file=sys.stderr, flush=True)
            print(as_json(text, found) if json else render(found), flush=True)


def _read(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as questions ({error}); expected UTF-8 text.") from None
    return (line.strip() for line in lines if line.strip())


def as_json(question: str, found: Answer) -> str:
    """An answer as a line of JSON."""
    quotes = [
        {name: value for name, value in asdict(quote).items() if name in QUOTE_FIELDS}
        for quote in found.quotes
    ]
    fields = {name: getattr(found, name) for name in ("kind", "text", "probability", "unanswered", "failure")}
    span = None if found.span is None else asdict(found.span)
    return json_format.dumps(
        {"question": question, **fields, "span": span, "quotes": quotes}, ensure_ascii=False
    )


def render(found: Answer, width: int = 100) -> str:
    """An answer as text.

    In a generated one [1] refers to a source below it, and [?] marks a sentence that no passage supports.
    """
    lines: list[str] = []
    if found.kind == "generated":
        sources = list(dict.fromkeys(s.citation for s in found.sentences if s.citation))
        marks = (f"[{sources.index(s.citation) + 1}]" if s.citation else "[?]" for s in found.sentences)
        lines.append(" ".join(f"{s.text} {mark}" for s, mark in zip(found.sentences, marks, strict=True)))
        for number, source in enumerate(sources, 1):
            lines.append(f"[{number}] {source.title or source.doc_id} ({_place(source)}): {source.text}")
    elif found.kind != "quote":
        lines.append(found.text.partition("\n")[0])
    if found.span is not None:
        lines.append(f"{found.span.text} ({found.span.probability:.0%}, in:)")
    for quote in found.quotes:
        path = " › ".join(dict.fromkeys([quote.title or quote.doc_id, *quote.headings]))
        lines += [f"“{quote.text}”", f"— {path} ({_place(quote)}), {quote.probability:.0%}"]
    if found.kind != "generated":
        lines += map(not_answered, found.unanswered)
    if found.draft and found.kind != "generated":
        lines.append(f"(Unsupported text of the model: {found.draft})")
    if found.kind == "not_found":
        lines += [f"nearest: {hit.title or hit.doc_id} ({hit.passage_id})" for hit in found.hits]
    return "\n".join(
        textwrap.fill(printable(" ".join(line.split())), width, initial_indent="  ", subsequent_indent="  ")
        for line in lines
    )


def _place(source: Quote | Citation) -> str:
    """Where a quote or a citation stands: the document's id, and its pages or its offsets."""
    return f"{source.doc_id}, {source.pages or f'{source.start}–{source.end}'}"
