"""Disconnected clients, and more requests than the server accepts."""

import asyncio
import gc
import json
import socket
import threading
import time
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import cpu_threads
from gpt_core.generation.sampling import SamplingParams
from index.search.rank import Hits
from serve import create_app
from serve.work.call_thread import CallThread
from serve.work.errors import OverloadedError, UnavailableError
from serve.work.threads import Worker
from tests.serve.conftest import QUESTION, serving, speaker, stop, wait_until

CHAT = {"model": "tiny-gpt", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
COMPLETION = {"model": "tiny-gpt", "prompt": ["assistant:", "x assistant:"], "temperature": 0, "n": 2}
ANSWER = {"answer": "generate", "question": QUESTION, "max_tokens": 30_000}


@pytest.fixture
def endless(tokenizer):
    """A generator that stops only at the end of its context, which takes a minute without drafting (draft=0)."""
    return speaker(tokenizer, " on and", for_ever=True, block_size=2**15)


def post(url, path, body):
    """Send a request over a bare socket and leave it open."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return connection


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"n": 3}),
        ("/v1/completions", COMPLETION),
        ("/v1/answer", ANSWER),
    ],
)
def test_a_disconnected_client_cancels_its_request(serve, client, endless, path, body, stream, caplog, capfd):
    url, app = serve(endless, draft=0, max_running=1)
    service = app.state.service
    seen = []
    submit = service.worker.engine.submit
    service.worker.engine.submit = lambda *args: seen.append(submit(*args)) or seen[-1]
    connection = post(url, path, body | {"stream": stream})
    wait_until(lambda: seen and len(seen[0].token_ids) > 5)
    connection.close()
    wait_until(lambda: all(request.done for request in seen))
    assert len(seen) == body.get("n", 1) * (len(body["prompt"]) if "prompt" in body else 1)
    assert {request.finish_reason for request in seen} == {"cancelled"}
    assert max(len(request.token_ids) for request in seen) < 20_000
    # its slot is free again
    short = CHAT | {"max_tokens": 3}
    assert client.post(f"{url}/v1/chat/completions", json=short).status_code == 200
    gc.collect()  # asyncio logs an exception that was never retrieved when its task is deleted
    assert caplog.text + capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("thread", "path", "body"),
    [
        ("search", "/v1/search", {"query": "x"}),
        ("search", "/v1/answer", ANSWER),
        ("search", "/v1/embeddings", {"model": "tiny-embedder", "input": "x"}),
        ("reader", "/v1/embeddings", {"model": "tiny-embedder", "input": "x"}),
        ("reader", "/v1/completions", COMPLETION | {"prompt": "x"}),
        ("reader", "/v1/chat/completions", CHAT),
        ("search", "/v1/chat/completions", CHAT | {"retrieval": True}),
    ],
)
def test_a_client_that_leaves_while_it_waits_for_a_thread_frees_its_place(
    serve, client, thread, path, body, caplog, capfd
):
    url, app = serve(" so", max_requests=2)
    calls = getattr(app.state.service, thread)
    release = threading.Event()
    busy = threading.Thread(target=lambda: asyncio.run(calls.run(release.wait, 60)))
    busy.start()
    try:
        for _ in range(3):  # only one at a time has a place
            connection = post(url, path, body)
            wait_until(lambda: calls._places._value == 0)
            connection.close()
            wait_until(lambda: calls._places._value == 1)
    finally:
        release.set()
        busy.join()
    assert client.get(f"{url}/readyz").status_code == 200
    gc.collect()
    assert caplog.text + capfd.readouterr().err == ""


def test_a_request_beyond_the_limit_gets_503_and_retry_after(serve, client, endless):
    url, app = serve(endless, draft=0, max_running=1, max_requests=2)
    service = app.state.service
    with client.stream("POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as running:
        pieces = running.iter_raw()
        next(pieces)
        waiting = post(url, "/v1/chat/completions", CHAT)
        wait_until(lambda: len(service.worker._live) == 2)
        with httpx.Client() as third:
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/answer", ANSWER | {"stream": True})):
                refused = third.post(url + path, json=body)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "overloaded"
                assert int(refused.headers["Retry-After"]) > 0
            assert third.get(f"{url}/readyz").status_code == 200
        waiting.close()
    wait_until(lambda: not service.worker._live)
    assert client.post(f"{url}/v1/chat/completions", json=CHAT | {"max_tokens": 2}).status_code == 200


def test_choices_beyond_the_limit_are_refused_together(serve, client, endless):
    url, app = serve(endless, draft=0, max_running=1, max_requests=3)
    live = app.state.service.worker._live
    with client.stream("POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as running:
        pieces = running.iter_raw()
        next(pieces)
        for stream in (False, True):
            refused = httpx.post(
                f"{url}/v1/completions",
                json=COMPLETION | {"n": 1, "stream": stream, "prompt": ["assistant:"] * 3},
            )
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            wait_until(lambda: len(live) == 1)
    wait_until(lambda: not live)


def test_searches_are_limited_and_never_block_the_event_loop(serve, client, monkeypatch):
    url, app = serve(" so", max_requests=1)
    release, began = threading.Event(), threading.Event()

    def slow(*_, **__):
        began.set()
        assert release.wait(20)
        return Hits([], exact=True)

    monkeypatch.setattr(app.state.service.index, "search", slow)
    first = threading.Thread(
        target=httpx.post, args=(f"{url}/v1/search",), kwargs={"json": {"query": "x"}, "timeout": 30}
    )
    first.start()
    assert began.wait(10)
    assert client.get(f"{url}/livez", timeout=2).status_code == 200
    assert client.post(f"{url}/v1/search", json={"query": "y"}).status_code == 503
    release.set()
    first.join()
    wait_until(lambda: client.post(f"{url}/v1/search", json={"query": "y"}).status_code == 200)


def test_stopping_the_server_sends_an_error_to_running_streams(
    index, tokenizer, client, endless, monkeypatch
):
    monkeypatch.setattr("serve.run_server.GRACE_SECONDS", 0.2)
    app = create_app(index, Engine(endless, tokenizer, draft=0), generator_name="tiny-gpt")
    with serving(app) as url, post(url, "/v1/chat/completions", CHAT | {"stream": True}) as connection:
        received = connection.recv(1000)
        assert b"200 OK" in received
        stop(url)
        while chunk := connection.recv(100_000):
            received += chunk
    last = [line for line in received.split(b"\r\n") if line.startswith(b"data: ")][-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "The server is shutting down."
    assert not app.state.service.worker.alive


# --- the worker alone ---


def test_an_idle_worker_does_not_step(tokenizer, monkeypatch):
    engine = Engine(speaker(tokenizer, " so"), tokenizer)
    steps = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: steps.append(1) or step())
    worker = Worker(engine)
    worker.start()
    for _ in range(2):
        done = threading.Event()
        pieces = []
        worker.submit(tokenizer.encode("assistant:"), SamplingParams(temperature=0), pieces.append, done.set)
        assert done.wait(10)
        assert pieces == [" so"]
    n_steps = len(steps)
    assert not threading.Event().wait(0.1)
    assert len(steps) == n_steps <= 8
    worker.close()
    assert not worker.alive


def test_closing_a_worker_reports_every_request(tokenizer, endless):
    worker = Worker(Engine(endless, tokenizer, draft=0, max_running=1), max_requests=3)
    worker.start()
    ended = [threading.Event() for _ in range(3)]
    prompt = tokenizer.encode("assistant:")
    requests = [
        worker.submit(prompt, SamplingParams(max_new_tokens=4000), lambda _: None, e.set) for e in ended
    ]
    with pytest.raises(OverloadedError):
        worker.submit(prompt, SamplingParams(), lambda _: None, lambda: None)
    worker.close()
    assert all(event.is_set() for event in ended)
    assert {request.finish_reason for request in requests} == {"cancelled"}


def test_a_cancelled_waiting_search_never_runs():
    async def scenario():
        thread = CallThread("search", max_waiting=2)
        release, calls = threading.Event(), []
        running = asyncio.ensure_future(thread.run(release.wait, 10))
        waiting = asyncio.ensure_future(thread.run(calls.append, 1))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError):
            await thread.run(calls.append, 2)
        waiting.cancel()
        await asyncio.sleep(0.05)
        release.set()
        assert await running
        await thread.run(calls.append, 3)
        thread.close(lambda: calls.append(4))
        assert calls == [3, 4]

    asyncio.run(scenario())


def test_calls_of_two_requests_take_turns():
    async def scenario():
        thread = CallThread("search", max_waiting=2)
        calls = []

        def each(name):
            return thread.run_each(partial(calls.append, f"{name}{i}") for i in range(3))

        await asyncio.gather(each("a"), each("b"))
        assert calls == ["a0", "b0", "a1", "b1", "a2", "b2"]

    asyncio.run(scenario())


def test_a_closed_thread_refuses_calls_and_keeps_no_place():
    thread = CallThread("search", max_waiting=1)
    thread.close(lambda: None)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="shutting down"):
            asyncio.run(thread.run(print))


def test_closing_does_not_wait_for_a_long_call_and_ends_the_waiting_ones():
    async def scenario():
        thread = CallThread("search")
        release, closed = threading.Event(), threading.Event()
        running = asyncio.ensure_future(thread.run(release.wait, 60))
        waiting = asyncio.ensure_future(thread.run(print, "never"))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        thread.close(closed.set, seconds=0.1)
        assert time.monotonic() - began < 5
        assert thread.busy
        with pytest.raises(UnavailableError, match="shutting down"):
            await waiting
        assert not closed.is_set()
        release.set()
        assert await running
        assert closed.wait(10)  # after the running call

    asyncio.run(scenario())


def test_the_server_stops_while_a_search_runs(index, tokenizer, monkeypatch):
    monkeypatch.setattr("serve.run_server.GRACE_SECONDS", 0.2)
    app = create_app(index, Engine(speaker(tokenizer, " so"), tokenizer), generator_name="tiny-gpt")
    release, began = threading.Event(), threading.Event()
    monkeypatch.setattr(index, "search", lambda *_, **__: began.set() or release.wait(60) or [])
    try:
        with serving(app, timeout_graceful_shutdown=1) as url, post(url, "/v1/search", {"query": "x"}):
            assert began.wait(10)
            stopped = time.monotonic()
        assert time.monotonic() - stopped < 20
        assert app.state.service.search.busy
    finally:
        release.set()


def test_a_prompt_is_checked_while_the_worker_goes_on(tokenizer, endless, monkeypatch):
    engine = Engine(endless, tokenizer, draft=0)
    worker = Worker(engine)
    worker.start()
    prompt, pieces = tokenizer.encode("assistant:"), []
    try:
        worker.submit(prompt, SamplingParams(temperature=0), pieces.append, lambda: None)
        submit = engine.submit

        def slow(*arguments):
            n = len(pieces)
            wait_until(lambda: len(pieces) > n + 5)
            return submit(*arguments)

        monkeypatch.setattr(engine, "submit", slow)
        done = threading.Event()
        worker.submit(prompt, SamplingParams(max_new_tokens=2), lambda _: None, done.set)
        assert done.wait(10)
    finally:
        worker.close()


def test_single_threaded_decoding_does_not_change_the_search_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        thread = CallThread("search")
        with cpu_threads(1):
            assert asyncio.run(thread.run(torch.get_num_threads)) == 3
        thread.close(lambda: None)
    finally:
        torch.set_num_threads(before)
