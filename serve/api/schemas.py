"""What comes over the wire: our own search and answer, and OpenAI's embeddings, completions and chat.

An unknown key is an error everywhere. Of OpenAI's parameters, those that would change the result and are not supported
are taken only with the value that changes nothing, and those that only label a request are taken and left alone.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpt_core.common.errors import InputError
from gpt_core.generation.sampling import SamplingParams
from index.index import Mode

Text = Annotated[str, Field(max_length=100_000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Request):
    """`filter` is as in `Index.search`."""

    query: Text
    k: int = Field(10, ge=1, le=1000)
    mode: Mode = "hybrid"
    filter: dict[str, Any] | None = None


class AnswerRequest(_Request):
    """`k` passages are retrieved; those that fit the prompt are read, all can be cited."""

    question: Text
    k: int = Field(5, ge=1, le=20)
    mode: Mode = "hybrid"
    filter: dict[str, Any] | None = None
    max_tokens: int = Field(96, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int | None = None
    stream: bool = False


class EmbeddingsRequest(_Request):
    """OpenAI's, and `input_type`: which of the embedder's prompts is put before the text."""

    model: str
    input: Text | Annotated[list[Text] | list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    input_type: Literal["query", "document"] = "document"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class TextPart(_Request):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(_Request):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None


class StreamOptions(_Request):
    """OpenAI's."""

    include_usage: bool = False


class ResponseFormat(_Request):
    """Plain text only."""

    type: Literal["text"]


class _GenerationRequest(_Request):
    """What OpenAI's completions and chat have in common, and vLLM's names for what OpenAI has not."""

    model: str
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    top_k: int | None = Field(None, ge=-1)  # -1 is off, too, as vLLM has it
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    # no effect at these values, not supported at others
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    # labels
    user: str | None = None

    def params(self) -> SamplingParams:
        """The first choice's; without a number of tokens, text is generated as far as the context reaches."""
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
    """OpenAI's completion: text, token ids, or a list of either, to be continued as they are."""

    prompt: Text | Annotated[list[Text] | list[int] | list[list[int]], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)
    # no effect at these values, not supported at others
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    def params(self) -> SamplingParams:
        """With the log-probabilities asked for."""
        return replace(super().params(), logprobs=self.logprobs)


class ChatRequest(_GenerationRequest):
    """OpenAI's chat completion."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # no effect at these values, not supported at others
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    # labels
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    def params(self) -> SamplingParams:
        """With the log-probabilities asked for, and the newer name of `max_tokens`.

        Raises:
            InputError: for top_logprobs without logprobs.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError(f"top_logprobs is {self.top_logprobs} without logprobs; set logprobs to true.")
        return replace(
            super().params(),
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class ErrorBody(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's envelope, on every endpoint."""

    error: ErrorBody
