"""What the routes share: errors in OpenAI's envelope, event streams, and clients that go away."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_core.common.errors import InputError
from serve.work.errors import GenerationError, NotFoundError, OverloadedError, UnavailableError

T = TypeVar("T")
RETRY_AFTER = {"Retry-After": "2"}  # seconds
MAX_BODY = 16 * 2**20  # bytes: more text than one request may reasonably hold
# OpenAI answers 400 where FastAPI and we answer 422.
OPENAI_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")


def envelope(message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def describe(error: Exception) -> dict[str, Any]:
    """The envelope for what the rooms raise."""
    message = str(error)
    match error:
        case InputError():
            return envelope(message, "invalid_request_error", code="invalid_input")
        case NotFoundError():
            return envelope(message, "invalid_request_error", param="model", code="model_not_found")
        case OverloadedError():
            return envelope(message, "server_error", code="overloaded")
        case UnavailableError():
            return envelope(message, "server_error", code="unavailable")
        case GenerationError():
            return envelope(message, "server_error", code="generation_failed")
    return envelope("Internal error; the server's log says more.", "server_error", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Map every exception to a status and the envelope, in this one place."""

    def answer(
        status: Callable[[Request], int], headers: dict[str, str] | None = None
    ) -> Callable[..., Response]:
        return lambda request, error: JSONResponse(describe(error), status(request), headers)

    def invalid(request: Request) -> int:
        return 400 if request.url.path in OPENAI_PATHS else 422

    def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(_describe_invalid(error), invalid(request))

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path}"
        body = envelope(message, "invalid_request_error", code=str(error.status_code))
        return JSONResponse(body, error.status_code, error.headers)

    app.exception_handler(InputError)(answer(invalid))
    app.exception_handler(RequestValidationError)(malformed)
    app.exception_handler(HTTPException)(http)
    app.exception_handler(NotFoundError)(answer(lambda _: 404))
    app.exception_handler(UnavailableError)(answer(lambda _: 503, RETRY_AFTER))
    app.exception_handler(ClientDisconnect)(
        lambda request, error: Response(status_code=499)
    )  # nobody reads it
    app.exception_handler(Exception)(answer(lambda _: 500))


def _describe_invalid(error: RequestValidationError) -> dict[str, Any]:
    """The envelope for a body that is no JSON, or of another form than the endpoint's."""
    errors = error.errors()
    # Where several forms are allowed, what is wrong within one says more than that it was not another.
    first = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    kind, message, path = first["type"], first["msg"], list(first["loc"][1:])  # without "body"
    if kind == "json_invalid":
        message, path = f"The body is not valid JSON at character {path[0]}.", []
    # pydantic puts the name of a form, such as list[str], into the path: the field ends before it
    form = (i for i, part in enumerate(path) if not (isinstance(part, int) or part.isidentifier()))
    if kind != "extra_forbidden":  # an unknown key may look like anything
        path = path[: next(form, None)]
    field = ".".join(map(str, path))
    return envelope(f"{field}: {message}" if field else message, "invalid_request_error", field or None, kind)


class BodyLimit:
    """ASGI middleware that answers 413 to bodies of more than `MAX_BODY` bytes before they fill the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is received."""
        n_bytes = 0

        async def limited() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY:
                raise HTTPException(413, f"The body is longer than {MAX_BODY} bytes")
            return message

        await self.app(scope, limited, send)


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
