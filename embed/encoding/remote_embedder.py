"""An embedder behind a URL: a server with OpenAI's /v1/embeddings, such as vLLM, Ollama or llama.cpp."""

import os
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import Embedder, PromptName
from embed.encoding.fingerprint import with_probes
from embed.network.config import EmbedderConfig
from gpt_core.common.errors import InputError, ServerError
from gpt_core.common.openai_api import Models, checked_url, error_message, headers, without_key
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from gpt_core.tokenizer.tokenizer import Tokenizer

KEY_VARIABLE = "ZHIZHI_EMBEDDER_KEY"
TEXTS_PER_REQUEST = 32  # the most that text-embeddings-inference accepts by default
# Of DEFAULT_EMBEDDER's tokenizer. A server with a shorter context refuses or truncates by itself.
MAX_TOKENS = 8192
SECONDS = 120  # of a request; some servers load the model at the first one
TIMEOUT = httpx.Timeout(SECONDS, connect=5)  # each part of a response may take so long
MAX_BYTES = 2**26  # of a response
PASSING = {408, 425, 429, 500, 502, 503, 504}  # status codes after which a request is sent again
WAITS = (1, 2, 4, 8)  # seconds before it is
WAITS_FOR_QUERY = (1,)
MAX_WAIT = 60  # seconds that a server can ask for by Retry-After
# What these texts' vectors are tells one model from another that is served under the same name.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "知之为知之，不知为不知",
    "for i in range(10): print(i)",
)
T = TypeVar("T", bound=BaseModel)


class _Item(BaseModel):
    index: int
    embedding: Annotated[list[float], Field(min_length=1)]


class _Reply(BaseModel):
    data: list[_Item]


class _PassingError(ServerError):
    """A failure after which the same request may succeed; `seconds`: what the server asks to wait for."""

    seconds = 0


