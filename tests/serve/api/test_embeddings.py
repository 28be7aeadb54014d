"""Models and embeddings with OpenAI's own client."""

import asyncio
import base64
import threading
from functools import partial

import httpx
import numpy as np
import openai
import pytest

from embed import load_embedder
from embed.data.vectors import unit_length
from gpt_core.common.errors import InputError
from index import Index
from serve import create_app
from serve.work.loading import served_name
from tests.other_server import Other
from tests.serve.conftest import DOCUMENTS, HELLO, QUESTION, SAYS, serving, wait_until


def test_models(serve):
    url, _ = serve(SAYS, access={"generator_name": "owner/tiny-gpt"})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        listed = list(api.models.list())
        assert [model.id for model in listed] == ["owner/tiny-gpt", "tiny-embedder", "zhizhi-rag"]
        assert [api.models.retrieve(model.id) for model in listed] == listed
        with pytest.raises(openai.NotFoundError, match="gpt-5"):
            api.models.retrieve("gpt-5")


def test_a_folder_is_served_by_its_own_name(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in (str(folder), f"{folder}/", "../mine", "."):
        assert served_name(name) == "mine"
    for name in ("smollm2-135m-instruct", "owner/name"):
        assert served_name(name) == name


def test_embeddings_of_texts_in_both_encodings(api, encoder, tokenizer):
    texts = ["a cat", "the interpreter lock"]
    expected = encoder.encode_document(texts)
    ids = [tokenizer.encode(text) for text in texts]
    for given, rows in ((texts, 2), (texts[0], 1)):
        for encoding in ("float", "base64"):
            response = api.embeddings.create(model="tiny-embedder", input=given, encoding_format=encoding)
            vectors = [d.embedding for d in response.data]
            if encoding == "base64":
                vectors = [np.frombuffer(base64.b64decode(v), dtype="<f4") for v in vectors]
            np.testing.assert_allclose(vectors, expected[:rows], atol=1e-6)
            assert [d.index for d in response.data] == list(range(rows))
            assert response.usage.prompt_tokens == sum(len(i) for i in ids[:rows])
    # the client asks for base64 itself
    by_default = api.embeddings.create(model="tiny-embedder", input=texts)
    np.testing.assert_allclose([d.embedding for d in by_default.data], expected, atol=1e-6)


def test_an_index_elsewhere_can_be_built_with_this_servers_embedder(tmp_path, shared_url, encoder):
    """Its vectors come over the network; the index opens by the URL that it stored."""
    with Index.create(tmp_path / "index", load_embedder(f"{shared_url}/v1#tiny-embedder")) as index:
        index.add(DOCUMENTS)
    with Index.open(tmp_path / "index") as index, Index.create(tmp_path / "local", encoder) as local:
        local.add(DOCUMENTS)
        assert index.settings.embedder == f"{shared_url}/v1#tiny-embedder"
        for query in (QUESTION, "北京"):
            found, expected = (one.search(query, mode="dense") for one in (index, local))
            assert [hit.doc_id for hit in found] == [hit.doc_id for hit in expected]
            np.testing.assert_allclose([h.dense for h in found], [h.dense for h in expected], atol=1e-3)
    with pytest.raises(
        InputError, match="has the models tiny-gpt, tiny-embedder, zhizhi-rag; name one of them"
    ):
        load_embedder(f"{shared_url}/v1")


def test_an_embedder_elsewhere_that_fails_is_a_bad_gateway(tmp_path):
    def answer(body):
        return 200, {
            "data": [{"index": i, "embedding": [1, len(text)]} for i, text in enumerate(body["input"])]
        }

    with Other(answer, models={"data": [{"id": "m"}]}) as other:
        with Index.create(tmp_path / "index", load_embedder(other.url)) as index:
            index.add(DOCUMENTS)
            with serving(create_app(index, None)) as url:
                post = partial(httpx.post, f"{url}/v1/search", timeout=30)
                assert post(json={"query": "cats"}).status_code == 200
                other.reply = lambda body: (400, {})
                failed = post(json={"query": "cats"})
                assert (failed.status_code, failed.json()["error"]["code"]) == (502, "bad_gateway")
                assert post(json={"query": "cats", "mode": "lexical"}).status_code == 200
        other.reply = lambda body: (200, {"data": [{"index": i, "embedding": [-1, 9]} for i in range(3)]})
        with pytest.raises(InputError, match="which now gives other vectors; change the embedder"):
            Index.open(tmp_path / "index", load_embedder(other.url))


def test_many_embeddings_come_in_order(api, encoder):
    texts = [f"text number {i}" for i in range(100)]
    response = api.embeddings.create(model="tiny-embedder", input=texts)
    np.testing.assert_allclose(
        [d.embedding for d in response.data], encoder.encode_document(texts), atol=1e-5
    )


def test_input_type_chooses_the_prompt(serve, index, monkeypatch):
    encoder = index.encoder
    prompts = {"query": "find: ", "document": ""}
    monkeypatch.setattr(encoder, "prompt", prompts.__getitem__)
    url, _ = serve(SAYS)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        for name, prompt in prompts.items():
            response = api.embeddings.create(
                model="tiny-embedder", input="x", extra_body={"input_type": name}
            )
            expected = encoder.encode([prompt + "x"])
            np.testing.assert_allclose([response.data[0].embedding], expected, atol=1e-6)
            assert response.usage.prompt_tokens == encoder.count_tokens(["x"], prompt)[0]


def test_dimensions_truncates_and_normalises(api, encoder):
    whole = encoder.encode_document(["a cat"])
    for n_dims in (1, 5, 32):
        response = api.embeddings.create(model="tiny-embedder", input="a cat", dimensions=n_dims)
        np.testing.assert_allclose([response.data[0].embedding], unit_length(whole[:, :n_dims]), atol=1e-6)


def test_a_large_request_takes_one_place_and_lets_others_run_between_its_batches(serve, client, encoder):
    url, app = serve(SAYS, max_requests=2)
    search = app.state.service.search
    release = threading.Event()
    busy = threading.Thread(target=lambda: asyncio.run(search.run(release.wait, 60)))
    busy.start()
    wait_until(lambda: search.busy)
    texts = [f"text {i}" for i in range(100)]  # four batches
    body = {"model": "tiny-embedder", "input": texts}
    found = []
    large = threading.Thread(
        target=lambda: found.append(httpx.post(f"{url}/v1/embeddings", json=body, timeout=30))
    )
    large.start()
    try:
        wait_until(lambda: search._calls.qsize() == 1)
        refused = client.post(f"{url}/v1/embeddings", json=body | {"input": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    finally:
        release.set()
        busy.join()
        large.join()
    vectors = [row["embedding"] for row in found[0].json()["data"]]
    np.testing.assert_allclose(vectors, encoder.encode_document(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"input": ""}, "input[0] is empty"),
        ({"input": ["x", ""]}, "input[1] is empty"),
        ({"input": "word " * 3000}, "split the text"),
        ({"input": "x" * 200_000}, "at most 100000 characters"),
        ({"input": ["word " * 19_999] * 101}, "10099495 characters in 101 texts; send at most 2000000"),
        ({"input": [[1, 2]]}, "check_embedding_ctx_length=False"),
        ({"input": [1, 2]}, "check_embedding_ctx_length=False"),
        ({"input": [True]}, "valid string"),
        ({"input": "x", "dimensions": 33}, "dimensions is 33; expected 1 to 32"),
        ({"input": "x", "dimensions": 0}, "greater than or equal to 1"),
        ({"input": "x", "extra_body": {"trunc": True}}, "trunc"),
    ],
)
def test_embedding_errors_are_400(api, arguments, names):
    with pytest.raises(openai.BadRequestError, match=names.replace("[", r"\[")):
        api.embeddings.create(model="tiny-embedder", **arguments)


def test_an_unknown_model_is_404(api):
    with pytest.raises(openai.NotFoundError, match="gpt-5") as raised:
        api.chat.completions.create(model="gpt-5", messages=HELLO)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        api.embeddings.create(model="tiny-gpt", input="x")
