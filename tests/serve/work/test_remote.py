"""A remote generator over real sockets: this project's own server as the other one, and servers that misbehave."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from embed import Encoder
from gpt_core.common.errors import InputError
from gpt_core.generation.sampling import SamplingParams
from index import Index
from serve import create_app
from serve.answers.answer import answer_question
from serve.answers.prompt import MAX_PASSAGE_CHARACTERS, build_chat, build_prompt
from serve.ask import ask
from serve.work import remote
from serve.work.remote import RemoteGenerator, remote_generator
from tests.other_server import Other
from tests.serve.answers.test_answer import hit
from tests.serve.conftest import DOCUMENTS, QUESTION, SAYS, random_gpt, serving, sse, wait_until
from tests.serve.test_load import post

GENERATE = {"question": QUESTION, "answer": "generate"}
SUPPORT = "The interpreter lock became optional in October 2024."
MESSAGES = [{"role": "user", "content": "hello"}]


def reply(content, reason="stop"):
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": reason}]}


@pytest.fixture
def served(index):
    """served(url of a generator, …) → the base URL of a server whose answers that generator writes."""
    with contextlib.ExitStack() as stack:

        def start(url, **options):
            app = create_app(index, RemoteGenerator(url, **options))
            return stack.enter_context(serving(app))

        yield start


def answer(url, **options):
    response = httpx.post(f"{url}/v1/answer", json=GENERATE | options, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


# --- the other server writes ---


def test_another_server_writes_and_the_text_is_attributed(served, shared_url):
    found = answer(served(f"{shared_url}/v1"))  # its first model is the generator
    assert found["kind"] == "generated"
    assert found["text"] == found["draft"] == SAYS.strip()
    assert found["sentences"][0]["citation"]["text"] == SUPPORT
    assert (found["finish_reason"], found["failure"], found["n_prompt_hits"]) == ("stop", None, 4)


def test_it_gets_the_key_and_the_messages_and_parameters_of_a_local_generator(served, index, tokenizer):
    with Other(reply("Yes.")) as other:
        url = served(other.url + "/", key="s3cret")
        found = answer(url, max_tokens=7, temperature=0.5, seed=3)
        answer(served(other.url, model="large"))
    assert [path for path, _, _ in other.requests] == ["/v1/models", *["/v1/chat/completions"] * 2]
    assert {headers["Authorization"] for _, headers, _ in other.requests[:2]} == {"Bearer s3cret"}
    assert "Authorization" not in other.requests[2][1]
    first, second = other.requests[1][2], other.requests[2][2]
    assert (first["model"], second["model"]) == ("small", "large")
    assert (first["max_tokens"], first["temperature"], first["seed"]) == (7, 0.5, 3)
    assert "seed" not in second
    hits = index.search(QUESTION, k=found["n_prompt_hits"])
    local = build_prompt(QUESTION, hits, tokenizer, 4096, 96)
    assert tokenizer.chat(first["messages"]) == local.token_ids


def test_unsupported_sentences_are_not_in_the_text(served):
    with Other(reply("The lock became optional in October 2024. Cats purr on Tuesdays.")) as other:
        found = answer(served(other.url))
    assert found["text"] == "The lock became optional in October 2024."
    assert [s["supported"] for s in found["sentences"]] == [True, False]


def test_the_thoughts_of_a_reasoning_model_are_no_part_of_its_text(served):
    thoughts = "The lock stays. </think>\n\n"
    with Other(reply(f"<think>{thoughts}It became optional in October 2024.")) as other:
        assert answer(served(other.url))["draft"] == SAYS.strip()
    with Other(reply("<think>Hmm, the lock", "length")) as other:
        assert "wrote no text in 96 tokens" in answer(served(other.url))["failure"]


def test_a_stream_has_sources_and_then_the_answer(served, client):
    with Other(reply("It became optional in October 2024.")) as other:
        url = served(other.url)
        with client.stream("POST", f"{url}/v1/answer", json=GENERATE | {"stream": True}) as response:
            events = [(name, json.loads(data)) for name, data in sse(response)]
        assert [name for name, _ in events] == ["sources", "done"]
        assert events[0][1]["n_prompt_hits"] == 4
        assert events[1][1] == answer(url)


def test_quotes_do_not_call_the_other_server(served):
    with Other(reply("Yes.")) as other:
        answer(served(other.url), answer="quote")
    assert other.requests == []


def test_passages_are_limited_by_characters():
    prompt = build_chat("Why?", [hit("a " * 900), hit("b " * 900), hit("c " * 900)])
    content = prompt.messages[1]["content"]
    assert (prompt.n_hits, prompt.n_cut) == (2, 0)
    assert content.index("T\na a") < content.index("T\nb b") < content.index("Why?")
    assert "c c" not in content
    (system, user), n = build_chat("Why?", []).messages, 6000
    cut = build_chat("Why?", [hit("字" * n), hit("short")])
    assert (cut.messages[0], cut.n_hits) == (system, 1)
    assert cut.n_cut == len(f"T\n{'字' * n}\n\n") - MAX_PASSAGE_CHARACTERS
    assert len(cut.messages[1]["content"]) == MAX_PASSAGE_CHARACTERS + len(user["content"])


# --- failures: the quotes come anyway ---


def unused_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


ENDLESS = (piece for piece in [b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 2**16] * 100])
FAILURES = {
    "status": ({"reply": {"error": {"message": "model 'small' not found."}}, "status": 404},
        "answered /chat/completions with status 404: model 'small' not found."),
    "status without a message": ({"reply": b"<h1>Bad gateway</h1>", "status": 502}, "with status 502."),
    "redirect": ({"reply": {}, "status": 307}, "status 307."),
    "no JSON": ({"reply": b"<h1>Hello</h1>"}, "something else than OpenAI's API does; the URL of such a server"),
    "other JSON": ({"reply": {"choices": []}}, "something else than OpenAI's API"),
    "deep JSON": ({"reply": b"[" * 100_000}, "something else than OpenAI's API"),
    "half a surrogate pair": ({"reply": b'{"choices": [{"message": {"content": "\\ud800"}}]}'}, "something else"),
    "no models": ({"models": {"data": []}}, "answered /models with something else"),
    "empty text": ({"reply": reply(" \n")}, "wrote no text."),
    "no text": ({"reply": reply(None, "length")}, "wrote no text in 96 tokens; allow more with max_tokens."),
    "long text": ({"reply": reply("Cats purr. " * 2000)}, "wrote 21999 characters, more than 8000."),
    "large body": ({"reply": b" " * (remote.MAX_BYTES + 1)}, "more than 1048576 bytes."),
    "endless body": ({"raw": ENDLESS}, "more than 1048576 bytes."),
    "half a body": ({"raw": [b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"choices"']}, "broke off ("),
    "no response": ({"raw": []}, "broke off ("),
    "no HTTP": ({"raw": [b"\x00\x01\r\n\r\n"]}, "broke off ("),
    "slow": ({"delay": 30}, "did not answer within 0.3 s."),
}  # fmt: skip


@pytest.mark.parametrize(("options", "says"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_sentence_and_the_quotes_come(index, options, says):
    with Other(**options) as other:
        generator = RemoteGenerator(other.url, seconds=0.3 if "delay" in options else 20)
        found = answer_question(QUESTION, index, generator, mode="lexical")
    assert found.failure.startswith(f"The generator at {other.url} ")
    assert says in found.failure
    assert (found.failure[-1], "\n" in found.failure, found.draft) == (".", False, "")
    quoted = answer_question(QUESTION, index, mode="lexical")
    assert (found.kind, found.text, found.quotes) == (quoted.kind, quoted.text, quoted.quotes)


def test_a_server_that_is_down_or_drops_packets_is_said(served):
    url = unused_url()
    found = answer(served(url))
    assert found["failure"].startswith(f"The generator at {url} cannot be reached (")
    assert found["kind"] != "generated"
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # its queue of connections is full
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        began = time.monotonic()
        url = served(f"http://127.0.0.1:{address[1]}/v1", connect_seconds=0.2)
        assert "cannot be reached (no connection in time)" in answer(url)["failure"]
        assert time.monotonic() - began < 5
        for one in waiting:
            one.close()


def test_a_key_that_the_other_server_repeats_is_not_told(index):
    with Other({"error": {"message": "Invalid key s3cret"}}, status=401) as other:
        generator = RemoteGenerator(other.url, key="s3cret")
        found = answer_question(QUESTION, index, generator)
    assert found.failure.endswith("with status 401: Invalid key ….")


def test_calls_are_limited_and_do_not_block_other_requests(served, client):
    with Other(delay=30) as other:
        url = served(other.url, max_requests=1)
        with post(url, "/v1/answer", GENERATE):
            wait_until(lambda: len(other.requests) == 2)
            assert "has 1 requests of this server already" in answer(url)["failure"]
            assert client.post(f"{url}/v1/search", json={"query": "cat"}).status_code == 200
        wait_until(other.closed.is_set)
        wait_until(lambda: client.get(f"{url}/readyz").status_code == 200)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_a_client_that_leaves_ends_the_call(served, stream, caplog, capfd):
    with Other(delay=30) as other:
        connection = post(served(other.url), "/v1/answer", GENERATE | {"stream": stream})
        wait_until(lambda: len(other.requests) == 2)
        assert not other.closed.is_set()
        connection.close()
        wait_until(other.closed.is_set)
    assert caplog.text + capfd.readouterr().err == ""


def test_a_server_that_stops_ends_its_calls_and_gives_the_quotes(index):
    with Other(delay=30) as other:
        generator = RemoteGenerator(other.url)
        app = create_app(index, generator)
        with serving(app) as url:
            found = []
            asking = threading.Thread(target=lambda: found.append(answer(url)))
            asking.start()
            wait_until(lambda: len(other.requests) == 2)
        asking.join()
    assert found[0]["failure"] == "The server is shutting down."


# --- without a generator of its own ---


def test_completions_need_a_local_generator(served, client):
    url = served(unused_url())
    assert client.get(f"{url}/readyz").status_code == 200
    names = [one["id"] for one in client.get(f"{url}/v1/models").json()["data"]]
    assert names == ["tiny-embedder", "zhizhi-rag"]
    chat = {"model": "zhizhi-rag", "messages": [{"role": "user", "content": QUESTION}]}
    assert client.post(f"{url}/v1/chat/completions", json=chat).status_code == 200
    other = client.post(f"{url}/v1/chat/completions", json=chat | {"model": "x", "retrieval": True})
    assert other.json()["error"]["message"] == "The model 'x' is not served here; use 'zhizhi-rag'."
    for path, body in (
        ("completions", {"prompt": "x"}),
        ("chat/completions", {"messages": MESSAGES}),
        ("chat/completions", {"messages": MESSAGES, "stream": True}),
    ):
        response = client.post(f"{url}/v1/{path}", json=body | {"model": "tiny-gpt"})
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["message"].startswith("This server has no generator of its own")


# --- the commands ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"generator": "http://"}, "generator is http://; expected a URL such as"),
        ({"generator": "http://x:port/v1"}, "expected a URL such as"),
        ({"generator": "http://127.0.0.1/v1?key=1"}, "expected a URL such as"),
        ({"generator": "http://me:s3cret@127.0.0.1/v1"}, "a user name or a password; give a key in"),
        ({"seconds": 0}, "generator_seconds is 0; expected a positive number"),
        ({"seconds": float("nan")}, "generator_seconds is nan"),
        ({"generator": "tiny", "model": "m"}, "generator_model is m, but generator is tiny, not a URL"),
    ],
)
def test_bad_settings_are_named(arguments, says):
    with pytest.raises(InputError, match=says) as raised:
        remote_generator(**({"generator": "http://127.0.0.1/v1", "model": None, "seconds": 1} | arguments))
    assert "s3cret" not in str(raised.value)


def test_ask_says_a_failure_on_stderr_and_in_its_json(tmp_path, tokenizer, capsys, monkeypatch):
    random_gpt().save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    with Index.create(tmp_path / "index", Encoder.from_pretrained(tmp_path / "model")) as index:
        index.add(DOCUMENTS)
    monkeypatch.setenv(remote.KEY_VARIABLE, "schlüssel")
    options = {"index": str(tmp_path / "index"), "answer": "generate", "json": True}
    with pytest.raises(InputError, match=f"{remote.KEY_VARIABLE} has spaces or letters beyond ASCII"):
        ask([QUESTION], generator=unused_url(), **options)
    monkeypatch.setenv(remote.KEY_VARIABLE, "s3cret")
    with Other(reply("It became optional in October 2024.")) as other:
        ask([QUESTION], generator=other.url, generator_model="large", **options)
    assert other.requests[0][1]["Authorization"] == "Bearer s3cret"
    written = json.loads(capsys.readouterr().out)
    assert (written["kind"], written["text"], written["failure"]) == ("generated", SAYS.strip(), None)
    ask([QUESTION, "Why?"], generator=unused_url(), **options)
    out, err = capsys.readouterr()
    failures = [json.loads(line)["failure"] for line in out.splitlines()]
    assert all("cannot be reached" in failure for failure in failures)
    assert [line for line in err.splitlines() if "cannot be reached" in line] == failures


def test_a_call_after_the_end_is_not_made():
    async def late():
        generator = RemoteGenerator("http://127.0.0.1:9/v1")
        generator.stop()
        return await generator.write(MESSAGES, SamplingParams())

    assert asyncio.run(late()).failure == "The server is shutting down."
