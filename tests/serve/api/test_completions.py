"""Completions and chat with OpenAI's own client, over a socket."""

import asyncio
import threading

import httpx
import openai
import pytest

from tests.serve.conftest import HELLO, SAYS, chat, complete, random_gpt, speaker

# --- chat ---


def test_chat_plain(api, tokenizer):
    response = chat(api, temperature=0)
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


# --- completions ---


def test_completion_of_text_and_of_token_ids(api, tokenizer):
    ids = tokenizer.encode("assistant:")
    for prompt in ("assistant:", ids, [ids], ["assistant:"]):
        response = complete(api, prompt, temperature=0)
        (choice,) = response.choices
        assert (response.object, choice.text, choice.finish_reason) == ("text_completion", SAYS, "stop")
        assert choice.logprobs is None
        assert response.usage.prompt_tokens == len(ids)
        # and the end-of-text token
        assert response.usage.completion_tokens == len(tokenizer.encode(SAYS)) + 1
        assert response.usage.total_tokens == len(ids) + len(tokenizer.encode(SAYS)) + 1


def test_special_tokens_in_a_prompt_stay_text(api, tokenizer):
    text = "a <|endoftext|> b"
    assert complete(api, text, max_tokens=1).usage.prompt_tokens == len(tokenizer.encode(text)) > 5


def test_completion_stream(api, tokenizer):
    options = {"temperature": 0, "max_tokens": 4, "stream": True}
    *pieces, usage = complete(api, **options, stream_options={"include_usage": True})
    assert "".join(p.choices[0].text for p in pieces) == " It became optional in"
    assert [p.choices[0].finish_reason for p in pieces] == [None] * 4 + ["length"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], 4)
    assert all(p.usage is None for p in pieces)
    assert len({p.id for p in [*pieces, usage]}) == 1
    assert {p.object for p in pieces} == {"text_completion"}
    assert complete(api, temperature=0, stop="Oct").choices[0].text == " It became optional in "


def test_without_max_tokens_the_context_is_the_limit(serve, tokenizer):
    url, _ = serve(speaker(tokenizer, " on and", for_ever=True), context=100)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        for response in (complete(api, temperature=0), chat(api, temperature=0)):
            assert response.choices[0].finish_reason == "length"
            assert response.usage.total_tokens == 100
        n_prompt = response.usage.prompt_tokens
        fits = chat(api, temperature=0, max_tokens=100 - n_prompt)
        assert fits.usage.total_tokens == 100
        with pytest.raises(openai.BadRequestError, match=f"{n_prompt} tokens.* context holds 100"):
            chat(api, max_tokens=101 - n_prompt)


# --- several choices ---


def texts(response):
    return [choice.text if hasattr(choice, "text") else choice.message.content for choice in response.choices]


