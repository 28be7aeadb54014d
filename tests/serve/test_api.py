import asyncio
import json
import re

import httpx
import pytest

from serve.answers.reader import Reader
from serve.work.threads import MAX_FAILURES
from tests.serve.conftest import DOCUMENTS, QUESTION, random_gpt, sse

TRUE = " It became optional in October 2024."
MIXED = " The lock became optional in October 2024! Cats purr on Tuesdays."
JSON = {"Content-Type": "application/json"}
TEXT = {d.id: d.text for d in DOCUMENTS}


def check_envelope(response, status, code=None):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    return error


# --- search ---


def test_search_finds_and_gives_offsets_into_the_document(serve, client):
    url, _ = serve(TRUE)
    body = {"query": "interpreter lock optional", "k": 2, "mode": "lexical"}
    lexical = client.post(f"{url}/v1/search", json=body).json()
    hits = lexical["hits"]
    assert [hit["doc_id"] for hit in hits] == ["gil"]  # lexical search returns what matches
    assert TEXT["gil"][hits[0]["start"] : hits[0]["end"]] == hits[0]["text"]
    assert hits[0]["dense"] is None
    assert hits[0]["lexical"] > 0
    hybrid = client.post(
        f"{url}/v1/search", json={"query": "长城在哪里", "filter": {"doc_id": "beijing"}}
    ).json()
    assert [hit["doc_id"] for hit in hybrid["hits"]] == ["beijing"]
    assert (lexical["exact"], hybrid["exact"]) == (True, False)
    described = client.get(f"{url}/v1/index").json()
    assert described["wanted"] == {"faiss": "auto", "recall": 0.95}
    assert described["passages"] > 0
    assert "embedder_folder" not in described


@pytest.mark.parametrize(
    ("path", "body", "status", "names"),
    [
        ("/v1/search", {"query": " "}, 422, "empty"),
        ("/v1/search", {"query": "why " * 1100}, 422, "1024"),
        ("/v1/search", {"query": "x", "top_k": 3}, 422, "top_k"),
        ("/v1/search", {"query": "x", "k": 0}, 422, "k"),
        ("/v1/search", {"query": "x", "offset": -1}, 422, "offset"),
        ("/v1/search", {"query": "x", "diversity": 2}, 422, "diversity"),
        ("/v1/search", {"query": "x", "diversity": 0.5, "mode": "lexical"}, 422, "diversity"),
        ("/v1/search", {"query": "x", "filter": {"$or": 1}}, 422, "list of filters"),
        ("/v1/search", {"query": "x", "mode": "fuzzy"}, 422, "mode"),
        ("/v1/search", {"query": "x", "filter": {"year": None}}, 422, "year"),
        ("/v1/search", {"query": "x", "filter": {"\ud800": 1}}, 422, "surrogate"),
        ("/v1/search", {"query": "x", "filter": {"year": "\ud800"}}, 422, "surrogate"),
        ("/v1/search", {"query": "x", "filter": {str(i): 1 for i in range(1000)}}, 422, "1000 conditions"),
        ("/v1/search", {"query": "x", "odd-key[": 3}, 422, "odd-key["),
        ("/v1/answer", {}, 422, "question"),
        ("/v1/answer", {"question": "  "}, 422, "question"),
        ("/v1/answer", {"answer": "generate", "question": "x", "stream": "perhaps"}, 422, "stream"),
        ("/v1/answer", {"answer": "generate", "question": "why " * 5000}, 422, "shorten it"),
        (
            "/v1/answer",
            {"answer": "generate", "question": "lock " * 5000, "mode": "lexical"},
            422,
            "shorter question",
        ),
        ("/v1/answer", {"answer": "generate", "question": "x", "temperature": -1}, 422, "temperature"),
        ("/v1/chat/completions", {"model": "tiny-gpt", "messages": []}, 400, "messages"),
        ("/v1/embeddings", {"model": "tiny-embedder", "input": []}, 400, "input"),
        ("/v1/embeddings", {"model": "tiny-embedder", "input": ["x"] * 2049}, 400, "at most 2048 items"),
    ],
)
def test_bad_input_is_named_in_openais_envelope(serve, client, path, body, status, names):
    url, _ = serve(TRUE)
    content = json.dumps(body)  # escapes unpaired surrogates
    error = check_envelope(client.post(url + path, content=content, headers=JSON), status)
    assert error["param"] in (None, names, *body)
    assert names in error["message"] or names == error["param"]


def test_invalid_json_and_unknown_paths_get_openais_envelope(serve, client):
    url, _ = serve(TRUE)
    error = check_envelope(
        client.post(f"{url}/v1/search", content='{"k":', headers=JSON), 422, "json_invalid"
    )
    assert error["message"] == "The body is not accepted as JSON at character 5: Expecting value."
    check_envelope(client.get(f"{url}/v1/nothing"), 404)
    check_envelope(client.get(f"{url}/v1/search"), 405)
    check_envelope(client.get(f"{url}/static/../app.py"), 404)


