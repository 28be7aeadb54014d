"""The door's function: bind, serve, load the models meanwhile, stop cleanly."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from gpt_core.common.errors import InputError
from gpt_core.generation.fast_model import InferenceDtype
from gpt_core.hub.locate import DEFAULT_MODEL
from serve.app import create_loading_app
from serve.work.loading import CONTEXT, load
from serve.work.search_thread import SearchThread
from serve.work.service import Service

GRACE = 3  # seconds that running answers are given when the server is told to stop


def run_server(
    *,
    index: str,
    embedder: str | None = None,
    generator: str = DEFAULT_MODEL,
    dtype: InferenceDtype = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    max_running: int = 4,
    max_requests: int = 64,
    context: int = CONTEXT,
) -> None:
    """Serve search, cited answers, OpenAI's embeddings, completions and chat, and a web page over HTTP.

    There is no authentication: whoever reaches the port can search and generate.

    Args:
        index: the index's folder.
        embedder: model folder or known name; the one that the index was built with by default.
        generator: model folder or known name.
        dtype: number format of the generator; auto is bfloat16 where that is faster, which is measured, else float32.
        host: address to listen on; 0.0.0.0 for all.
        port: 0 for any free one.
        max_running: answers that are generated at once.
        max_requests: answers that are generated or wait, and searches likewise; further ones get 503.
        context: longest prompt and answer together, in tokens.
    """
    with _bind(host, port) as listener:
        # An IPv6 address stands in brackets, or its colons would be read as the port's.
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        def load_service(search: SearchThread) -> Service:
            opened, engine = load(index, embedder, generator, max_running, context, dtype)
            return Service(
                opened, engine, search, generator, embedder or opened.settings.embedder, max_requests
            )

        # uvicorn stops on SIGTERM and then raises it again; a server that was asked to stop has not failed.
        signal.signal(signal.SIGTERM, lambda *_: None)
        asyncio.run(_serve(listener, load_service, max_requests, address))


class Server(uvicorn.Server):
    """uvicorn's server, but running answers are ended, with an error that says why, before connections are cut."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait for what runs, close."""
        service: Service | None = self.config.app.state.service  # type: ignore[union-attr]
        if service is not None:
            asyncio.get_running_loop().call_later(GRACE, service.worker.cancel_all)
        await super().shutdown(sockets)


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, before the models are loaded: a port in use is told at once."""
    if not 0 <= port < 2**16:  # getaddrinfo would take it modulo 2**16
        raise InputError(f"port is {port}; expected 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port}: {error}; choose another --host or --port."
        ) from error
    return listener


async def _serve(
    listener: socket.socket, load_service: Callable[[SearchThread], Service], max_requests: int, address: str
) -> None:
    """Serve until told to stop. The models are loaded by the thread that will use them; until then /readyz is 503."""
    app: FastAPI = create_loading_app()
    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2 * GRACE))
    search = SearchThread(max_requests)
    print(f"loading the models; then {address}", file=sys.stderr, flush=True)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(search.run(load_service, search))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if loading.done():
            app.state.service = loading.result()
            print(f"ready: {address} (API: {address}/docs); Ctrl-C stops", file=sys.stderr, flush=True)
            await serving
    finally:
        server.should_exit = True
        await serving
