"""The text of one generation request, piece by piece, for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from gpt_core.generation.sampling import SamplingParams
from serve.work.errors import GenerationError, UnavailableError
from serve.work.generation import Worker


class TokenStream:
    """The text of one request as it is generated, for an event loop: `async for piece in stream`.

    Must be made on the event loop. Whoever makes it calls `close`, which cancels what is still running.

    Raises:
        InputError, OverloadedError, UnavailableError: as `Worker.submit` does.
        GenerationError: while iterating, if the model failed.
        UnavailableError: while iterating, if the worker ended before the text did.
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
            raise UnavailableError("The generation worker died while it wrote; restart the server.")
        if self.request.finish_reason == "cancelled":
            raise UnavailableError("The server is shutting down.")

    async def finish(self) -> str:
        """Wait for the end; the whole text."""
        async for _ in self:
            pass
        return self.request.text

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._worker.cancel(self.request)


async def merged(streams: Sequence[TokenStream]) -> AsyncIterator[tuple[int, str | None]]:
    """The pieces of several streams as they come, each with its stream's place; None at the end of each.

    Raises:
        GenerationError, UnavailableError: as a `TokenStream` does.
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
