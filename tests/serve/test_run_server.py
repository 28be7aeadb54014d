"""The server as a process: starting and stopping."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from embed import Encoder
from gpt_core.common.errors import InputError
from index import Index
from serve.run_server import run_server as start_server
from serve.work.call_thread import CallThread
from tests import commands
from tests.serve.conftest import DOCUMENTS, QUESTION, random_gpt, wait_until
from tests.serve.test_load import post

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("server")
    random_gpt().save_pretrained(root / "model")
    tokenizer.save(root / "model")
    with Index.create(root / "index", Encoder.from_pretrained(root / "model")) as index:
        index.add(DOCUMENTS)
    return root


def run_server(folders, *arguments, index="index", generator=True, **variables):
    command = ["scripts/run_server.py", "--index", folders / index]
    command += [*(["--generator", folders / "model"] if generator else []), *arguments]
    return commands.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | variables)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, -signal.SIGINT, marks=pytest.mark.slow)],
)
def test_the_server_is_ready_after_loading_and_stops_cleanly(folders, number, status):
    port = free_port()
    server = run_server(folders, "--port", str(port))
    seen = []

    def ready():
        try:
            seen.append(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20).status_code)
        except httpx.ConnectError:
            return False
        return seen[-1] == 200

    try:
        wait_until(ready, 120)
        assert set(seen[:-1]) <= {503}
        url = f"http://127.0.0.1:{port}"
        models = httpx.get(f"{url}/v1/models").json()["data"]
        # generator and embedder, without their path, and the name for answers from the index
        assert [one["id"] for one in models] == ["model", "zhizhi-rag"]
        chat = {"model": "model", "messages": [{"role": "user", "content": "x"}]}
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", chat | {"stream": True, "n": 2}),
            ("/v1/completions", {"model": "model", "prompt": ["x", "y"]}),
            ("/v1/completions", {"model": "model", "prompt": "x", "stream": True}),
            ("/v1/answer", {"answer": "generate", "question": QUESTION, "max_tokens": 900}),
            ("/v1/answer", {"answer": "generate", "question": QUESTION, "max_tokens": 900, "stream": True}),
            ("/v1/search", {"query": QUESTION}),
            ("/v1/embeddings", {"model": "model", "input": ["x"] * 200}),
        ):
            with post(url, path, body):  # and leave
                time.sleep(0.1)
        response = httpx.post(f"{url}/v1/chat/completions", json=chat | {"max_tokens": 2}, timeout=30)
        assert response.status_code == 200
        server.send_signal(number)
        _, error = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == status
    # "loading", the notes about embedder and weights, "ready", and "stopped" after Ctrl-C; no traceback of clients
    # that left
    assert error.count("\n") == 4 + (number == signal.SIGINT), error


def test_a_server_without_a_generator_quotes_and_says_how_to_get_one(folders, tmp_path):
    server = run_server(folders, "--port", "0", generator=False, ZHIZHI_CACHE=str(tmp_path))
    try:
        url = server.stderr.readline().split()[-1]
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=20).status_code == 200, 120)
        fetching = "python scripts/fetch_model.py smollm2-135m-instruct"
        found = httpx.post(f"{url}/v1/answer", json={"question": QUESTION}, timeout=30).json()
        assert found["hits"]
        body = {"answer": "generate", "question": QUESTION}
        for stream in (False, True):
            response = httpx.post(f"{url}/v1/answer", json=body | {"stream": stream}, timeout=30)
            assert response.status_code == 422
            assert fetching in response.text
        chat = {"model": "model", "messages": [{"role": "user", "content": QUESTION}]}
        response = httpx.post(f"{url}/v1/chat/completions", json=chat)
        assert response.status_code == 404
        assert fetching in response.json()["error"]["message"]
        chat["model"] = "zhizhi-rag"
        assert httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=30).status_code == 200
        server.terminate()
        assert server.wait(30) == 0
        assert fetching in server.communicate()[1]
    finally:
        server.kill()
        server.wait()


def test_a_server_with_a_remote_generator_loads_none(folders):
    generator = f"http://127.0.0.1:{free_port()}/v1"  # where nothing listens
    server = run_server(folders, "--generator", generator, "--port", "0", ZHIZHI_GENERATOR_KEY="s3cret")
    try:
        url = server.stderr.readline().split()[-1]
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=20).status_code == 200, 120)
        body = {"answer": "generate", "question": QUESTION}
        found = httpx.post(f"{url}/v1/answer", json=body, timeout=30).json()
        assert found["failure"].startswith(f"The generator at {generator} cannot be reached")
        assert found["hits"]
        chat = {"model": "model", "messages": [{"role": "user", "content": QUESTION}]}
        response = httpx.post(f"{url}/v1/chat/completions", json=chat)
        assert response.status_code == 404
        assert "no generator of its own" in response.json()["error"]["message"]
        server.terminate()
        assert server.wait(30) == 0
        assert "s3cret" not in server.stderr.read()
    finally:
        server.kill()
        server.communicate()


def test_an_ipv6_address_is_printed_as_a_valid_url(folders):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = run_server(folders, "--host", "::1", "--port", "0", ZHIZHI_API_KEY="s3cret")
    try:
        url = httpx.URL(server.stderr.readline().split()[-1])
        assert url.host == "::1"
        assert httpx.get(url.join("/livez")).json() == {"status": "alive"}
        assert httpx.get(url.join("/v1/models")).status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        assert httpx.get(url.join("/v1/models"), headers=headers).status_code in (200, 503)
        server.terminate()  # probably while it loads its models
        assert server.wait(30) == 0
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(InputError, match=rf"port is {port}; expected 0 .* to 65535"):
        start_server(index="nowhere", port=port)


def test_max_requests_0_is_refused():
    with pytest.raises(InputError, match="max_requests is 0; expected at least 1"):
        CallThread("search", 0)


@pytest.mark.parametrize("what", ["port", "index"])
def test_startup_errors_are_one_line_and_exit_status_1(folders, what):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if what == "port" else 0
        server = run_server(folders, "--port", str(port), index="index" if what == "port" else "nowhere")
        _, error = server.communicate(timeout=60)
    assert server.returncode == 1
    assert "Traceback" not in error
    message = error.strip().splitlines()[-1]
    assert message.startswith("run_server.py: ")
    assert (str(port) if what == "port" else "nowhere") in message
    if what == "port":
        assert error.count("\n") == 1