def test_a_huge_body_is_refused_before_it_is_read(serve, client):
    url, _ = serve(TRUE)
    sent = []

    def body():
        for _ in range(100):
            sent.append(2**20)
            yield b"x" * 2**20

    check_envelope(client.post(f"{url}/v1/search", content=body(), headers=JSON), 413)
    assert client.get(f"{url}/readyz").status_code == 200


# --- answers ---


def test_plain_answer_cites_the_sentence_that_supports_it(serve, client):
    url, _ = serve(TRUE)
    answer = client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION}).json()
    assert answer["kind"] == "generated"
    assert answer["text"] == answer["draft"] == TRUE.strip()
    assert answer["finish_reason"] == "stop"
    (sentence,) = answer["sentences"]
    citation = sentence["citation"]
    assert sentence["supported"]
    assert citation["text"] == "The interpreter lock became optional in October 2024."
    assert TEXT[citation["doc_id"]][citation["start"] : citation["end"]] == citation["text"]


def test_a_servers_reader_adds_the_short_answer(serve, client, reader):
    url, _ = serve(TRUE, reader=Reader(reader))
    found = client.post(f"{url}/v1/answer", json={"question": QUESTION}).json()
    span = found["span"]
    assert span["text"] == "October 2024"
    assert TEXT["gil"][span["start"] : span["end"]] == span["text"]
    assert 0 < span["probability"] <= 1
    with client.stream("POST", f"{url}/v1/answer", json={"question": QUESTION, "stream": True}) as response:
        assert [json.loads(data) for _, data in sse(response)][-1] == found


def test_stream_gives_sources_then_tokens_then_the_plain_answer(serve, client):
    url, _ = serve(MIXED)
    plain = client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION}).json()
    with client.stream(
        "POST", f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION, "stream": True}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [(name, json.loads(data)) for name, data in sse(response)]
    names = [name for name, _ in events]
    assert names == ["sources"] + ["token"] * (len(events) - 2) + ["done"]
    assert len(events) > 5
    assert events[0][1] == {"hits": plain["hits"], "n_prompt_hits": plain["n_prompt_hits"]}
    assert "".join(data["text"] for _, data in events[1:-1]).strip() == plain["draft"]
    assert events[-1][1] == plain
    assert [s["supported"] for s in plain["sentences"]] == [True, False]
    assert plain["sentences"][1]["citation"] is None
    assert plain["text"] == plain["sentences"][0]["text"] == "The lock became optional in October 2024!"


def test_an_unsupported_draft_is_not_the_answer(serve, client):
    url, _ = serve(" Spain won against France.")
    answer = client.post(
        f"{url}/v1/answer", json={"answer": "generate", "question": "Who won the 2010 World Cup?"}
    ).json()
    assert answer["kind"] == "not_found"
    assert answer["text"] == "The corpus does not say."
    assert answer["draft"] == "Spain won against France."
    assert len(answer["hits"]) == 4
    chinese = client.post(
        f"{url}/v1/answer", json={"answer": "generate", "question": "谁赢了世界杯？"}
    ).json()
    assert chinese["text"] == "资料里没有答案。"


def test_max_tokens_is_named_with_the_largest_value_that_fits(serve, client):
    url, _ = serve(TRUE)
    body = {"answer": "generate", "question": QUESTION, "max_tokens": 5000}
    message = check_envelope(client.post(f"{url}/v1/answer", json=body), 422)["message"]
    assert message.startswith("max_tokens is 5000,")
    largest = int(re.search(r"use at most (\d+)\.$", message)[1])
    refused = client.post(f"{url}/v1/answer", json=body | {"max_tokens": largest + 1})
    assert f"use at most {largest}." in check_envelope(refused, 422)["message"]
    assert client.post(f"{url}/v1/answer", json=body | {"max_tokens": largest}).status_code == 200


def test_an_answer_without_hits_is_not_generated(serve, client):
    url, _ = serve(TRUE)
    body = {"answer": "generate", "question": "Zyzzyva?", "mode": "lexical"}
    answer = client.post(f"{url}/v1/answer", json=body).json()
    assert (answer["kind"], answer["draft"], answer["hits"]) == ("not_found", "", [])
    with client.stream("POST", f"{url}/v1/answer", json=body | {"stream": True}) as response:
        assert [name for name, _ in sse(response)] == ["sources", "done"]


def test_an_engine_that_fails_ends_the_stream_with_an_error(serve, client, tokenizer):
    model = random_gpt()
    model.wte.weight.data.fill_(float("nan"))
    url, _ = serve(model)
    body = {"answer": "generate", "question": QUESTION, "stream": True}
    with client.stream("POST", f"{url}/v1/answer", json=body) as response:
        *_, (name, data) = sse(response)
    assert name == "error"
    assert json.loads(data)["error"]["code"] == "generation_failed"
    response = client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION})
    check_envelope(response, 500, "generation_failed")
    assert client.get(f"{url}/readyz").status_code == 200  # one request failed, not the server


