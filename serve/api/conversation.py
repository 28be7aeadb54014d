"""Chats that are answered from the index, in OpenAI's format with citations."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from gpt_core.common.errors import InputError
from index import Index
from serve.answers.answer import Answer, ground, prepare
from serve.api.schemas import ChatRequest
from serve.http.streams import EventStream, event, until_disconnect
from serve.work.service import RETRIEVAL_MODEL, Service, encoder_of

CITATION_FIELDS = ("text", "doc_id", "title", "start", "end", "probability")


async def answer_chat(
    body: ChatRequest, messages: Sequence[Mapping[str, str]], request: Request, service: Service
) -> Any:
    """Answer the last message of the user in quotes; with `"stream": true` as OpenAI's chunks.

    Raises:
        NotFoundError: for the name of a model that is neither `RETRIEVAL_MODEL` nor the generator's.
        InputError: for more than one choice, no message of the user, and as `prepare`.
    """
    if body.model != RETRIEVAL_MODEL:
        service.check_model(body.model, service.generator_name or RETRIEVAL_MODEL)
    if (body.n or 1) > 1:
        raise InputError(f"n is {body.n}, but an answer from the index is one text; use 1.")
    questions = [message["content"] for message in messages if message["role"] == "user"]
    if not questions:
        raise InputError("There is no message with the role user; an answer from the index needs a question.")
    reply = await until_disconnect(request, service.search.run(_reply, questions, service.index))
    if body.stream:
        return EventStream(_chunks(reply, body), lambda: None)
    message = {"role": "assistant", "content": reply.found.text, "citations": reply.citations}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**head("chat.completion", body.model), "choices": [choice], "usage": reply.usage}


def head(kind: str, model: str) -> dict[str, Any]:
    """The first fields of a response of OpenAI's chats and completions."""
    name = f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


@dataclass(frozen=True)
class _Reply:
    found: Answer
    usage: dict[str, int]

    @property
    def citations(self) -> list[dict[str, Any]]:
        return [{name: getattr(quote, name) for name in CITATION_FIELDS} for quote in self.found.quotes]


def _reply(questions: Sequence[str], index: Index) -> _Reply:
    """The answer to the last question, with the tokens of what is searched for and of the answer, by the embedder."""
    encoder = encoder_of(index)
    prepared = prepare(questions[-1], index, history=questions[:-1])
    found = ground(prepared)
    n_prompt = sum(encoder.count_tokens(prepared.queries, encoder.config.query_prompt))
    n_new = len(encoder.tokenizer.encode(found.text))
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
    return _Reply(found, usage)


async def _chunks(reply: _Reply, body: ChatRequest) -> AsyncIterator[str]:
    start = head("chat.completion.chunk", body.model)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": reply.found.text}, None),
        ({"citations": reply.citations}, "stop"),
    ]
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        yield event({**start, "choices": [choice], **extra})
    if with_usage:
        yield event({**start, "choices": [], "usage": reply.usage})
    yield event("[DONE]")
