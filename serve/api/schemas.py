"""Request schemas: search and answer, and OpenAI's embeddings, completions and chat.

Unknown keys are errors. OpenAI parameters that are not supported are accepted only with the value that has no effect;
parameters that only label a request are accepted and ignored. The validation of a list ends at its first error:
pydantic otherwise makes an error object for each item, of which a small body can have very many.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from gpt_core.common.errors import InputError
from gpt_core.generation.sampling import SamplingParams
from index.search.search import Mode
from serve.answers.answer import ANSWER_TOKENS

Text = Annotated[str, Field(max_length=100_000)]
TokenId = Annotated[int, Field(strict=True)]  # not true, not "5"
Empty = Annotated[list[Any], Field(max_length=0)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SearchRequest(_Request):
    """A search; `filter`, `offset`, `per_document`, `diversity` and `explain` as in `Index.search`.

    `rerank`: number of best hits that the GPT of the index's embedder orders again; each takes a forward.
    """

    query: Text
    k: int = Field(10, ge=1, le=1000)
    mode: Mode = "hybrid"
    filter: dict[str, Any] | None = None
    offset: int = Field(0, ge=0, le=1000)
    per_document: int | None = Field(None, ge=1)
    diversity: float = Field(0.0, ge=0, le=1)
    explain: bool = Field(False, strict=True)
    rerank: int | None = Field(None, ge=1, le=100)


class AnswerRequest(_Request):
    """A question.

    `answer`: "quote" for sentences of the documents; "generate" for a text of the generator, of which only sentences
    that a passage supports are kept. `k` passages are retrieved; those that fit go into the generator's prompt, all can
    be quoted and cited. `answered` and `perhaps` are the least probabilities of an answer, and of "the corpus may say".
    `second_stage` orders the best four sentences again by the embedder's GPT, which takes about a second.
    """

    question: Text
    answer: Literal["quote", "generate"] = "quote"
    k: int | None = Field(None, ge=1, le=20)
    mode: Mode = "hybrid"
    filter: dict[str, Any] | None = None
    answered: float | None = Field(None, ge=0, le=1)
    perhaps: float | None = Field(None, ge=0, le=1)
    second_stage: bool = False
    max_tokens: int = Field(ANSWER_TOKENS, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int | None = None
    stream: bool = False


class EmbeddingsRequest(_Request):
    """OpenAI's embeddings request, with `input_type` to choose the embedder's query or document prompt."""

    model: str
    input: Text | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=2048)]
    input_type: Literal["query", "document"] = "document"
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_token_ids(cls, value: Any) -> Any:
        """Clients such as LangChain's send ids of OpenAI's tokenizers, which would be read as other words."""
        if isinstance(value, list) and value and type(value[0]) in (int, list):
            raise PydanticCustomError(
                "token_ids",
                "expected text, since ids of another tokenizer cannot be told from this embedder's; LangChain's "
                "OpenAIEmbeddings sends text with check_embedding_ctx_length=False.",
            )
        return value


class TextPart(_Request):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Request):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=2048)]
    name: str | None = None
    # what a message of a response has beside its content, so that the response can be sent back as history
    refusal: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None
    citations: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None  # ignored


class StreamOptions(_Request):
    """OpenAI's stream options."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None  # not supported at True


class ResponseFormat(_Request):
    """Plain text only."""

    type: Literal["text"]


class _GenerationRequest(_Request):
    """Parameters common to OpenAI's completions and chat, and vLLM's additional ones."""

    model: str
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: Text | Annotated[list[Text], Field(fail_fast=True, max_length=64)] | None = None
    seed: int | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    top_k: int | None = Field(None, ge=-1)  # as in vLLM, -1 means off, like 0
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    # no effect at these values, not supported at others
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    # labels
    user: str | None = None

    def params(self) -> SamplingParams:
        """Sampling parameters of the first choice; without max_tokens, generation is limited by the context only."""
        return SamplingParams(
            max_new_tokens=self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=self.logit_bias or {},
        )


class CompletionRequest(_GenerationRequest):
    """OpenAI's completion request: a text, token ids, or a list of either, without a chat template."""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1)]
        | Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(fail_fast=True, min_length=1)
        ]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    # no effect at these values, not supported at others
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    def params(self) -> SamplingParams:
        """Sampling parameters with the requested log-probabilities."""
        return replace(super().params(), logprobs=self.logprobs)


class ChatRequest(_GenerationRequest):
    """OpenAI's chat completion request; `retrieval`: answer the user's last message from the index."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=2048)
    retrieval: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # no effect at these values, not supported at others
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None  # without tools there is nothing to call
    functions: Empty | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    # labels
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    def params(self) -> SamplingParams:
        """Sampling parameters with the requested log-probabilities and `max_completion_tokens`.

        Raises:
            InputError: for top_logprobs above 0 without logprobs.
        """
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs is {self.top_logprobs} without logprobs; set logprobs to true.")
        return replace(
            super().params(),
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error envelope, used by every endpoint."""

    error: ErrorBody


OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "Invalid input"},
    404: {"model": ErrorResponse, "description": "The model is not served"},
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "The response; with `stream`, server-sent events",
    },
}
