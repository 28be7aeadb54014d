"""Request bodies: limits on their size and shape, which are checked before the values are validated one by one."""

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 16 * 2**20
# Counting them takes 0.2 s of the event loop, validating a million 30 s (docs/log.md, 2026-11-29). Of valid requests,
# 64 prompts of 2,048 token ids have the most values.
MAX_VALUES = 150_000
MAX_KEYS = 4096  # of one object
MAX_DEPTH = 32
# Everything up to the next bracket or comma outside strings. Possessive, so that it takes linear time and no memory.
MARK = re.compile(rb'(?:[^"\[\]{},]++|"(?:[^"\\]++|\\.)*+")*+[\[\]{},]', re.DOTALL)


class BodyLimit:
    """ASGI middleware that returns 413 for bodies of more than `MAX_BODY_BYTES` without reading them completely."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes received."""
        n_bytes = 0

        async def limited() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
            return message

        await self.app(scope, limited, send)


class JsonRoute(APIRoute):
    """A route whose body is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with `parse_json` in place of Starlette's parser."""
        handle = super().get_route_handler()

        async def with_limits(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return with_limits


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        JSONDecodeError: if it is not valid JSON, or has more than `MAX_VALUES` values, more than `MAX_KEYS` keys in one
            object, a key twice, or more than `MAX_DEPTH` levels. Its `doc` is empty.
    """
    _check_shape(body)
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise _Invalid(error.msg, error.pos) from None
    except UnicodeDecodeError as error:
        raise _Invalid("not UTF-8", error.start) from None
    except ValueError as error:
        raise _Invalid(str(error).partition(";")[0]) from None  # Python's limit on the digits of an integer


class _Invalid(json.JSONDecodeError):
    """A body that is not accepted; FastAPI reports this type as a validation error."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message, "", place)


def _check_shape(body: bytes) -> None:
    n_open = body.count(b"[") + body.count(b"{")
    if n_open <= MAX_DEPTH and n_open + body.count(b",") <= MAX_VALUES:
        return  # also if all of them are outside strings
    n_values = depth = place = 0
    while match := MARK.match(body, place):
        place = match.end()
        mark = body[place - 1]
        if mark in b"]}":
            depth -= 1
            continue
        n_values += 1
        depth += mark != ord(",")
        if n_values > MAX_VALUES:
            raise _Invalid(f"more than {MAX_VALUES} values", place - 1)
        if depth > MAX_DEPTH:
            raise _Invalid(f"nested in more than {MAX_DEPTH} levels", place - 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _Invalid(f"an object has more than {MAX_KEYS} keys")
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _Invalid(f"an object has the key {twice[:100]!r} twice")
    return made


def _constant(name: str) -> None:
    raise _Invalid(f"{name} is not a JSON number")
