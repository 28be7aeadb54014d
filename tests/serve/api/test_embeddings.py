"""Models and embeddings with OpenAI's own client."""

import base64

import numpy as np
import openai
import pytest

from tests.serve.conftest import HELLO, SAYS


def test_models(api):
    assert [model.id for model in api.models.list()] == ["tiny-gpt", "tiny-embedder"]


def test_embeddings_of_texts_and_token_ids_in_both_encodings(api, encoder, tokenizer):
    texts = ["a cat", "the interpreter lock"]
    expected = encoder.encode_document(texts)
    ids = [tokenizer.encode(text) for text in texts]
    for given, rows in ((texts, 2), (ids, 2), (texts[0], 1), (ids[0], 1)):
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


def test_many_embeddings_come_in_order(api, encoder):
    texts = [f"text number {i}" for i in range(100)]
    response = api.embeddings.create(model="tiny-embedder", input=texts)
    np.testing.assert_allclose(
        [d.embedding for d in response.data], encoder.encode_document(texts), atol=1e-5
    )


def test_input_type_chooses_the_prompt(serve, index, monkeypatch):
    seen = []
    encoder = index.encoder
    monkeypatch.setattr(encoder, "encode_query", lambda texts: seen.append(texts) or encoder.encode(texts))
    url, _ = serve(SAYS)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        api.embeddings.create(model="tiny-embedder", input="x", extra_body={"input_type": "query"})
        assert seen == [["x"]]
        api.embeddings.create(model="tiny-embedder", input="x", extra_body={"input_type": "document"})
    assert seen == [["x"]]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"input": ""}, "input[0] is empty"),
        ({"input": ["x", ""]}, "input[1] is empty"),
        ({"input": "word " * 3000}, "split the text"),
        ({"input": [[1, 99999999]]}, "token ids outside"),
        ({"input": "x", "dimensions": 7}, "cannot be truncated"),
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
