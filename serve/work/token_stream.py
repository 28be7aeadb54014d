"""Asynchronous streams of generated text."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from gpt_core.generation.sampling import SamplingParams
from serve.work.errors import GenerationError, UnavailableError
from serve.work.generation import Worker


class TokenStream:
    """The text of one request as it is generated: `async for piece in stream`.

    Must be created in the event loop's thread. The creator must call `close`, which cancels an unfinished request.

    Raises:
        InputError, OverloadedError, UnavailableError: as `Worker.submit` raises them.
        GenerationError: while iterating, if the model failed.
        UnavailableError: while iterating, if the worker died or the server is shutting down.
    """

    def __init__(self, worker: Worker, prompt: str | list[int], params: SamplingParams) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        self._pieces, self._worker = pieces, worker
        self.request = worker.submit(prompt, params, on_text=put, on_done=lambda: put(None))

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        if self.request.error is not None:
            raise GenerationError(f"The generation failed: {self.request.error}") from self.request.error
        if not self.request.done:
            raise UnavailableError("The generation worker died during the request; restart the server.")
        if self.request.finish_reason == "cancelled":
            raise UnavailableError("The server is shutting down.")

    async def finish(self) -> str:
        """Wait for the end of the generation; returns the whole text."""
        async for _ in self:
            pass
        return self.request.text

    def close(self) -> None:
        """Cancel the request if it is not done."""
        self._worker.cancel(self.request)


async def merged(streams: Sequence[TokenStream]) -> AsyncIterator[tuple[int, str | None]]:
    """Yield (position of the stream, piece) from several streams as pieces arrive; the piece is None at a stream's end.

    Raises:
        GenerationError, UnavailableError: as `TokenStream` raises them.
    """

    async def following(pieces: AsyncIterator[str]) -> str | None:
        return await anext(pieces, None)

    iterators = [aiter(stream) for stream in streams]
    awaited = {asyncio.create_task(following(pieces)): place for place, pieces in enumerate(iterators)}
    try:
        while awaited:
            done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=awaited.__getitem__):
                place, piece = awaited.pop(task), task.result()
                yield place, piece
                if piece is not None:
                    awaited[asyncio.create_task(following(iterators[place]))] = place
    finally:
        for task in awaited:
            task.cancel()
