"""The FastAPI application: routes, error handlers, health checks, the web page."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

from gpt_core.generation.engine import Engine
from index import Index
from serve.answers.reader import Reader
from serve.api import answer, completions, embeddings
from serve.api.schemas import ErrorResponse
from serve.http.access import LOOPBACK_HOSTS, AccessCheck, check_hosts, hash_key
from serve.http.body import BodyLimit
from serve.http.envelope import add_error_handlers
from serve.work.call_thread import CallThread
from serve.work.loading import served_name
from serve.work.remote import RemoteGenerator
from serve.work.service import Service, ServiceDep, encoder_of

STATIC = Path(__file__).parent / "static"
# The page shows untrusted text from documents and models, so browsers may run and load only the server's own files.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    index: Index,
    generator: Engine | RemoteGenerator | None,
    *,
    generator_name: str = "generator",
    embedder_name: str | None = None,
    max_requests: int = 64,
    reader: Reader | None = None,
    api_key: str | None = None,
    allowed_hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Create the HTTP service for an open index and a generator. It owns them, and closes the index on shutdown.

    Args:
        index: an index with an encoder.
        generator: a local generator, which no other thread may step, or a remote one; None: answers are quotes only.
        generator_name: name of a local generator in /v1/completions and /v1/chat/completions.
        embedder_name: name of the embedder in /v1/embeddings; None for the encoder's name, or its folder's.
        max_requests: maximum number of running and waiting generations, and also of searches; more get status 503.
        reader: finds the short answer inside the first quote; None: there is none.
        api_key, allowed_hosts: as for `create_loading_app`.

    Raises:
        InputError: if the index has no embedder, or it cannot be loaded; as `create_loading_app`.
    """
    embedder_name = embedder_name or served_name(encoder_of(index).name or "embedder")
    app = create_loading_app(api_key, allowed_hosts)
    search = CallThread("search", max_requests)
    name = generator_name if isinstance(generator, Engine) else None
    app.state.service = Service(index, generator, search, name, embedder_name, max_requests, reader)
    return app


def create_loading_app(api_key: str | None = None, allowed_hosts: Sequence[str] | None = None) -> FastAPI:
    """The service before its models are loaded: only the page is available until `app.state.service` is set.

    Args:
        api_key: the key that requests to the API must send as `Authorization: Bearer KEY`; None: no key is needed.
        allowed_hosts: host names in the Host header that the server answers to, with any port; "*" for all. None:
            localhost, 127.0.0.1 and [::1].

    Raises:
        InputError: for a key that cannot be sent in a header, or a host name with scheme or port.
    """
    hosts = LOOPBACK_HOSTS if allowed_hosts is None else check_hosts(allowed_hosts)
    key_sha256 = None if api_key is None else hash_key(api_key)
    app = FastAPI(
        title="zhizhi",
        summary="Search, cited answers, and OpenAI's embeddings, completions and chat.",
        version=_version(),
        docs_url=None,  # FastAPI's own pages load their scripts from a CDN
        redoc_url=None,
        lifespan=_close_at_end,
        responses={
            401: {
                "model": ErrorResponse,
                "description": "The server has an API key, and the request has not",
            },
            403: {"model": ErrorResponse, "description": "The Host header is not one of the allowed hosts"},
            413: {"model": ErrorResponse, "description": "The body is too large"},
            422: {"model": ErrorResponse, "description": "Invalid input (400 on OpenAI's endpoints)"},
            500: {"model": ErrorResponse, "description": "The model failed"},
            503: {"model": ErrorResponse, "description": "Loading, overloaded, or the generator has failed"},
        },
    )
    app.state.service = None
    add_error_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(AccessCheck, hosts=hosts, key_sha256=key_sha256)
    app.include_router(answer.router)
    app.include_router(embeddings.router)
    app.include_router(completions.router)

    @app.get("/livez", tags=["health"])
    async def livez() -> dict[str, str]:
        """Liveness: the process responds."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"])
    async def readyz(service: ServiceDep) -> dict[str, str]:
        """Readiness: models and index are loaded and a local generator runs; otherwise 503."""
        if service.worker:
            service.worker.check_alive()
        return {"status": "ready"}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers=PAGE_HEADERS)

    app.mount("/static", _Static(directory=STATIC))
    return app


class _Static(StaticFiles):
    """Static files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Starlette's response with `PAGE_HEADERS`."""
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


@asynccontextmanager
async def _close_at_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    if app.state.service is not None:
        await asyncio.to_thread(app.state.service.close)


def _version() -> str:
    try:
        return version("zhizhi")
    except PackageNotFoundError:  # not installed, run from a checkout
        return "0"
