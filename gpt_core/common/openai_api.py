"""What the clients of servers with OpenAI's API share: the server's URL, the key that is sent, its error messages."""

import re
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, ValidationError

from gpt_core.common.errors import InputError

MAX_MESSAGE = 200  # characters that are quoted of a server's own error message


class Named(BaseModel):
    """A model in a server's list."""

    id: str


class Models(BaseModel):
    """The response of /models."""

    data: Annotated[list[Named], Field(min_length=1)]


class _ErrorBody(BaseModel):
    message: str


class _Refusal(BaseModel):
    error: _ErrorBody


def checked_url(url: str, what: str, key_variable: str) -> str:
    """The base URL of a server's API, without a slash at its end.

    Args:
        url: the URL as the user gave it.
        what: the option it was given with, for messages.
        key_variable: the environment variable of the server's key.

    Raises:
        InputError: for a URL that is not one of HTTP, or has more than host, port and path.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.userinfo:
        raise InputError(
            f"The {what}'s URL has a user name or a password; give a key in the environment's {key_variable}."
        )
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InputError(f"{what} is {url}; expected a URL such as http://127.0.0.1:11434/v1.")
    return str(parsed).rstrip("/")


def headers(key: str | None, key_variable: str) -> dict[str, str]:
    """The headers of a request with a JSON body; `key` is sent as `Authorization: Bearer KEY`.

    Raises:
        InputError: for a key that cannot be sent in a header.
    """
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise InputError(
            f"{key_variable} has spaces or letters beyond ASCII, which cannot be sent; correct it."
        )
    # Not compressed, since a small compressed response may be a large one.
    common = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
    }
    return common | ({"Authorization": f"Bearer {key}"} if key else {})


def error_message(data: bytes | bytearray) -> str:
    """The message of an error response after a colon; "" if it is not in OpenAI's envelope."""
    try:
        return f": {_Refusal.model_validate_json(data).error.message[:MAX_MESSAGE].rstrip('. ')}"
    except ValidationError:
        return ""


def without_key(sentence: str, key: str | None) -> str:
    """A sentence in one line without the key, which some servers repeat in their messages."""
    return " ".join((sentence.replace(key, "…") if key else sentence).split())
