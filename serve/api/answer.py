"""The endpoints for search and cited answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import TypeAdapter

from embed import Encoder
from embed.encoding.rerank import Reranker
from gpt_core.common.errors import InputError
from gpt_core.generation.sampling import SamplingParams
from index import Hit, Index
from index.search.rank import Hits
from serve.answers.answer import GREEDY, Answer, Prepared, ground, prepare, retrieve, second_stage_of
from serve.answers.prompt import ChatPrompt, Prompt
from serve.api.schemas import STREAM, AnswerRequest, SearchRequest
from serve.http.body import JsonRoute
from serve.http.streams import EventStream, event, until_disconnect
from serve.work.remote import Draft, RemoteGenerator
from serve.work.service import ServiceDep
from serve.work.threads import TokenStream

PRIVATE = {"embedder_folder", "embedder_beside", "identity", "store"}  # paths and addresses
router = APIRouter(prefix="/v1", tags=["search and answers"], route_class=JsonRoute)


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first.

    `exact`: whether all passages were ranked; see `Hits`.
    """

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True)
class Sources:
    """The retrieved passages, the first `n_prompt_hits` of which are in the generator's prompt."""

    hits: list[Hit]
    n_prompt_hits: int


@router.post("/search")
async def search(body: SearchRequest, request: Request, service: ServiceDep) -> SearchResult:
    """The k best passages for a query, best first.

    `filter` maps fields of the documents' metadata, or `doc_id`, to a required value, a list of alternative values, or
    operators such as `{"gte": 2000, "lt": 2010}` (also `lte`, `gt`, `in`, `ne`, `contains`, `exists`); `author.name` is
    a field inside an object; `{"$or": [filter, …]}`, `"$and"` and `{"$not": filter}` combine filters.
    """
    options = body.model_dump(exclude={"query", "rerank"})
    finding = service.search.run(_search, body.query, service.index, body.rerank, options)
    hits = await until_disconnect(request, finding)
    return SearchResult(hits, hits.exact)


@router.get("/index")
async def index(request: Request, service: ServiceDep) -> dict[str, Any]:
    """The index: numbers of documents and passages, embedder, and how the vectors are searched.

    `vectors` has the type of the FAISS index, its parameters, and the recall that was measured when it was made.
    """
    stats = await until_disconnect(request, service.search.run(service.index.stats))
    return {name: value for name, value in stats.items() if name not in PRIVATE}


def _search(query: str, index: Index, n_reranked: int | None, options: dict[str, Any]) -> Hits:
    if n_reranked is not None:
        options |= {"rerank": reranker_of(index), "n_reranked": n_reranked}
    return retrieve(query, index, **options)


@lru_cache(maxsize=1)  # kept with what its GPT has read
def reranker_of(index: Index) -> Reranker:
    """The GPT of the index's embedder as a re-ranker."""
    encoder = index.encoder
    if not isinstance(encoder, Encoder) or encoder.network.is_table:
        raise InputError("The index's embedder is no language model; leave out rerank.")
    return Reranker(encoder.model, encoder.tokenizer)


@router.post("/answer", response_model=Answer, responses=STREAM)
async def answer(body: AnswerRequest, request: Request, service: ServiceDep) -> Answer | Response:
    """Sentences of the documents that answer a question, or a sentence that the corpus does not say.

    `kind` says which: `quote`, `perhaps` (the nearest quotes, which are probably no answer), `not_found`, or, for a
    request with `"answer": "generate"`, `generated`: `text` then has the sentences of the model that a passage
    supports, `draft` all that the model wrote, and `sentences` say which of its sentences are supported. Without a
    supported sentence the answer consists of quotes. `span` is the short answer inside the first quote, if
    the server has a reader: its `text`, its `start` and `end` in code points of the document, its `probability`.
    `failure` says why a remote generator wrote nothing.

    With `"stream": true` the response is server-sent events: one `sources` (`hits`, `n_prompt_hits`), any number of
    `token` (`text`, a piece of a local generator's draft, not checked yet), then `done` (the fields of the plain
    response) or `error`. After `done`, a client replaces the pieces that it has shown by `text`, or by `sentences` with
    marks.
    """
    finding = service.search.run(
        prepare, body.question, service.index, service.writer() if body.answer == "generate" else None,
        k=body.k, mode=body.mode, filter=body.filter, max_new_tokens=body.max_tokens,
        answered=body.answered, perhaps=body.perhaps,
        second_stage=second_stage_of(service.index) if body.second_stage else None, reader=service.short_answers,
    )  # fmt: skip
    prepared = await until_disconnect(request, finding)
    params = SamplingParams(body.max_tokens, body.temperature, seed=body.seed, stop=GREEDY.stop)
    prompt, generator = prepared.prompt, service.generator
    in_progress = AnswerInProgress(prepared)
    if isinstance(prompt, Prompt) and service.worker:
        in_progress = AnswerInProgress(prepared, TokenStream(service.worker, prompt.token_ids, params))
    elif isinstance(prompt, ChatPrompt) and isinstance(generator, RemoteGenerator):
        in_progress = AnswerInProgress(prepared, write=partial(generator.write, prompt.messages, params))
    if body.stream:
        return EventStream(in_progress.events(), in_progress.close, error_name="error")
    try:
        return await until_disconnect(request, in_progress.finish())
    finally:
        in_progress.close()


@dataclass(frozen=True)
class AnswerInProgress:
    """An answer that is being made.

    Attributes:
        prepared: the question with its passages and quotes.
        stream: the text of a local generator.
        write: a call of a remote generator.
    """

    prepared: Prepared
    stream: TokenStream | None = None
    write: Callable[[], Awaitable[Draft]] | None = None

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        prompt = self.prepared.prompt
        sources = Sources(self.prepared.hits, prompt.n_hits if prompt else 0)
        yield event(_SOURCES.dump_json(sources).decode(), "sources")
        if self.stream:
            async for piece in self.stream:
                yield event({"text": piece}, "token")
        yield event(_ANSWER.dump_json(await self._ground()).decode(), "done")

    async def finish(self) -> Answer:
        """Wait for the complete answer."""
        if self.stream:
            await self.stream.finish()
        return await self._ground()

    async def _ground(self) -> Answer:
        draft = Draft()
        if self.stream:
            draft = Draft(self.stream.request.text, self.stream.request.finish_reason)
        elif self.write:
            draft = await self.write()
        # Attribution takes milliseconds. In the search thread it could wait behind searches or be refused.
        return await asyncio.to_thread(ground, self.prepared, draft.text, draft.finish_reason, draft.failure)

    def close(self) -> None:
        """Cancel the generation if it is not done."""
        if self.stream:
            self.stream.close()


_SOURCES = TypeAdapter(Sources)
_ANSWER = TypeAdapter(Answer)
