"""Our own endpoints: search and cited answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import TypeAdapter

from gpt_core.generation.sampling import SamplingParams
from index import Hit
from serve.answers import answer as answering
from serve.answers.answer import Answer
from serve.answers.prompt import Prompt
from serve.api.schemas import AnswerRequest, SearchRequest
from serve.http.streams import EventStream, event, until_disconnect
from serve.work.service import Service, ServiceDep
from serve.work.token_stream import TokenStream

router = APIRouter(prefix="/v1", tags=["search and answers"])


@dataclass(frozen=True)
class SearchResult:
    """Best first.

    `exact`: no other passage could have been among them. A hybrid search ranks exactly, but only the best of each leg.
    """

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True)
class Sources:
    """What an answer will be written from: the first `n_prompt_hits` of `hits`."""

    hits: list[Hit]
    n_prompt_hits: int


@router.post("/search")
async def search(body: SearchRequest, request: Request, service: ServiceDep) -> SearchResult:
    """The k passages nearest to a query, best first.

    `filter` maps fields of the documents' metadata, or `doc_id`, to the value that they must have, to a list of values,
    or to bounds such as `{"gte": 2000, "lte": 2010}`.
    """
    options = body.model_dump(exclude={"query"})
    finding = service.search.run(answering.retrieve, body.query, service.index, **options)
    return SearchResult(await until_disconnect(request, finding), exact=body.mode != "hybrid")


@router.post("/answer", response_model=Answer)
async def answer(body: AnswerRequest, request: Request, service: ServiceDep) -> Answer | Response:
    """An answer with a citation for each supported sentence, or that the corpus does not say.

    With `"stream": true` the response is server-sent events: `sources` (`hits`, `n_prompt_hits`), `token` (`text`, a
    piece of the draft) again and again, then `done` (what the plain response holds), or `error`.
    """
    params = SamplingParams(
        max_new_tokens=body.max_tokens,
        temperature=body.temperature,
        seed=body.seed,
        stop=answering.GREEDY.stop,
    )
    hits, prompt = await until_disconnect(request, service.search.run(_prepare, body, service))
    stream = service.generate(prompt.token_ids, params) if prompt else None
    writing = Writing(body.question, hits, prompt, stream)
    if body.stream:
        return EventStream(writing.events(), writing.close, error_name="error")
    try:
        return await until_disconnect(request, writing.finish())
    finally:
        writing.close()


def _prepare(body: AnswerRequest, service: Service) -> tuple[list[Hit], Prompt | None]:
    hits = answering.retrieve(body.question, service.index, k=body.k, mode=body.mode, filter=body.filter)
    if not hits:
        return [], None
    engine = service.engine
    return hits, answering.build_prompt(
        body.question, hits, engine.tokenizer, engine.context, body.max_tokens
    )


@dataclass(frozen=True)
class Writing:
    """An answer on its way; without `hits` there is no `prompt` and no `stream`."""

    question: str
    hits: list[Hit]
    prompt: Prompt | None
    stream: TokenStream | None

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        sources = Sources(self.hits, self.prompt.n_hits if self.prompt else 0)
        yield event(_SOURCES.dump_json(sources).decode(), "sources")
        if self.stream:
            async for piece in self.stream:
                yield event({"text": piece}, "token")
        yield event(_ANSWER.dump_json(await self._ground()).decode(), "done")

    async def finish(self) -> Answer:
        """The answer once it is whole."""
        if self.stream:
            await self.stream.finish()
        return await self._ground()

    async def _ground(self) -> Answer:
        draft = self.stream.request.text if self.stream else ""
        reason = self.stream.request.finish_reason if self.stream else None
        # Milliseconds, so not by the search thread: a finished answer must not wait behind searches, nor be refused.
        return await asyncio.to_thread(answering.ground, self.question, draft, self.hits, self.prompt, reason)

    def close(self) -> None:
        """Stop writing."""
        if self.stream:
            self.stream.close()


_SOURCES = TypeAdapter(Sources)
_ANSWER = TypeAdapter(Answer)
