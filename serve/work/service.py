"""The state of a running server: the index, the generation worker, and the search thread."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Annotated

from fastapi import Depends, Request

from embed import Encoder
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Index
from serve.work.call_thread import CallThread
from serve.work.errors import NotFoundError, UnavailableError
from serve.work.threads import TokenStream, Worker

CLOSE_SECONDS = 1.0  # time for a running call to end when the server stops
CHARACTERS_PER_CALL = 100_000  # between two calls the reader can tokenise other requests' texts
MAX_CHARACTERS = 2_000_000  # of one request; tokenising them takes seconds


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
        encoder: the index's embedder.
        reader: the thread that tokenises texts.
        worker: the generation thread.
    """

    index: Index
    engine: Engine
    search: CallThread
    generator_name: str
    embedder_name: str
    max_requests: int = 64
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.encoder = encoder_of(self.index)
        self.reader = CallThread("reader", self.max_requests)
        self.worker = Worker(self.engine, self.max_requests)
        self.worker.start()

    async def tokenize(self, tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, computed in `reader`.

        Raises:
            InputError: for more than `MAX_CHARACTERS`.
            OverloadedError, UnavailableError: as `CallThread.run_each`.
        """
        n_characters = sum(map(len, texts))
        if n_characters > MAX_CHARACTERS:
            raise InputError(
                f"The request has {n_characters} characters in {len(texts)} texts; send at most {MAX_CHARACTERS} at "
                "a time."
            )
        encode = partial(tokenizer.encode_batch, add_special_tokens=True)
        rows = await self.reader.run_each(partial(encode, group) for group in _groups(texts))
        return list(chain.from_iterable(rows))

    def generate_all(self, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[TokenStream]:
        """Queue several generations; if one is refused, all are cancelled. Raises as `TokenStream` does."""
        streams: list[TokenStream] = []
        try:
            for prompt, params in jobs:
                streams.append(TokenStream(self.worker, prompt, params))
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

    def cancel_all(self) -> None:
        """Cancel all generations, and drop all calls that wait for a thread."""
        self.worker.cancel_all()
        self.reader.drop_waiting()
        self.search.drop_waiting()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Cancel all generations and end the threads; the search thread closes the index.

        A call that runs for more than `seconds` goes on, and the index is closed after it.
        """
        self.worker.close()
        self.reader.close(lambda: None, seconds)
        self.search.close(self.index.close, seconds)


async def get_service(request: Request) -> Service:
    """The running service.

    Raises:
        UnavailableError: while the models are loading.
    """
    service: Service | None = request.app.state.service
    if service is None:
        raise UnavailableError("The models and the index are still loading; try again soon.")
    return service


def encoder_of(index: Index) -> Encoder:
    """The index's embedder; InputError if it has none."""
    if index.encoder is None:
        raise InputError(
            f"{index.folder} was built from precomputed vectors; give an index with an embedder."
        )
    return index.encoder


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of up to `CHARACTERS_PER_CALL` characters, or one longer text."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > CHARACTERS_PER_CALL:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    yield group


ServiceDep = Annotated[Service, Depends(get_service)]
