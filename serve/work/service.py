"""What a running server holds: the index, the generator on its worker, and the thread that encodes and searches."""

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
from serve.work.generation import Worker
from serve.work.search_thread import SearchThread
from serve.work.token_stream import TokenStream


@dataclass
class Service:
    """Everything the routes use.

    Attributes:
        index: open, and used by `search` only.
        engine: stepped by `worker` only.
        search: the one thread for `index` and its encoder.
        generator_name, embedder_name: what the models are called over HTTP.
        max_requests: how many may generate or wait to, and how many searches may; one more is refused.
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
        assert self.index.encoder is not None  # `create_app` and `load` see to it
        return self.index.encoder

    def generate(self, prompt: list[int], params: SamplingParams) -> TokenStream:
        """Have the worker continue `prompt`; see `TokenStream` for what is raised."""
        return TokenStream(self.worker, prompt, params)

    def generate_all(self, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[TokenStream]:
        """`generate` for several at once: all of them, or none."""
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
        """Raise InputError if a request asks for more texts than this server ever takes."""
        if n_texts > self.max_requests:
            raise InputError(
                f"The request asks for {n_texts} texts; this server generates up to {self.max_requests} at a time."
            )

    def check_model(self, asked: str, served: str) -> None:
        """Raise NotFoundError unless `asked` is the model that does this here."""
        if asked != served:
            raise NotFoundError(f"The model {asked!r} is not served here; {served!r} is.")

    def close(self) -> None:
        """Cancel what runs and end both threads; the index is closed by the one that used it."""
        self.worker.close()
        self.search.close(self.index.close)


async def get_service(request: Request) -> Service:
    """The running service.

    Raises:
        UnavailableError: while it loads, and after its worker has died.
    """
    service: Service | None = request.app.state.service
    if service is None:
        raise UnavailableError("The models and the index are still loading; try again soon.")
    if not service.worker.alive:
        raise UnavailableError("The generation worker is not running; restart the server.")
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
