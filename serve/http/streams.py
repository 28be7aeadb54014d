"""Server-sent events, and tasks that are cancelled when the client disconnects."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gpt_core.common.errors import InputError
from serve.http.envelope import describe
from serve.work.errors import GenerationError, UnavailableError

T = TypeVar("T")


def event(data: str | dict[str, Any], name: str | None = None) -> str:
    """One server-sent event; a string `data` is sent as it is, a dict as JSON."""
    data = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


class EventStream(StreamingResponse):
    """A response of server-sent events. `on_close` is called at its end, also after an error or a disconnect.

    InputError, GenerationError and UnavailableError raised while streaming are sent as the last event.
    """

    def __init__(
        self, events: AsyncIterator[str], on_close: Callable[[], None], error_name: str | None = None
    ) -> None:
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }  # proxies must not buffer events
        super().__init__(self._guarded(events, error_name), headers=headers, media_type="text/event-stream")
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; Starlette cancels this call when the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()

    @staticmethod
    async def _guarded(events: AsyncIterator[str], error_name: str | None) -> AsyncIterator[str]:
        try:
            async for text in events:
                yield text
        except (InputError, GenerationError, UnavailableError) as error:
            yield event(describe(error), error_name)


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it and raise ClientDisconnect if the client disconnects first.

    Starlette detects disconnects only while it streams a response.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        # Awaited also when cancelled: asyncio logs exceptions that were never retrieved.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
