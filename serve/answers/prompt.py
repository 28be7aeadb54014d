"""Prompts: passages and a question, as token ids for a local generator or as chat messages for a remote one."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Hit

# Two passages of the default 256 tokens with their titles. With more passages a small model answers worse, even if the
# right passage is among them (docs/log.md, 2026-11-22), and the time to the first token grows.
MAX_PASSAGE_TOKENS = 560
SYSTEM = "You are a helpful assistant that answers questions about a text."
REQUEST = "According to the text: {question} Answer in a complete sentence."
# For a remote generator, whose tokenizer is unknown: 1,000 to 3,000 tokens. Ollama's default context is 4,096; it drops
# the beginning of a longer prompt without an error.
MAX_PASSAGE_CHARACTERS = 4000


@dataclass(frozen=True)
class Prompt:
    """The prompt of a local generator.

    Attributes:
        token_ids: the whole prompt.
        n_hits: number of hits in the prompt.
        n_cut: number of tokens truncated from a first hit that is too long.
    """

    token_ids: list[int]
    n_hits: int
    n_cut: int


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a remote generator; `n_cut` is a number of characters, the rest as for `Prompt`."""

    messages: list[dict[str, str]]
    n_hits: int
    n_cut: int


def build_prompt(
    question: str, hits: Sequence[Hit], tokenizer: Tokenizer, context: int, max_new_tokens: int
) -> Prompt:
    """Passages followed by the question; as a chat if the tokenizer has a chat template, else as plain text.

    The best hits are included in order as long as they fit in `MAX_PASSAGE_TOKENS` and in the context together with
    `max_new_tokens`. A first hit that is too long is truncated.

    Raises:
        InputError: if the question, or `max_new_tokens`, leaves no tokens for a passage.
    """
    ids = _render(question, [], tokenizer)
    n_around = len(ids)
    limit = min(n_around + MAX_PASSAGE_TOKENS, context - max_new_tokens)
    if limit <= n_around:
        largest = context - n_around - 1
        if largest > 0:
            raise InputError(
                f"max_tokens is {max_new_tokens}, but a context of {context} tokens has {largest} for the answer "
                f"beside the question ({n_around} tokens with its prompt) and a passage; use at most {largest}."
            )
        raise InputError(
            f"The question has {n_around} tokens with its prompt, which leaves none for a passage and an answer in a "
            f"context of {context}; ask a shorter question."
        )
    texts: list[str] = []
    n_cut = 0
    for hit in hits:
        text = _passage(hit)
        longer = _render(question, [*texts, text], tokenizer)
        if len(longer) > limit and texts:
            break
        starts = [start for start, _ in tokenizer.encode_with_offsets(text)[1]]
        while len(longer) > limit:  # repeated, since the truncated text may be tokenised differently
            n_cut += len(longer) - limit
            text = text[: starts[max(0, len(starts) - n_cut)]]
            longer = _render(question, [text], tokenizer)
        texts, ids = [*texts, text], longer
    return Prompt(ids, len(texts), n_cut)


def build_chat(question: str, hits: Sequence[Hit]) -> ChatPrompt:
    """Passages followed by the question, as chat messages.

    The best hits are included in order as long as they fit in `MAX_PASSAGE_CHARACTERS`. A first hit that is too long is
    truncated.
    """
    texts: list[str] = []
    n_left = MAX_PASSAGE_CHARACTERS
    for hit in hits:
        text = _passage(hit)
        if len(text) > n_left and texts:
            break
        texts.append(text[:n_left])
        n_left -= len(text)
    return ChatPrompt(_messages(question, texts), len(texts), max(0, -n_left))


def _render(question: str, texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    if tokenizer.chat_template is None:
        content = f"{''.join(texts)}Question: {question.strip()}\nAnswer:"
        return tokenizer.encode(content, add_special_tokens=True)
    return tokenizer.chat(_messages(question, texts))


def _messages(question: str, texts: Sequence[str]) -> list[dict[str, str]]:
    content = "".join(texts) + REQUEST.format(question=question.strip())
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def _passage(hit: Hit) -> str:
    return f"{hit.title}\n{hit.text}\n\n"
