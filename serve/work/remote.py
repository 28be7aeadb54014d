"""A remote generator: a server with OpenAI's chat endpoint, such as vLLM, Ollama or llama.cpp."""

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from gpt_core.common.errors import InputError
from gpt_core.common.openai_api import Models, checked_url, error_message, headers, without_key
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hub.locate import is_url
from serve.work.errors import STOPPING

KEY_VARIABLE = "ZHIZHI_GENERATOR_KEY"
CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 120.0  # a server such as Ollama loads its model at the first request
MAX_BYTES = 2**20  # of a response
MAX_CHARACTERS = 8_000  # of a text; attributing its sentences to eight passages takes up to 0.7 s
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Draft:
    """What a generator wrote.

    Attributes:
        text: the text; "" if nothing was written.
        finish_reason: why the generation ended; None if nothing was written.
        failure: why there is no text, in a sentence; None if there was no failure.
    """

    text: str = ""
    finish_reason: str | None = None
    failure: str | None = None


class _FailedError(Exception):
    """What went wrong, as the end of a sentence about the generator."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Reply(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


class RemoteGenerator:
    """A client of the server that writes the answers.

    Args:
        url: the base URL of its API, such as http://127.0.0.1:11434/v1.
        model: the name of its model; None: the first one that it lists.
        key: its API key, sent as `Authorization: Bearer KEY`; None: no key is sent.
        seconds: maximum time of a call.
        connect_seconds: maximum time to connect.
        max_requests: maximum number of concurrent calls.

    Raises:
        InputError: for a URL that is not one of HTTP or has more than host, port and path, for a key that cannot be
            sent in a header, or a time that is not positive.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        seconds: float = TOTAL_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
        max_requests: int = 64,
    ) -> None:
        self.url = checked_url(url, "generator", KEY_VARIABLE)
        self._headers = headers(key, KEY_VARIABLE)
        if not 0 < seconds < math.inf:
            raise InputError(f"generator_seconds is {seconds}; expected a positive number of seconds.")
        self.model, self.seconds, self.max_requests = model, seconds, max_requests
        self._key = key
        self._timeout = httpx.Timeout(None, connect=connect_seconds)  # `seconds` limits the rest
        self._tls = httpx.create_ssl_context()  # made once: reading the certificates takes milliseconds
        self._running: set[asyncio.Timeout] = set()
        self._stopped = False

    async def write(self, messages: Sequence[Mapping[str, str]], params: SamplingParams) -> Draft:
        """Let the server write the next message of a chat, with max_new_tokens, temperature and seed of `params`.

        A failure is in the draft, not raised. Cancelling the awaiting task closes the connection.
        """
        if len(self._running) >= self.max_requests:
            return self._failed(f"has {self.max_requests} requests of this server already; try again later")
        late = f"did not answer within {self.seconds:g} s"
        try:
            async with asyncio.timeout(0 if self._stopped else self.seconds) as deadline:
                self._running.add(deadline)
                try:
                    return await self._write(messages, params)
                finally:
                    self._running.discard(deadline)
        except TimeoutError:
            return Draft(failure=STOPPING) if self._stopped else self._failed(late)
        except (httpx.ConnectError, httpx.ConnectTimeout, ImportError) as error:
            # ImportError: httpx's for a proxy whose protocol needs another package
            return self._failed(f"cannot be reached ({str(error) or 'no connection in time'})")
        except httpx.HTTPError as error:
            return self._failed(f"broke off ({str(error) or type(error).__name__})")
        except _FailedError as error:
            return self._failed(str(error))

    def stop(self) -> None:
        """End all calls with a failure, and begin no more. Must be called in the event loop's thread."""
        self._stopped = True
        for deadline in self._running:
            if not deadline.expired():
                deadline.reschedule(0)

    def _failed(self, what: str) -> Draft:
        return Draft(failure=without_key(f"The generator at {self.url} {what}.", self._key))

    async def _write(self, messages: Sequence[Mapping[str, str]], params: SamplingParams) -> Draft:
        async with httpx.AsyncClient(timeout=self._timeout, verify=self._tls) as client:
            model = self.model or (await self._call(client, "GET", "/models", Models)).data[0].id
            options = {"max_tokens": params.max_new_tokens, "seed": params.seed}
            body = {
                "model": model,
                "messages": messages,
                "temperature": params.temperature,
                **{name: value for name, value in options.items() if value is not None},
            }
            choice = (await self._call(client, "POST", "/chat/completions", _Reply, body)).choices[0]
        text = _without_thoughts(choice.message.content or "")
        if not text:
            at_limit = f" in {params.max_new_tokens} tokens; allow more with max_tokens"
            raise _FailedError(f"wrote no text{at_limit if choice.finish_reason == 'length' else ''}")
        if len(text) > MAX_CHARACTERS:
            raise _FailedError(f"wrote {len(text)} characters, more than {MAX_CHARACTERS}")
        return Draft(text, choice.finish_reason)

    async def _call(
        self, client: httpx.AsyncClient, method: str, path: str, schema: type[T], body: object = None
    ) -> T:
        content = None if body is None else json.dumps(body).encode()
        data = bytearray()
        async with client.stream(method, self.url + path, headers=self._headers, content=content) as response:
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > MAX_BYTES:
                    raise _FailedError(f"answered {path} with more than {MAX_BYTES} bytes")
        if not response.is_success:
            raise _FailedError(f"answered {path} with status {response.status_code}{error_message(data)}")
        try:
            return schema.model_validate_json(data)
        except ValidationError:
            raise _FailedError(
                f"answered {path} with something else than OpenAI's API does; the URL of such a server usually "
                "ends in /v1"
            ) from None


def remote_generator(
    generator: str | None, model: str | None, seconds: float, max_requests: int = 64
) -> RemoteGenerator | None:
    """The remote generator, if `generator` is a URL; its key is the environment's ZHIZHI_GENERATOR_KEY.

    Raises:
        InputError: for a model's name without a URL, and as `RemoteGenerator`.
    """
    if generator is None or not is_url(generator):
        if model is not None:
            raise InputError(
                f"generator_model is {model}, but generator is {generator}, not a URL; name the model with "
                "--generator, or the server's URL with --generator http://HOST/v1."
            )
        return None
    key = os.environ.get(KEY_VARIABLE) or None
    return RemoteGenerator(generator, model, key, seconds=seconds, max_requests=max_requests)


def _without_thoughts(text: str) -> str:
    """A text without the thoughts that a reasoning model writes before it, if its server does not separate them."""
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()