class RemoteEmbedder(Embedder):
    """A client of a server that computes vectors. Its tokenizer is `DEFAULT_EMBEDDER`'s, for the length of passages.

    Requests that fail for a passing reason are sent again a few times. Vectors are normalised.

    Args:
        url: the base URL of the server's API, such as http://127.0.0.1:8080/v1, with `#MODEL` at its end if the server
            has several models.

    Raises:
        InputError: for a URL that is not one of HTTP, a key (`KEY_VARIABLE`) that cannot be sent in a header, or a
            server that cannot be reached or does not answer as OpenAI's does.
    """

    def __init__(self, url: str) -> None:
        base, _, model = url.partition("#")
        self.url = checked_url(base, "embedder", KEY_VARIABLE)
        self._key = os.environ.get(KEY_VARIABLE) or None
        self._client = httpx.Client(headers=headers(self._key, KEY_VARIABLE), timeout=TIMEOUT)
        weakref.finalize(self, self._client.close)
        self.model = model or self._only_model()
        self.name, self.folder = f"{self.url}#{self.model}", None
        self.config, self.max_tokens, self.n_truncated = EmbedderConfig(), MAX_TOKENS, 0
        self.tokenizer = Tokenizer.from_pretrained(DEFAULT_EMBEDDER)
        self._dimension: int | None = None
        probes = self._request(PROBES, ())  # no second try: a wrong URL is said at once
        self._dimension = probes.shape[1]
        self._fingerprint = with_probes([self.url, self.model, self._dimension], probes)

    @property
    def dimension(self) -> int:
        """Number of dimensions of a vector."""
        return self._dimension or 0

    @property
    def fingerprint(self) -> str:
        """URL, model and dimension as a hash, and the first values of the probes' vectors."""
        return self._fingerprint

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        *,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """Unit vectors (n, dimension) float32 of texts; the vector of a text of white space is zero.

        Args:
            texts: one text or several.
            prompt_name, prompt: what to prepend; such servers have no prompts of their own, so both names mean none.
            truncate_dim: keep the first n dimensions and normalise them; None: all.

        Raises:
            InputError: if the server cannot be reached, refuses, or answers with vectors of another dimension.
        """
        prompted = self._prompted(texts, prompt_name, prompt)
        vectors = np.zeros((len(prompted), self.dimension), dtype=np.float32)
        real = [i for i, text in enumerate(prompted) if text.strip()]  # OpenAI's API refuses empty texts
        waits = WAITS_FOR_QUERY if prompt_name == "query" else WAITS
        for start in range(0, len(real), TEXTS_PER_REQUEST):
            places = real[start : start + TEXTS_PER_REQUEST]
            vectors[places] = self._request([prompted[i] for i in places], waits)
        return unit_length(vectors[:, :truncate_dim])

    def _request(self, texts: Sequence[str], waits: Sequence[float]) -> Vectors:
        """Unit vectors (n, d) of up to `TEXTS_PER_REQUEST` texts."""
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        reply = self._call("POST", "/embeddings", _Reply, waits, body)
        items = sorted(reply.data, key=lambda item: item.index)
        if [item.index for item in items] != list(range(len(texts))):
            raise self._failed(f"answered {len(texts)} texts with {len(items)} vectors")
        lengths = {len(item.embedding) for item in items}
        expected = {self._dimension or len(items[0].embedding)}
        if lengths != expected:
            found = ", ".join(map(str, sorted(lengths - expected)))
            raise self._failed(
                f"answered with vectors of {found} dimensions instead of {min(expected)}; another model is served "
                "now under this name"
            )
        vectors = np.array([item.embedding for item in items], dtype=np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise self._failed("answered with vectors that are zero, or have NaN or infinite values")
        return (vectors / norms).astype(np.float32)

    def _only_model(self) -> str:
        names = [model.id for model in self._call("GET", "/models", Models, ()).data]
        if len(names) > 1:
            raise InputError(
                f"The server at {self.url} has the models {', '.join(names)}; name one of them: {self.url}#{names[0]}"
            )
        return names[0]

    def _call(self, method: str, path: str, schema: type[T], waits: Sequence[float], body: Any = None) -> T:
        """The response to a request, which is sent again after each of `waits` (seconds) if the failure may pass."""
        for wait in waits:
            try:
                return self._once(method, path, schema, body)
            except _PassingError as failure:
                seconds = min(max(wait, failure.seconds), MAX_WAIT)
                print(f"{failure} Trying again in {seconds:g} s.", file=sys.stderr)
                time.sleep(seconds)
        return self._once(method, path, schema, body)

    def _once(self, method: str, path: str, schema: type[T], body: Any) -> T:
        try:
            end = time.monotonic() + SECONDS
            with self._client.stream(method, self.url + path, json=body) as response:
                data = bytearray()
                for piece in response.iter_raw():
                    data += piece
                    if time.monotonic() > end:
                        raise self._failed(f"did not answer {path} within {SECONDS} s", _PassingError)
                    if len(data) > MAX_BYTES:
                        raise self._failed(f"answered {path} with more than {MAX_BYTES} bytes")
        except (httpx.HTTPError, ImportError) as error:  # ImportError: for a proxy that needs another package
            reason = str(error) or type(error).__name__
            raise self._failed(f"cannot be reached ({reason})", _PassingError) from None
        if not response.is_success:
            failure = self._failed(
                f"answered {path} with status {response.status_code}{error_message(data)}",
                _PassingError if response.status_code in PASSING else ServerError,
            )
            after = response.headers.get("Retry-After", "")
            if isinstance(failure, _PassingError) and after.isdecimal():
                failure.seconds = int(after)
            raise failure
        try:
            return schema.model_validate_json(data)
        except ValidationError:
            raise self._failed(
                f"answered {path} with something else than OpenAI's API does; the URL of such a server usually ends "
                "in /v1"
            ) from None

    def _failed(self, what: str, kind: type[ServerError] = ServerError) -> ServerError:
        return kind(without_key(f"The embedder at {self.url} {what}.", self._key))
