"""The prompt of an answer: passages followed by the question."""

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


@dataclass(frozen=True)
class Prompt:
    """The generator's prompt.

    Attributes:
        token_ids: the whole prompt.
        n_hits: number of hits in the prompt.
        n_cut: number of tokens truncated from a first hit that is too long.
    """

    token_ids: list[int]
    n_hits: int
    n_cut: int


def build_prompt(
    question: str, hits: Sequence[Hit], tokenizer: Tokenizer, context: int, max_new_tokens: int
) -> Prompt:
    """Passages followed by the question; as a chat if the tokenizer has a chat template, else as plain text.

    The best hits are included in order as long as they fit in `MAX_PASSAGE_TOKENS` and in the context together with
    `max_new_tokens`. A first hit that is too long is truncated.

    Raises:
        InputError: if the question leaves no tokens for a passage.
    """
    ids = _render(question, [], tokenizer)
    n_around = len(ids)
    limit = min(n_around + MAX_PASSAGE_TOKENS, context - max_new_tokens)
    if limit <= n_around:
        raise InputError(
            f"The question ({n_around} tokens with its prompt) and the answer ({max_new_tokens} tokens) leave no "
            f"tokens for passages in a context of {context}; ask a shorter question or lower max_tokens."
        )
    texts: list[str] = []
    n_cut = 0
    for hit in hits:
        text = f"{hit.title}\n{hit.text}\n\n"
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


def _render(question: str, texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    if tokenizer.chat_template is None:
        content = f"{''.join(texts)}Question: {question.strip()}\nAnswer:"
        return tokenizer.encode(content, add_special_tokens=True)
    content = "".join(texts) + REQUEST.format(question=question.strip())
    return tokenizer.chat([{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}])
