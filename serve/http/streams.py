"""Server-sent events, and work that ends when the client disconnects."""

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
    """One server-sent event; `data` is JSON already if it is a string."""
    data = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


class EventStream(StreamingResponse):
    """A response of server-sent events that calls `on_close` when it has ended, however it ended.

    What the rooms raise after the stream has begun becomes its last event.
    """

    def __init__(
        self, events: AsyncIterator[str], on_close: Callable[[], None], error_name: str | None = None
    ) -> None:
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }  # proxies must not hold events back
        super().__init__(self._guarded(events, error_name), headers=headers, media_type="text/event-stream")
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; Starlette cancels this when the client goes away."""
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
    """Await `work`, but cancel it and raise ClientDisconnect if the client goes away first.

    A web framework notices that by itself only while it streams a response.
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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
