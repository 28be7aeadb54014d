"""OpenAI's completions and chat endpoints: generation without retrieval, or an answer from the index."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request

from gpt_core.generation.prompts import refuse_long
from gpt_core.generation.sampling import SamplingParams
from serve.api.conversation import answer_chat, head
from serve.api.logprobs import LogprobsOf
from serve.api.schemas import OPENAI_ERRORS, STREAM, ChatRequest, CompletionRequest
from serve.http.body import JsonRoute
from serve.http.streams import EventStream, event, until_disconnect
from serve.work.service import RETRIEVAL_MODEL, Service, ServiceDep
from serve.work.threads import TokenStream, Worker, merged

router = APIRouter(prefix="/v1", tags=["OpenAI's"], route_class=JsonRoute, responses=OPENAI_ERRORS)


@router.post("/completions", responses=STREAM)
async def completions(body: CompletionRequest, request: Request, service: ServiceDep) -> Any:
    """Continue one or more prompts; with `"stream": true` as OpenAI's chunks."""
    worker = service.local_worker(body.model)
    prompts = _prompts(body)
    service.check_number(len(prompts) * (body.n or 1))
    if isinstance(prompts[0], str):
        for text in prompts:
            refuse_long(text, worker.engine.context)
        tokenizing = service.tokenize(worker.engine.tokenizer, prompts)
        prompts = await until_disconnect(request, tokenizing)
    return await _respond(body, request, service, worker, prompts)


@router.post("/chat/completions", responses=STREAM)
async def chat(body: ChatRequest, request: Request, service: ServiceDep) -> Any:
    """Generate the assistant's next message; with `"stream": true` as OpenAI's chunks.

    With `"retrieval": true`, or the model `zhizhi-rag`, the user's last message is answered from the index instead: the
    content is that of `text` in `/v1/answer`, and `citations` beside it (in a stream in the last chunk's delta) are
    the quotes. Parameters of generation are ignored then.
    """
    messages = _messages(body)
    if body.retrieval or body.model == RETRIEVAL_MODEL:
        return await answer_chat(body, messages, request, service)
    worker = service.local_worker(body.model)
    service.check_number(body.n or 1)
    refuse_long("".join(message["content"] for message in messages), worker.engine.context, "conversation")
    tokenizing = service.reader.run(worker.engine.tokenizer.chat, messages)
    return await _respond(body, request, service, worker, [await until_disconnect(request, tokenizing)])


def _prompts(body: CompletionRequest) -> list[Any]:
    """A list of prompts, all texts or all lists of token ids."""
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    return [given] if isinstance(given[0], int) else given


def _messages(body: ChatRequest) -> list[dict[str, str]]:
    """Messages for the chat template: content as one text, and the role "developer" as "system"."""
    messages = []
    for message in body.messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        messages.append({"role": message.role.replace("developer", "system"), "content": text})
    return messages


async def _respond(
    body: CompletionRequest | ChatRequest,
    request: Request,
    service: Service,
    worker: Worker,
    prompts: list[list[int]],
) -> Any:
    """Continue each prompt n times; choice i is sampled with seed + i."""
    params = body.params()
    jobs: list[tuple[list[int], SamplingParams]] = []
    for prompt in prompts:
        for _ in range(body.n or 1):
            seed = None if params.seed is None else params.seed + len(jobs)
            jobs.append((prompt, replace(params, seed=seed)))
    streams = service.generate_all(worker, jobs)
    logprobs = [LogprobsOf(worker.engine, stream.request) for stream in streams]
    in_progress = ChoicesInProgress(body, streams, logprobs)
    if body.stream:
        return EventStream(in_progress.chunks(), in_progress.close)
    try:
        await until_disconnect(request, asyncio.gather(*(stream.finish() for stream in streams)))
    finally:
        in_progress.close()
    return in_progress.response()


@dataclass(frozen=True)
class ChoicesInProgress:
    """The choices of one response that are being generated: `n` consecutive ones per prompt."""

    body: CompletionRequest | ChatRequest
    streams: list[TokenStream]
    logprobs: list[LogprobsOf]

    def response(self) -> dict[str, Any]:
        """The response without streaming, after all choices are complete."""
        choices = []
        for i, stream in enumerate(self.streams):
            text = stream.request.text
            content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
            choices.append(self._choice(i, content, stream.request.finish_reason))
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**head(kind, self.body.model), "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[str]:
        """The response as server-sent events: new text of each choice as it is generated."""
        start = head("chat.completion.chunk" if self._is_chat else "text_completion", self.body.model)
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage
        extra = {"usage": None} if with_usage else {}
        if self._is_chat:
            for i in range(len(self.streams)):
                first = {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
                yield event({**start, "choices": [{**first, "finish_reason": None}], **extra})
        async for i, piece in merged(self.streams):
            if self._is_chat:
                content: dict[str, Any] = {"delta": {} if piece is None else {"content": piece}}
            else:
                content = {"text": piece or ""}
            finish_reason = self.streams[i].request.finish_reason if piece is None else None
            yield event({**start, "choices": [self._choice(i, content, finish_reason)], **extra})
        if with_usage:
            yield event({**start, "choices": [], "usage": self._usage()})
        yield event("[DONE]")

    def close(self) -> None:
        """Cancel the choices that are not done."""
        for stream in self.streams:
            stream.close()

    @property
    def _is_chat(self) -> bool:
        return isinstance(self.body, ChatRequest)

    def _choice(self, i: int, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        logprobs = self.logprobs[i].chat() if self._is_chat else self.logprobs[i].completion()
        return {"index": i, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _usage(self) -> dict[str, Any]:
        """OpenAI's usage object; each prompt is counted once, not once per choice."""
        firsts = [stream.request for stream in self.streams[:: self.body.n or 1]]
        n_prompt = sum(request.n_prompt for request in firsts)
        n_new = sum(len(stream.request.token_ids) for stream in self.streams)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
            "prompt_tokens_details": {"cached_tokens": sum(request.n_reused for request in firsts)},
        }
