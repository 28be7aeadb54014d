"""OpenAI's models and embeddings endpoints, compatible with OpenAI's clients."""

import base64
from functools import partial
from itertools import chain
from typing import Any

from fastapi import APIRouter, Request

from embed.encoding.embedder import PromptName
from gpt_core.common.errors import InputError
from gpt_core.generation.prompts import refuse_long
from serve.api.schemas import OPENAI_ERRORS, EmbeddingsRequest
from serve.http.body import JsonRoute
from serve.http.streams import until_disconnect
from serve.work.service import Service, ServiceDep

router = APIRouter(prefix="/v1", tags=["OpenAI's"], route_class=JsonRoute, responses=OPENAI_ERRORS)
TEXTS_PER_CALL = 32  # between two calls the search thread can run other searches


@router.get("/models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """List the generator, the embedder, and the name under which chats are answered from the index."""
    return {"object": "list", "data": [_model(name, service) for name in service.model_names]}


@router.get("/models/{name:path}")  # names of Hugging Face's hub have a slash
async def model(name: str, service: ServiceDep) -> dict[str, Any]:
    """The model with this name."""
    if name not in service.model_names:
        service.check_model(name, service.embedder_name)
    return _model(name, service)


def _model(name: str, service: Service) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "zhizhi"}


@router.post("/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request, service: ServiceDep) -> dict[str, Any]:
    """Unit vectors of texts from the embedder (without the index's corpus map).

    `dimensions` keeps the first dimensions of each vector and normalises them, which loses little for an embedder that
    was trained for it (Matryoshka).
    """
    service.check_model(body.model, service.embedder_name)
    return await until_disconnect(request, _embed(body, service))


async def _embed(body: EmbeddingsRequest, service: Service) -> dict[str, Any]:
    encoder = service.encoder
    if (body.dimensions or 1) > encoder.dimension:
        raise InputError(
            f"dimensions is {body.dimensions}; expected 1 to {encoder.dimension}, the embedder's dimension."
        )
    texts = body.input if isinstance(body.input, list) else [body.input]
    if "" in texts:
        raise InputError(f"input[{texts.index('')}] is empty; expected text.")
    for i, text in enumerate(texts):
        refuse_long(text, encoder.max_tokens, f"text input[{i}]")
    name: PromptName = "query" if body.input_type == "query" else "document"
    prompt = encoder.prompt(name)
    lengths = [
        len(ids) for ids in await service.tokenize(encoder.tokenizer, [prompt + text for text in texts])
    ]
    for i, length in enumerate(lengths):
        if length > encoder.max_tokens:
            raise InputError(
                f"input[{i}] has {length} tokens; the embedder's limit is {encoder.max_tokens}: split the text."
            )
    encode = partial(encoder.encode, prompt_name=name, truncate_dim=body.dimensions)
    starts = range(0, len(texts), TEXTS_PER_CALL)
    batches = await service.search.run_each(partial(encode, texts[i : i + TEXTS_PER_CALL]) for i in starts)
    data: list[dict[str, Any]] = []
    for vector in chain.from_iterable(batches):
        as_base64 = body.encoding_format == "base64"
        embedding = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
        data.append({"object": "embedding", "index": len(data), "embedding": embedding})
    usage = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}
