"""The state of a running server: the index, the generation worker, and the search thread."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from embed.encoding.embedder import Embedder
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hub.locate import DEFAULT_GENERATOR
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Index
from serve.work.call_thread import CallThread
from serve.work.errors import NotFoundError, UnavailableError
from serve.work.remote import RemoteGenerator
from serve.work.threads import TokenStream, Worker

if TYPE_CHECKING:
    from serve.answers.reader import Reader

CLOSE_SECONDS = 1.0  # time for a running call to end when the server stops
CHARACTERS_PER_CALL = 100_000  # between two calls the reader can tokenise other requests' texts
MAX_CHARACTERS = 2_000_000  # of one request; tokenising them takes seconds
NO_GENERATOR = (
    f"This server has no generator, since none was named and {DEFAULT_GENERATOR} is not in the model cache; fetch it "
    f"with python scripts/fetch_model.py {DEFAULT_GENERATOR} and start the server again."
)
RETRIEVAL_MODEL = "zhizhi-rag"  # the name under which chats are answered from the index


@dataclass
class Service:
    """The objects that the routes use.

    Attributes:
        index: the open index, used in the thread `search` only.
        generator: a local one, stepped by `worker` only, or a remote one; None: answers are quotes only.
        search: the only thread that uses `index` and its encoder.
        generator_name, embedder_name: names of the models in the HTTP API; only a local generator has one there.
        max_requests: maximum number of running and waiting generations, and also of searches; more are refused.
        short_answers: finds the short answer inside a quote, in the thread `search`; or None.
        started: start time, in seconds since the epoch.
        encoder: the index's embedder.
        reader: the thread that tokenises texts.
        worker: the generation thread of a local generator, or None.
    """

    index: Index
    generator: Engine | RemoteGenerator | None
    search: CallThread
    generator_name: str | None
    embedder_name: str
    max_requests: int = 64
    short_answers: "Reader | None" = None
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.encoder = encoder_of(self.index)
        self.reader = CallThread("reader", self.max_requests)
        self.worker: Worker | None = None
        if isinstance(self.generator, Engine):
            self.worker = Worker(self.generator, self.max_requests)
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

    def generate_all(
        self, worker: Worker, jobs: Sequence[tuple[list[int], SamplingParams]]
    ) -> list[TokenStream]:
        """Queue several generations; if one is refused, all are cancelled. Raises as `TokenStream` does."""
        streams: list[TokenStream] = []
        try:
            for prompt, params in jobs:
                streams.append(TokenStream(worker, prompt, params))
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

    @property
    def model_names(self) -> list[str]:
        """The names of the models in the HTTP API, each once."""
        names = dict.fromkeys([self.generator_name, self.embedder_name, RETRIEVAL_MODEL])
        return [name for name in names if name is not None]

    def check_model(self, asked: str, served: str | None) -> None:
        """Raise NotFoundError unless the requested model is the one served at this endpoint."""
        if asked != served:
            raise NotFoundError(f"The model {asked!r} is not served here; use {served!r}.")

    def writer(self) -> Engine | RemoteGenerator:
        """The generator; InputError if there is none."""
        if self.generator is None:
            raise InputError(f'{NO_GENERATOR} Ask with "answer": "quote".')
        return self.generator

    def local_worker(self, asked: str) -> Worker:
        """The thread of the local generator; NotFoundError if there is none, or the requested model is another one."""
        if self.generator is None:
            raise NotFoundError(f"{NO_GENERATOR} Chat with the model {RETRIEVAL_MODEL!r}.")
        if self.worker is None:
            raise NotFoundError(
                "This server has no generator of its own, since it was started with the URL of another server, which "
                f"writes the answers of /v1/answer; ask that server, or chat with the model {RETRIEVAL_MODEL!r}."
            )
        self.check_model(asked, self.generator_name)
        return self.worker

    def cancel_all(self) -> None:
        """Cancel all generations, and drop all calls that wait for a thread."""
        if self.worker:
            self.worker.cancel_all()
        if isinstance(self.generator, RemoteGenerator):
            self.generator.stop()
        self.reader.drop_waiting()
        self.search.drop_waiting()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Cancel all generations and end the threads; the search thread closes the index.

        A call that runs for more than `seconds` goes on, and the index is closed after it.
        """
        if self.worker:
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


def encoder_of(index: Index) -> Embedder:
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
