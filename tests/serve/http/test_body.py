"""Bodies that would cost much if each value were validated."""

import json
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.api.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest
from serve.http.body import MAX_DEPTH, MAX_KEYS, MAX_VALUES, parse_json
from tests.serve.test_api import check_envelope

JSON = {"Content-Type": "application/json"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@settings(max_examples=30)
@given(VALUES, st.booleans())
def test_what_json_reads_is_read_the_same(value, ascii):
    body = json.dumps(value, ensure_ascii=ascii).encode(errors="replace")
    assert parse_json(body) == json.loads(body)


def test_brackets_and_commas_inside_strings_are_not_counted():
    value = {"text": '[{"a": [,\\' * MAX_VALUES, "[": ["\\", '\\"', "]"] * 100}
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"a": [' + b"1," * MAX_VALUES + b"1]}", f"more than {MAX_VALUES} values"),
        (b'[["a"' + b',"a"' * MAX_VALUES + b"]]", f"more than {MAX_VALUES} values"),
        (b"[" + b"{}," * MAX_VALUES + b"{}]", f"more than {MAX_VALUES} values"),
        (b"[" * 4_000_000, f"more than {MAX_DEPTH} levels"),
        (b'{"a":' * 1_000_000, f"more than {MAX_DEPTH} levels"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels"),
    ],
    ids=range(6),
)
def test_too_many_values_or_levels_are_refused_before_any_value_is_made(body, says, monkeypatch):
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(json.JSONDecodeError, match=says) as raised:
        parse_json(body)
    assert raised.value.doc == ""  # the body is not kept


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{" + b",".join(b'"k%d":1' % i for i in range(MAX_KEYS + 1)) + b"}", f"more than {MAX_KEYS} keys"),
        (b'{"k": 1, "k": 1}', "the key 'k' twice"),
        (b'{"a": {"query": 1, "query": 2}}', "the key 'query' twice"),
        (b'{"k": ' + b"9" * 100_000 + b"}", "4300 digits"),
        (b'{"k": NaN}', "NaN is not a JSON number"),
        (b'{"k": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"k": "\xff"}', "not UTF-8"),
        ('{"k": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[]," * MAX_DEPTH + b'"' + b'\\"' * 4_000_000, "Extra data"),
        (b'"' + b'\\"' * 4_000_000, "Unterminated string"),
    ],
    ids=range(10),
)
def test_odd_json_is_refused(body, says):
    with pytest.raises(json.JSONDecodeError, match=says) as raised:
        parse_json(body)
    assert raised.value.doc == ""


@pytest.mark.parametrize(
    ("path", "field", "n"),
    [
        ("/v1/embeddings", "input", 1_000_000),
        ("/v1/embeddings", "input", MAX_VALUES - 10),
        ("/v1/completions", "prompt", MAX_VALUES - 10),
        ("/v1/completions", "stop", MAX_VALUES - 10),
        ("/v1/chat/completions", "messages", MAX_VALUES - 10),
        ("/v1/chat/completions", "tools", MAX_VALUES - 10),
        ("/v1/search", "filter", MAX_VALUES - 10),
        ("/v1/answer", "question", MAX_VALUES - 10),
    ],
)
def test_large_lists_are_refused_at_once_and_livez_is_not_blocked(shared_url, path, field, n):
    body = json.dumps({"model": "tiny-embedder", field: [["a"] * n]}).encode()
    waits = []
    done = threading.Event()

    def watch():
        with httpx.Client() as client:
            while not (waits and done.is_set()):
                began = time.monotonic()
                assert client.get(f"{shared_url}/livez").status_code == 200
                waits.append(time.monotonic() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        response = httpx.post(shared_url + path, content=body, headers=JSON, timeout=20)
    finally:
        done.set()
        watcher.join()
    openai_path = path not in ("/v1/search", "/v1/answer")
    error = check_envelope(response, 400 if openai_path else 422)
    assert len(error["message"]) < 300
    assert response.elapsed.total_seconds() < 5  # about 0.5 on an idle core; 30 if each value is validated
    assert max(waits) < 5


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (EmbeddingsRequest, {"input": [{}] * 2000}),
        (CompletionRequest, {"prompt": [{}] * 2000}),
        (CompletionRequest, {"prompt": [[True] * 2000]}),
        (CompletionRequest, {"prompt": [[1, "x"]] * 2000}),
        (CompletionRequest, {"prompt": "x", "stop": [1] * 60}),
        (ChatRequest, {"messages": [{}] * 2000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 2000}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}], "modalities": [1] * 2000}),
    ],
)
def test_the_first_wrong_item_of_a_list_ends_its_validation(schema, body):
    with pytest.raises(ValidationError) as raised:
        schema.model_validate({"model": "tiny-gpt", **body})
    assert raised.value.error_count() < 8


def test_odd_values_get_an_envelope(shared_url):
    huge = 10**4000
    with httpx.Client(timeout=20) as client:
        for path, body in (
            ("/v1/search", {"query": "x", "k": huge}),
            ("/v1/search", {"query": "x", "filter": {"year": huge}}),
            ("/v1/search", {"query": "x", "filter": {"year": [[[[1]]]]}}),
            ("/v1/search", {"query": "x", "k" * 1_000_000: 1}),
            ("/v1/search", {"query": "x", "filter": {"k" * 1_000_000: None}}),
            ("/v1/answer", {"answer": "generate", "question": "x", "seed": huge}),
            ("/v1/answer", {"answer": "generate", "question": "x", "seed": -huge}),
            ("/v1/answer", {"answer": "generate", "question": "x", "max_tokens": huge}),
            ("/v1/answer", {"answer": "generate", "question": "x", "temperature": huge}),
            ("/v1/completions", {"model": "tiny-gpt", "prompt": [huge]}),
            ("/v1/completions", {"model": "tiny-gpt", "prompt": "x", "n": huge}),
            ("/v1/completions", {"model": "tiny-gpt", "prompt": "x", "logit_bias": {str(huge): 1}}),
            ("/v1/completions", {"model": "tiny-gpt", "prompt": "x", "seed": huge}),
            ("/v1/completions", {"model": "m" * 1_000_000, "prompt": "x"}),
            ("/v1/embeddings", {"model": "tiny-embedder", "input": "x", "dimensions": huge}),
            ("/v1/embeddings", {"model": "tiny-embedder", "input": {str(i): i for i in range(4000)}}),
        ):
            response = client.post(shared_url + path, json=body)
            assert 400 <= response.status_code < 500
            error = check_envelope(response, response.status_code)
            assert len(response.content) < 20_000
            assert error["message"]
        infinite = b'{"question": "x", "temperature": 1e999}'
        error = check_envelope(
            client.post(f"{shared_url}/v1/answer", content=infinite, headers=JSON), 422, "finite_number"
        )
        assert error["param"] == "temperature"
