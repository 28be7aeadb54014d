"""The command that runs the server: listen, load the models while serving, shut down gracefully."""

import asyncio
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype
from gpt_core.hub.locate import DEFAULT_GENERATOR, is_cached
from index import Index
from serve.answers.answer import LEXICAL_ONLY, lexical_only
from serve.answers.reader import open_reader
from serve.app import create_loading_app
from serve.http.access import ANY_HOST, LOOPBACK_HOSTS
from serve.work.call_thread import CallThread
from serve.work.loading import MAX_CONTEXT, load, served_name
from serve.work.remote import TOTAL_SECONDS, RemoteGenerator, remote_generator
from serve.work.service import NO_GENERATOR, Service

GRACE_SECONDS = 3  # time for running answers to finish when the server is told to stop


def run_server(
    *,
    index: str,
    embedder: str | None = None,
    generator: str | None = None,
    generator_model: str | None = None,
    generator_seconds: float = TOTAL_SECONDS,
    dtype: InferenceDtype = "auto",
    reader: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_running: int = 4,
    max_requests: int = 64,
    context: int = MAX_CONTEXT,
    api_key: str | None = None,
    allowed_hosts: tuple[str, ...] = (),
) -> None:
    """Serve search, cited answers, OpenAI's embeddings, completions and chat, and a web page over HTTP.

    On a loopback address, such as the default, no key is needed: every program of this machine can search and generate,
    and requests with another Host header are refused. On any other address an API key is required.

    Args:
        index: the index's folder.
        embedder: model folder or known name; default: the embedder that the index was built with.
        generator: model folder or known name; default: smollm2-135m-instruct if it is in the model cache, else none,
            and answers are quotes; or the URL of a server with OpenAI's API (vLLM, Ollama, llama.cpp) that writes the
            answers, http://HOST/v1. Its API key, if it needs one, is the environment's ZHIZHI_GENERATOR_KEY.
            Without a loaded generator there are no completions and chats without retrieval.
        generator_model: name of the model of the generator's server; default: the first one that the server lists.
        generator_seconds: maximum time that the generator's server may take for an answer.
        dtype: number format of the generator; auto is bfloat16 on machines that multiply it fast, else float32.
        reader: model folder, run's out_dir (scripts/finetune.py) or known name of the task span, which marks the short
            answer inside the first quote; default: zhizhi-reader if smollm2-135m-instruct is in the model cache. none:
            no short answer.
        host: address to listen on; 0.0.0.0 for all, which needs an API key.
        port: port to listen on; 0 for any free port.
        max_running: maximum number of sequences generated concurrently.
        max_requests: maximum number of running and waiting generations, and also of searches; more get status 503.
        context: maximum length of prompt and answer together, in tokens.
        api_key: key that clients must send as "Authorization: Bearer KEY"; default: the environment's ZHIZHI_API_KEY,
            which other users of the machine cannot read from the list of processes.
        allowed_hosts: host names that clients may use beside localhost, for example that of a proxy; * for all. With
            none given, a server on a loopback address answers to localhost only, and any other server to all names.

    Raises:
        InputError: for an address that cannot be listened on, or one beyond this machine without an API key; as
            `create_loading_app` and `load`.
    """
    api_key = api_key if api_key is not None else os.environ.get("ZHIZHI_API_KEY") or None
    if generator is None and is_cached(DEFAULT_GENERATOR):
        generator = DEFAULT_GENERATOR
    remote = remote_generator(generator, generator_model, generator_seconds, max_requests)
    with _bind(host, port, api_key is not None) as listener:
        bound = listener.getsockname()[0].partition("%")[0]  # without an IPv6 zone
        names = {f"[{bound}]" if ":" in bound else bound, *LOOPBACK_HOSTS, *allowed_hosts}
        if not (allowed_hosts or _is_loopback(bound)):
            names = {ANY_HOST}
        app = create_loading_app(api_key, sorted(names))
        # In a URL an IPv6 address needs brackets, since it contains colons.
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        search = CallThread("search", max_requests)

        def load_service() -> Service:
            writer: Engine | RemoteGenerator | None
            if remote:
                opened, writer = Index.open(index, embedder), remote
            else:
                opened, writer = load(index, embedder, generator, max_running, context, dtype)
            if lexical_only(opened):
                print(LEXICAL_ONLY, file=sys.stderr, flush=True)
            if writer is None:
                print(NO_GENERATOR, file=sys.stderr, flush=True)
            names = (
                None if remote or generator is None else served_name(generator),
                served_name(embedder or opened.settings.embedder),
            )
            if short := open_reader(reader):
                _ = short.model  # loaded before the first request
            return Service(opened, writer, search, *names, max_requests, short)

        # uvicorn raises SIGTERM again after its shutdown; ignored here, so that the exit status is 0.
        signal.signal(signal.SIGTERM, lambda *_: None)
        asyncio.run(_serve(app, listener, search, load_service, address))
    service: Service | None = app.state.service
    if search.busy or (service and service.reader.busy):
        os._exit(
            0
        )  # Python cannot end a thread that computes, and crashes if it computes while the interpreter ends


class Server(uvicorn.Server):
    """uvicorn's server, but running answers are cancelled with an error message before connections are closed."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, wait up to `GRACE_SECONDS` for running answers, and shut down."""
        service: Service | None = self.config.app.state.service  # type: ignore[union-attr]
        if service is not None:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, service.cancel_all)
        await super().shutdown(sockets)


def _bind(host: str, port: int, has_key: bool) -> socket.socket:
    """A listening socket; made before the models are loaded, so that a port in use is reported at once."""
    if not 0 <= port < 2**16:  # getaddrinfo would compute the port modulo 2**16
        raise InputError(f"port is {port}; expected 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not (has_key or _is_loopback(str(address[0]))):
            raise InputError(
                f"host is {host}, which other machines can reach; set an API key with ZHIZHI_API_KEY or --api_key, or "
                "listen on 127.0.0.1."
            )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port}: {error}; choose another --host or --port."
        ) from error
    return listener


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


async def _serve(
    app: FastAPI,
    listener: socket.socket,
    search: CallThread,
    load_service: Callable[[], Service],
    address: str,
) -> None:
    """Serve until told to stop. The search thread loads the models; until then /readyz returns 503."""
    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2 * GRACE_SECONDS))
    print(f"loading the models for {address}", file=sys.stderr, flush=True)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(search.run(load_service))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if loading.done():
            app.state.service = loading.result()
            print(f"ready: {address} (API: {address}/docs); Ctrl-C stops", file=sys.stderr, flush=True)
            await serving
    finally:
        server.should_exit = True
        await serving
