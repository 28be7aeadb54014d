"""Limits of a request's size."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 16 * 2**20  # bytes: more text than one request may reasonably hold


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
