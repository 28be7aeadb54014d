"""OpenAI's models and embeddings endpoints, compatible with OpenAI's clients."""

import base64
from typing import Any

from fastapi import APIRouter, Request

from embed import Encoder
from gpt_core.common.errors import InputError
from serve.api.schemas import EmbeddingsRequest
from serve.http.streams import until_disconnect
from serve.work.service import Service, ServiceDep

router = APIRouter(prefix="/v1", tags=["OpenAI's"])
TEXTS_PER_CALL = 32  # between two calls the search thread can run other searches


@router.get("/models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """List the generator and the embedder."""
    names = dict.fromkeys([service.generator_name, service.embedder_name])
    common = {"object": "model", "created": service.started, "owned_by": "zhizhi"}
    return {"object": "list", "data": [{"id": name, **common} for name in names]}


@router.post("/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request, service: ServiceDep) -> dict[str, Any]:
    """Unit vectors of texts or token ids from the embedder (without the index's corpus map)."""
    service.check_model(body.model, service.embedder_name)
    return await until_disconnect(request, _embed(body, service))


async def _embed(body: EmbeddingsRequest, service: Service) -> dict[str, Any]:
    encoder = service.encoder
    if body.dimensions not in (None, encoder.dimension):
        raise InputError(
            f"dimensions is {body.dimensions}; expected {encoder.dimension}, since vectors cannot be truncated."
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
    """The texts and their number of tokens; empty and too long texts are errors, as at OpenAI."""
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
                f"input[{i}] has {length} tokens; the embedder's limit is {encoder.max_tokens}: split the text."
            )
    return texts, sum(lengths)