def streamed(chunks):
    """The texts and their finish reasons, both sorted by index."""
    written, reasons = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            assert choice.index not in reasons  # nothing after the end
            written[choice.index] = written.get(choice.index, "") + (piece or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert written.keys() == reasons.keys()
    return [written[i] for i in sorted(written)], [reasons[i] for i in sorted(reasons)]


@pytest.mark.parametrize("ask", [chat, complete])
def test_choices_equal_separate_requests_with_their_seeds(random_api, ask):
    options = {"temperature": 1.0, "max_tokens": 9}
    together = ask(random_api, n=6, seed=5, **options)
    assert [choice.index for choice in together.choices] == list(range(6))
    alone = [texts(ask(random_api, seed=5 + i, **options))[0] for i in range(6)]
    assert texts(together) == alone
    assert len(set(alone)) == 6
    one = ask(random_api, seed=5, **options)
    assert together.usage.prompt_tokens == one.usage.prompt_tokens  # counted once
    assert together.usage.completion_tokens == 6 * 9
    assert streamed(ask(random_api, n=6, seed=5, stream=True, **options)) == (alone, ["length"] * 6)


def test_choices_of_several_prompts_are_returned_in_order(random_api, tokenizer):
    prompts = ["a cat", "the lock"]
    options = {"temperature": 0, "max_tokens": 7}
    alone = [complete(random_api, prompt, **options) for prompt in prompts]
    for given in (prompts, [tokenizer.encode(prompt) for prompt in prompts]):
        together = complete(random_api, given, n=2, **options)
        expected = [texts(alone[0])[0]] * 2 + [texts(alone[1])[0]] * 2
        assert texts(together) == expected
        assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
        assert streamed(complete(random_api, given, n=2, stream=True, **options))[0] == expected
    assert texts(alone[0]) != texts(alone[1])


def test_more_choices_than_the_limit_are_refused_before_tokenising(serve):
    url, app = serve(SAYS, max_requests=12)
    read = threading.Event()  # until it is set, the thread that tokenises prompts is busy
    busy = threading.Thread(target=lambda: asyncio.run(app.state.service.search.run(read.wait, 60)))
    busy.start()
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as api:
            with pytest.raises(
                openai.BadRequestError, match="asks for 13 texts; this server generates up to 12"
            ):
                chat(api, n=13)
            with pytest.raises(openai.BadRequestError, match="asks for 14 texts"):
                complete(api, ["x"] * 7, n=2)
            with pytest.raises(openai.BadRequestError, match="asks for 1000000000000 texts"):
                complete(api, "x", n=10**12)  # a list of that many would not fit into memory
    finally:
        read.set()
        busy.join()


def test_a_repeated_prompt_is_taken_from_the_prefix_cache(random_api):
    prompt = "the interpreter lock became optional " * 8
    first = complete(random_api, prompt, max_tokens=3).usage
    again = complete(random_api, prompt, max_tokens=3, n=3).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    assert 0.8 * again.prompt_tokens < again.prompt_tokens_details.cached_tokens < again.prompt_tokens
    assert first.prompt_tokens == again.prompt_tokens


# --- sampling ---


@pytest.mark.parametrize("ask", [chat, complete])
def test_every_parameter_reaches_the_sampler(random_api, ask, tokenizer):
    def text(**options):
        return texts(ask(random_api, **({"max_tokens": 8, "seed": 1} | options)))[0]

    greedy = text(temperature=0)
    hot = text(temperature=3.0)
    assert hot != greedy
    assert text(temperature=3.0, top_p=1e-6) == greedy
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert text(temperature=3.0, extra_body=extra) == greedy
    assert text(temperature=3.0, logit_bias={"31": 100}) == tokenizer.decode([31]) * 8
    pair = {"logit_bias": {"31": 2, "32": 1.9}, "extra_body": {"repetition_penalty": 100.0}}
    # the penalty applies to 31 after its first use
    assert text(temperature=0, **pair).startswith(tokenizer.decode([31, 32]))
    assert text(temperature=0, stop=[tokenizer.decode([31])], logit_bias={"31": 100}) == ""


SHARED = "n stream stream_options top_p max_tokens stop seed logit_bias top_k min_p repetition_penalty logprobs user"
PENALTIES = "frequency_penalty presence_penalty"
CHAT = (
    "max_completion_tokens tools top_logprobs tool_choice parallel_tool_calls functions function_call response_format "
    "modalities audio prediction web_search_options moderation reasoning_effort verbosity service_tier store metadata "
    "safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention"
)


def test_null_is_the_default_and_parameters_without_effect_are_accepted(api):
    body = {"model": "tiny-gpt", "temperature": 0}
    shared = {"n": 1, "stop": [], "logit_bias": {}, "top_k": -1, "presence_penalty": 0.0, "logprobs": False}
    neutral = {
        "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": [], "function_call": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "none", "top_logprobs": 0,
        "verbosity": "medium", "service_tier": "auto", "store": False, "metadata": {"a": "b"}, "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "p", "prompt_cache_options": {},
        "prompt_cache_retention": "24h", "stream_options": {"include_usage": False, "include_obfuscation": False},
    }  # fmt: skip
    nulls = dict.fromkeys(f"{SHARED} {PENALTIES}".split())
    for extra in (nulls | dict.fromkeys(CHAT.split()), shared | neutral, neutral | {"tool_choice": "auto"}):
        plain = api.chat.completions.create(messages=HELLO, **body, extra_body=extra)
        assert plain.choices[0].message.content == SAYS
    quiet = {"echo": False, "suffix": "", "best_of": 1, "logprobs": None}
    for extra in (nulls | dict.fromkeys(["echo", "suffix", "best_of"]), shared | quiet):
        assert api.completions.create(prompt="assistant:", **body, extra_body=extra).choices[0].text == SAYS


def test_a_message_that_the_client_dumps_is_accepted_as_history(api):
    first = chat(api, temperature=0).choices[0].message
    assert set(first.model_dump()) >= {"refusal", "annotations", "audio", "function_call", "tool_calls"}
    longer = [
        chat(api, temperature=0, messages=[*HELLO, answer, *HELLO]).model_dump(
            exclude={"id", "created", "usage"}
        )
        for answer in (
            {"role": "assistant", "content": SAYS},
            first,
            first.model_dump(),
            first.model_dump() | {"annotations": [], "tool_calls": [], "name": "zhizhi"},
        )
    ]
    assert longer == [longer[0]] * 4


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_model_that_fails_ends_the_stream_with_an_error(serve, ask):
    model = random_gpt()
    model.wte.weight.data.fill_(float("nan"))
    url, _ = serve(model)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        with pytest.raises(openai.APIError, match="best logit is nan"):
            list(ask(api, n=2, stream=True))
        with pytest.raises(openai.InternalServerError, match="best logit is nan"):
            ask(api, n=2)


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "param", "says"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"presence_penalty": 0.5}, "presence_penalty", "should be 0"),
        ({"frequency_penalty": -1}, "frequency_penalty", "should be 0"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ""}, None, "stop"),
        ({"stop": [3]}, "stop", "valid string"),
        ({"seed": -1}, None, "seed is -1"),
        ({"logit_bias": {"50257": 1}}, None, "logit_bias names token 50257; expected ids from 0 to 50256"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "integer"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "less than or equal to 100"),
        ({"extra_body": {"top_k": -2}}, "top_k", "greater than or equal to -1"),
        ({"extra_body": {"repetition_penalty": 101}}, None, "repetition_penalty is 101"),
        ({"extra_body": {"min_p": 1.5}}, "min_p", "less than or equal to 1"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty", "greater than 0"),
        ({"extra_body": {"beam_width": 3}}, "beam_width", "not permitted"),
    ],
)
@pytest.mark.parametrize("ask", [chat, complete])
def test_invalid_parameters_are_400_and_named(api, ask, arguments, param, says):
    with pytest.raises(openai.BadRequestError, match=says) as raised:
        ask(api, **arguments)
    assert raised.value.type == "invalid_request_error"
    assert raised.value.param == param or (param and raised.value.param.startswith(f"{param}."))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs is 2 without logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "role"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "9.* tokens.*the context holds 4096"),
        ({"messages": [{"role": "user", "content": "word " * 20000}] * 6}, "conversation has 600000 char"),
    ],
)
def test_chat_errors_are_400(api, arguments, says):
    with pytest.raises(openai.BadRequestError, match=says):
        chat(api, **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "at least 1 item"),
        ({"prompt": ["x", ""]}, "prompt is empty"),
        ({"prompt": [[1], []]}, "prompt is empty"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "x" * 99_999 + " " * 9}, "at most 100000 characters"),
        ({"prompt": [1, 99999999]}, "token ids from 1 to 99999999; expected 0 to 50256"),
        ({"prompt": "word " * 9000}, "tokens.*the context holds 4096"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_completion_errors_are_400(api, arguments, says):
    with pytest.raises(openai.BadRequestError, match=says):
        complete(api, **arguments)


def test_an_unknown_model_is_404(api):
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        api.completions.create(model="gpt-5", prompt="x")


def test_half_a_surrogate_pair_is_refused(serve):
    url, _ = serve(SAYS)
    body = '{"model": "tiny-gpt", "prompt": "\\ud800"}'
    response = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "unicode" in response.json()["error"]["message"]
