"""The state of a running server: the index, the generation worker, and the search thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from embed import Encoder
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from index import Index
from serve.work.errors import NotFoundError, UnavailableError
from serve.work.threads import SearchThread, TokenStream, Worker


@dataclass
class Service:
    """The objects that the routes use.

    Attributes:
        index: the open index, used in the thread `search` only.
        engine: the generator, stepped by `worker` only.
        search: the only thread that uses `index` and its encoder.
        generator_name, embedder_name: names of the models in the HTTP API.
        max_requests: maximum number of running and waiting generations, and also of searches; more are refused.
        started: start time, in seconds since the epoch.
        worker: the generation thread.
    """

    index: Index
    engine: Engine
    search: SearchThread
    generator_name: str
    embedder_name: str
    max_requests: int = 64
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.worker = Worker(self.engine, self.max_requests)
        self.worker.start()

    @property
    def encoder(self) -> Encoder:
        """The index's embedder."""
        assert self.index.encoder is not None  # checked by `create_app` and `load`
        return self.index.encoder

    def generate(self, prompt: list[int], params: SamplingParams) -> TokenStream:
        """Queue a generation; raises as `TokenStream` does."""
        return TokenStream(self.worker, prompt, params)

    def generate_all(self, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[TokenStream]:
        """Queue several generations; if one is refused, all are cancelled."""
        streams: list[TokenStream] = []
        try:
            for prompt, params in jobs:
                streams.append(self.generate(prompt, params))
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams

    def check_number(self, n_texts: int) -> None:
        """Raise InputError if a request asks for more texts than `max_requests`."""
        if n_texts > self.max_requests:
            raise InputError(
                f"The request asks for {n_texts} texts; this server generates up to {self.max_requests} at a time."
            )

    def check_model(self, asked: str, served: str) -> None:
        """Raise NotFoundError unless the requested model is the one served at this endpoint."""
        if asked != served:
            raise NotFoundError(f"The model {asked!r} is not served here; use {served!r}.")

    def close(self) -> None:
        """Cancel all generations and end both threads; the search thread closes the index."""
        self.worker.close()
        self.search.close(self.index.close)


async def get_service(request: Request) -> Service:
    """The running service.

    Raises:
        UnavailableError: while the models are loading, and after the worker has died.
    """
    service: Service | None = request.app.state.service
    if service is None:
        raise UnavailableError("The models and the index are still loading; try again soon.")
    if not service.worker.alive:
        raise UnavailableError("The generation worker is not running; restart the server.")
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
