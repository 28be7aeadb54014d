"""Chats that are answered from the index, with OpenAI's own client, over a socket."""

import openai
import pytest

from gpt_core.generation.engine import Engine
from index import Document, Index
from serve import create_app
from serve.answers.answer import NOT_FOUND
from serve.api.conversation import CITATION_FIELDS
from tests.serve.conftest import DOCUMENTS, QUESTION, SAYS, serving, speaker

TEXT = {d.id: d.text for d in DOCUMENTS}
FOLLOW_UP = "And since when?"
# So many that the words of the other documents are rare ones
OTHERS = [
    Document(f"store{i}", f"Item {i} is kept in the southern store. 第{i}号仓库存放木材。")
    for i in range(200)
]


@pytest.fixture(scope="module")
def url(tmp_path_factory, encoder, tokenizer):
    with Index.create(tmp_path_factory.mktemp("chat") / "index", encoder) as index:
        index.add([*DOCUMENTS, *OTHERS])
        app = create_app(index, Engine(speaker(tokenizer, SAYS), tokenizer), generator_name="tiny-gpt")
        with serving(app) as url:
            yield url


@pytest.fixture
def api(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        yield api


def user(*texts):
    return [{"role": "user", "content": text} for text in texts]


def ask(api, messages, model="zhizhi-rag", **options):
    return api.chat.completions.create(model=model, messages=messages, **options)


@pytest.mark.parametrize(
    "options", [{}, {"model": "tiny-gpt", "extra_body": {"retrieval": True}}], ids=["model", "retrieval"]
)
def test_a_question_is_answered_in_quotes(api, url, client, encoder, options):
    system = [{"role": "system", "content": "Be brief."}]
    response = ask(api, system + user(QUESTION), **options)
    expected = client.post(f"{url}/v1/answer", json={"question": QUESTION}).json()
    (choice,) = response.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert choice.message.content == expected["text"]
    citations = choice.message.model_extra["citations"]
    assert citations == [{name: quote[name] for name in CITATION_FIELDS} for quote in expected["quotes"]]
    assert citations[0]["text"] == "The interpreter lock became optional in October 2024."
    for cited in citations:
        assert TEXT[cited["doc_id"]][cited["start"] : cited["end"]] == cited["text"]
    assert response.usage.prompt_tokens == encoder.count_tokens([QUESTION])[0]
    assert response.usage.completion_tokens == len(encoder.tokenizer.encode(expected["text"]))
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens


def test_a_stream_has_the_text_and_the_citations_in_its_last_chunk(api):
    plain = ask(api, user(QUESTION))
    usage = {"include_usage": True}
    *chunks, last, after = list(ask(api, user(QUESTION), stream=True, stream_options=usage))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content for c in chunks) == plain.choices[0].message.content
    assert {c.choices[0].finish_reason for c in chunks} == {None}
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.model_extra["citations"] == plain.choices[0].message.model_extra["citations"]
    assert (after.choices, after.usage) == ([], plain.usage)
    assert len({c.id for c in [*chunks, last, after]}) == 1
    assert list(ask(api, user(QUESTION), stream=True))[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("questions", "quote", "alone"),
    [
        ([QUESTION, FOLLOW_UP], "The interpreter lock became optional in October 2024.", NOT_FOUND["en"]),
        (["北京有多少人口？", "有多少？"], "它有两千多万人口，长城在它的北边。", NOT_FOUND["zh"]),
    ],
    ids=["en", "zh"],
)
def test_a_follow_up_is_searched_with_the_question_before_it(api, encoder, questions, quote, alone):
    response = ask(api, user(*questions))
    assert response.usage.prompt_tokens == encoder.count_tokens([" ".join(questions)])[0]
    assert response.choices[0].message.model_extra["citations"][0]["text"] == quote
    message = ask(api, user(questions[1])).choices[0].message
    assert (message.content, message.model_extra["citations"]) == (alone, [])


def test_a_question_that_stands_alone_is_answered_as_if_it_were_the_first(api):
    later = ask(api, user("What does a cat hunt at dusk?", QUESTION))
    first = ask(api, user(QUESTION))
    assert (later.choices, later.usage) == (first.choices, first.usage)


def test_an_earlier_question_that_does_not_fit_the_embedder_is_left_out(api, encoder):
    fits = "cat " * (encoder.max_tokens - encoder.count_tokens([f" {FOLLOW_UP}"])[0])
    for question, joined in ((fits, True), (f"cat {fits}", False)):
        n_tokens = ask(api, user(question, FOLLOW_UP)).usage.prompt_tokens
        assert n_tokens == (encoder.max_tokens if joined else encoder.count_tokens([FOLLOW_UP])[0])


def test_a_message_that_a_client_dumps_is_accepted_as_history(api):
    first = ask(api, user(QUESTION)).choices[0].message
    assert first.model_dump()["citations"]
    answers = [{"role": "assistant", "content": first.content}, first, first.model_dump()]
    later = [
        ask(api, [*user(QUESTION), answer, *user(FOLLOW_UP)]).model_dump(exclude={"id", "created"})
        for answer in answers
    ]
    assert later == [later[0]] * 3
    generated = ask(api, [*user(QUESTION), first.model_dump(), *user("x")], model="tiny-gpt", temperature=0)
    assert generated.choices[0].message.content


def test_parameters_of_generation_are_ignored(api):
    ignored = {
        "temperature": 2, "top_p": 0.1, "max_tokens": 1, "stop": ["a"], "seed": 3, "logprobs": True, "n": 1,
        "logit_bias": {"31": 100}, "extra_body": {"top_k": 1, "retrieval": True},
    }  # fmt: skip
    assert ask(api, user(QUESTION), **ignored).choices == ask(api, user(QUESTION)).choices


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        (user(QUESTION), {"n": 2}, "n is 2, but an answer from the index is one text; use 1"),
        ([{"role": "system", "content": "x"}], {}, "There is no message with the role user"),
        (user(" "), {}, "The question is empty"),
        (user("cat " * 1100), {}, "shorten it"),
        (user(QUESTION), {"extra_body": {"retrieval": "maybe"}}, "retrieval"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_errors_are_400(api, messages, options, says, stream):
    with pytest.raises(openai.BadRequestError, match=says):
        ask(api, messages, stream=stream, **options)


def test_the_name_is_listed_and_another_one_is_404(api):
    assert [model.id for model in api.models.list()] == ["tiny-gpt", "tiny-embedder", "zhizhi-rag"]
    assert api.models.retrieve("zhizhi-rag").id == "zhizhi-rag"
    with pytest.raises(openai.NotFoundError, match="'gpt-5' is not served here; use 'tiny-gpt'"):
        ask(api, user(QUESTION), model="gpt-5", extra_body={"retrieval": True})
    with pytest.raises(openai.NotFoundError, match="'zhizhi-rag' is not served here; use 'tiny-gpt'"):
        api.completions.create(model="zhizhi-rag", prompt="x")
