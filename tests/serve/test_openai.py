"""With OpenAI's own client."""

import base64

import numpy as np
import openai
import pytest

from tests.serve.conftest import random_gpt

SAYS = " It became optional in October 2024."
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def api(serve):
    url, _ = serve(SAYS)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        yield api


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
    by_default = api.embeddings.create(
        model="tiny-embedder", input=texts
    )  # the client asks for base64 itself
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
        ({"input": "x", "dimensions": 7}, "cannot be shortened"),
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


def test_chat_plain(api, tokenizer):
    response = api.chat.completions.create(model="tiny-gpt", messages=HELLO, temperature=0)
    (choice,) = response.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == SAYS
    assert choice.finish_reason == "stop"
    assert response.usage.prompt_tokens == len(tokenizer.chat(HELLO))
    assert response.usage.completion_tokens == len(tokenizer.encode(SAYS)) + 1  # and the end-of-text token
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        }
    ]
    as_parts = api.chat.completions.create(model="tiny-gpt", messages=parts + HELLO, temperature=0)
    as_system = [{"role": "system", "content": "Be brief."}]
    assert as_parts.usage.prompt_tokens == len(tokenizer.chat(as_system + HELLO))


def test_chat_stream(api):
    stream = api.chat.completions.create(
        model="tiny-gpt",
        messages=HELLO,
        temperature=0,
        max_completion_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    first, *middle, last, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == " It became optional in"
    assert last.choices[0].finish_reason == "length"
    assert all(chunk.choices[0].finish_reason is None for chunk in middle)
    assert usage.choices == []
    assert usage.usage.completion_tokens == 4
    assert len({chunk.id for chunk in [first, *middle, last, usage]}) == 1


def test_chat_stops_at_a_stop_string_without_it(api):
    response = api.chat.completions.create(
        model="tiny-gpt", messages=HELLO, temperature=0, stop=["in Oct", "zzz"]
    )
    assert response.choices[0].message.content == " It became optional "
    assert response.choices[0].finish_reason == "stop"


def test_chat_seed_gives_the_same_text_again(serve):
    url, _ = serve(random_gpt())
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:

        def text(seed):
            options = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 12, "seed": seed}
            response = api.chat.completions.create(model="tiny-gpt", messages=HELLO, **options)
            return response.choices[0].message.content

        assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"n": 2}, "n:"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra_body": {"beam_width": 3}}, "beam_width"),
        ({"temperature": -1}, "temperature"),
        ({"stop": ""}, "stop"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "role"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "shorten the prompt"),
    ],
)
def test_chat_errors_are_400(api, arguments, names):
    with pytest.raises(openai.BadRequestError, match=names):
        api.chat.completions.create(**({"model": "tiny-gpt", "messages": HELLO} | arguments))
