"""What comes over the wire: our own search and answer, and OpenAI's embeddings and chat.

An unknown key is an error everywhere. Of OpenAI's parameters, those that would change the result and are not supported
are taken only with the value that changes nothing, and those that only label a request are taken and left alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class ChatRequest(_Request):
    """OpenAI's chat completion."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    # no effect at these values, not supported at others
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Literal[0]] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    # labels
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None


class ErrorBody(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's envelope, on every endpoint."""

    error: ErrorBody