# --- health and pages ---


def test_the_generator_goes_on_after_a_failed_step(serve, client, monkeypatch, caplog):
    url, app = serve(TRUE)
    assert client.get(f"{url}/livez").json() == {"status": "alive"}
    assert client.get(f"{url}/readyz").json() == {"status": "ready"}
    engine = app.state.service.worker.engine
    step = engine.step

    def broken():
        monkeypatch.setattr(engine, "step", step)
        step()  # the request has a slot with cached tokens
        raise RuntimeError("the engine's own bug")

    expected = client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION}).json()
    for stream in (False, True):
        monkeypatch.setattr(engine, "step", broken)
        failed = client.post(
            f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION, "stream": stream}
        )
        assert "The generation failed: the engine's own bug" in failed.text
        if not stream:
            check_envelope(failed, 500, "generation_failed")
        assert "RuntimeError: the engine's own bug" in caplog.text
        assert client.get(f"{url}/readyz").status_code == 200
        assert (
            client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION}).json()
            == expected
        )


def test_search_takes_an_offset_few_passages_of_a_document_and_diversity(serve, client):
    url, _ = serve("x")

    def found(**options):
        reply = client.post(
            f"{url}/v1/search", json={"query": "a cat and the lock", "mode": "dense", **options}
        )
        return [hit["doc_id"] for hit in reply.json()["hits"]]

    every = found()
    assert found(offset=1, k=2) == every[1:3]
    assert sorted(found(per_document=1, diversity=0.9)) == sorted(every)
    assert found(filter={"$not": {"doc_id": every[0]}}) == every[1:]


def test_search_explains_scores_and_reranks(serve, client):
    url, _ = serve("x")

    def found(**options):
        reply = client.post(f"{url}/v1/search", json={"query": "a cat and the lock", **options})
        return reply.json()["hits"]

    plain, hits = found(), found(explain=True, rerank=2)
    assert {hit["explanation"] for hit in plain} == {hit["reranked"] for hit in plain} == {None}
    assert {hit["doc_id"] for hit in hits[:2]} == {hit["doc_id"] for hit in plain[:2]}
    assert hits[0]["reranked"] >= hits[1]["reranked"]
    for hit in hits:
        (dense, *_), (lexical, *_) = hit["explanation"]["dense"], hit["explanation"]["lexical"]
        assert dense + lexical == pytest.approx(hit["score"], abs=1e-5)
    assert client.post(f"{url}/v1/search", json={"query": "x", "rerank": 0}).status_code == 422


def test_search_works_without_the_generator(serve, client, monkeypatch):
    url, app = serve(TRUE)
    engine = app.state.service.worker.engine

    def broken():
        raise RuntimeError("the engine's own bug")

    monkeypatch.setattr(engine, "step", broken)
    for _ in range(MAX_FAILURES):
        assert client.get(f"{url}/readyz").status_code == 200
        response = client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION})
        check_envelope(response, 500, "generation_failed")
    error = check_envelope(
        client.post(f"{url}/v1/answer", json={"answer": "generate", "question": QUESTION}), 503, "unavailable"
    )
    assert "Restart the server" in error["message"]
    assert check_envelope(client.get(f"{url}/readyz"), 503, "unavailable") == error
    assert client.get(f"{url}/livez").status_code == 200
    search = client.post(f"{url}/v1/search", json={"query": "interpreter lock"}).json()
    assert search["hits"][0]["doc_id"] == "gil"
    embedding = {"model": "tiny-embedder", "input": "a cat"}
    assert client.post(f"{url}/v1/embeddings", json=embedding).status_code == 200
    assert client.get(f"{url}/v1/models").status_code == 200


def test_pages_load_nothing_from_other_hosts(serve, client):
    url, _ = serve(TRUE)
    for path in ("/", "/docs", "/static/page.js", "/static/style.css"):
        response = client.get(url + path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert "http://" not in response.text
        assert "https://" not in response.text
        assert "innerHTML" not in response.text
    paths = client.get(f"{url}/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/search", "/v1/answer", "/v1/completions", "/v1/chat/completions", "/readyz"}


def test_concurrent_clients_get_the_same_answers_as_alone(serve):
    url, _ = serve(random_gpt(seed=3), max_running=2)
    questions = [QUESTION, "What does a cat hunt at dusk and in the dark?"]

    def body(question):
        return {"answer": "generate", "question": question, "temperature": 1.0, "seed": 7, "max_tokens": 40}

    with httpx.Client(timeout=60) as client:
        alone = [client.post(f"{url}/v1/answer", json=body(q)).json() for q in questions]

    async def both():
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(client.post(f"{url}/v1/answer", json=body(q)) for q in questions))

    together = [response.json() for response in asyncio.run(both())]
    assert [a["draft"] for a in together] == [a["draft"] for a in alone]
    assert alone[0]["draft"] != alone[1]["draft"]
