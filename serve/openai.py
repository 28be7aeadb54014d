"""OpenAI's endpoints, so that its clients and everything built on them work unchanged."""

import base64
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from embed import Encoder
from gpt_core.errors import InputError
from gpt_core.sampling import SamplingParams
from serve.http import EventStream, event, until_disconnect
from serve.schemas import ChatRequest, EmbeddingsRequest
from serve.service import Service, ServiceDep
from serve.worker import TokenStream

router = APIRouter(prefix="/v1", tags=["OpenAI's"])
TEXTS_PER_CALL = 32  # other searches get their turn between two calls


@router.get("/models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """The generator and the embedder."""
    names = dict.fromkeys([service.generator_name, service.embedder_name])
    common = {"object": "model", "created": service.started, "owned_by": "zhizhi"}
    return {"object": "list", "data": [{"id": name, **common} for name in names]}


@router.post("/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request, service: ServiceDep) -> dict[str, Any]:
    """Unit vectors of texts or of token ids, as the embedder gives them (without the index's map)."""
    service.check_model(body.model, service.embedder_name)
    return await until_disconnect(request, _embed(body, service))


async def _embed(body: EmbeddingsRequest, service: Service) -> dict[str, Any]:
    encoder = service.encoder
    if body.dimensions not in (None, encoder.dimension):
        raise InputError(
            f"dimensions is {body.dimensions}; this embedder has {encoder.dimension} and cannot be shortened."
        )
    texts, n_tokens = await service.search.run(_check_input, body, encoder)
    encode = encoder.encode_query if body.input_type == "query" else encoder.encode_document
    data: list[dict[str, Any]] = []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        for vector in await service.search.run(encode, texts[start : start + TEXTS_PER_CALL]):
            as_float = body.encoding_format == "float"
            embedding = vector.tolist() if as_float else base64.b64encode(vector.tobytes()).decode()
            data.append({"object": "embedding", "index": len(data), "embedding": embedding})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _check_input(body: EmbeddingsRequest, encoder: Encoder) -> tuple[list[str], int]:
    """The texts and their number of tokens; an empty text and one that would be cut are errors, as at OpenAI."""
    tokenizer, config = encoder.tokenizer, encoder.config
    given: list[Any] = body.input if isinstance(body.input, list) else [body.input]
    if isinstance(given[0], int):
        given = [given]
    prompt = config.query_prompt if body.input_type == "query" else config.document_prompt
    texts = []
    for i, item in enumerate(given):
        if isinstance(item, list):
            if not all(0 <= token < tokenizer.vocab_size for token in item):
                raise InputError(f"input[{i}] has token ids outside 0 to {tokenizer.vocab_size - 1}.")
            item = tokenizer.decode(item)
        if not item:
            raise InputError(f"input[{i}] is empty; expected text or token ids.")
        texts.append(item)
    lengths = encoder.count_tokens(texts, prompt)
    for i, length in enumerate(lengths):
        if length > encoder.max_tokens:
            raise InputError(
                f"input[{i}] has {length} tokens; the embedder reads {encoder.max_tokens}: split the text."
            )
    return texts, sum(lengths)


@router.post("/chat/completions")
async def chat(body: ChatRequest, request: Request, service: ServiceDep) -> Any:
    """The generator as it is, without retrieval; with `"stream": true` OpenAI's chunks."""
    service.check_model(body.model, service.generator_name)
    engine = service.engine
    params = SamplingParams(
        max_new_tokens=body.max_completion_tokens or body.max_tokens or engine.context,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
    )
    prompt = await until_disconnect(request, service.search.run(engine.tokenizer.chat, _messages(body)))
    stream = service.generate(prompt, params)
    if body.stream:
        return EventStream(_chunks(body, stream), stream.close)
    try:
        text = await until_disconnect(request, stream.finish())
    finally:
        stream.close()
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
    choice["finish_reason"] = stream.request.finish_reason
    return {**_head(body, "chat.completion"), "choices": [choice], "usage": _usage(stream)}


async def _chunks(body: ChatRequest, stream: TokenStream) -> AsyncIterator[str]:
    head = _head(body, "chat.completion.chunk")
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice], **extra})

    yield chunk({"role": "assistant", "content": ""})
    async for piece in stream:
        yield chunk({"content": piece})
    yield chunk({}, stream.request.finish_reason)
    if with_usage:
        yield event({**head, "choices": [], "usage": _usage(stream)})
    yield event("[DONE]")


def _head(body: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": body.model}


def _usage(stream: TokenStream) -> dict[str, int]:
    n_prompt, n_new = stream.request.n_prompt, len(stream.request.token_ids)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


def _messages(body: ChatRequest) -> list[dict[str, str]]:
    """As the chat template takes them: text content, and OpenAI's newer name for "system" back."""
    messages = []
    for message in body.messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        messages.append({"role": message.role.replace("developer", "system"), "content": text})
    return messages
