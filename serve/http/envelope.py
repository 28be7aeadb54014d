"""Exception handlers that return errors in OpenAI's envelope."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gpt_core.common.errors import InputError, ServerError
from serve.work.errors import GenerationError, NotFoundError, OverloadedError, UnavailableError

LOG = logging.getLogger(__name__)
RETRY_AFTER = {"Retry-After": "2"}  # seconds
# For invalid input OpenAI returns 400; FastAPI and the other endpoints return 422.
OPENAI_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")


MAX_MESSAGE = 2000  # characters; a message may quote the request


def envelope(message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object; a message of more than `MAX_MESSAGE` characters is shortened in the middle."""
    if len(message) > MAX_MESSAGE:
        half = MAX_MESSAGE // 2
        message = f"{message[:half]} … {message[-half:]}"
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def describe(error: Exception) -> dict[str, Any]:
    """The envelope of an exception raised by any of the packages."""
    message = str(error)
    match error:
        case ServerError():
            return envelope(message, "server_error", code="bad_gateway")
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
    return envelope("Internal error; see the server's log.", "server_error", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Map every exception to a status code and the envelope."""

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

    def failed(request: Request, error: Exception) -> Response:
        # Handled here, since for an exception that no handler takes the server closes the connection.
        LOG.error("A generation failed", exc_info=error)
        return JSONResponse(describe(error), 500)

    app.exception_handler(InputError)(answer(invalid))
    app.exception_handler(ServerError)(answer(lambda _: 502))
    app.exception_handler(RequestValidationError)(malformed)
    app.exception_handler(HTTPException)(http)
    app.exception_handler(NotFoundError)(answer(lambda _: 404))
    app.exception_handler(UnavailableError)(answer(lambda _: 503, RETRY_AFTER))
    app.exception_handler(ClientDisconnect)(
        lambda request, error: Response(status_code=499)
    )  # the client is gone and does not read it
    app.exception_handler(GenerationError)(failed)
    app.exception_handler(Exception)(answer(lambda _: 500))


def _describe_invalid(error: RequestValidationError) -> dict[str, Any]:
    """The envelope for a body that is not valid JSON or does not match the endpoint's schema."""
    errors = error.errors()
    # If several types are allowed, an error inside one of them is more helpful than a type mismatch with another.
    first = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    kind, message, path = first["type"], first["msg"], list(first["loc"][1:])  # without "body"
    if kind == "json_invalid":
        place = f" at character {path[0]}" if path[0] else ""
        message, path = f"The body is not accepted as JSON{place}: {first['ctx']['error']}.", []
    # pydantic appends the name of a union member, such as list[str], to the path; the field's path ends before it
    form = (i for i, part in enumerate(path) if not (isinstance(part, int) or part.isidentifier()))
    if kind != "extra_forbidden":  # an unknown key need not be an identifier
        path = path[: next(form, None)]
    field = ".".join(map(str, path))
    return envelope(
        f"{field}: {message}" if field else message,
        "invalid_request_error",
        field[:MAX_MESSAGE] or None,
        kind,
    )
