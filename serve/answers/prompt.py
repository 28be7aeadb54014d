"""The prompt of an answer: passages, then the question."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Hit

# Room for two passages of the default 256 tokens with their titles. A small model answers worse the more passages it is
# given, even if the right one is among them (docs/log.md, 2026-11-22), and one waits longer for its first word.
PASSAGE_TOKENS = 560


SYSTEM = "You are a helpful assistant that answers questions about a text."


REQUEST = "According to the text: {question} Answer in a complete sentence."


@dataclass(frozen=True)
class Prompt:
    """What the generator reads.

    Attributes:
        token_ids: all of it.
        n_hits: how many of the best hits are in it.
        n_cut: tokens that were cut off a hit that is too long by itself.
    """

    token_ids: list[int]
    n_hits: int
    n_cut: int


def build_prompt(
    question: str, hits: Sequence[Hit], tokenizer: Tokenizer, context: int, max_new_tokens: int
) -> Prompt:
    """Passages first, then the question; as a chat if the model knows one, else as text to be continued.

    The best hits go in, in their order, as long as they fit `PASSAGE_TOKENS` and leave room for the answer. A best hit
    that alone is too long is cut.

    Raises:
        InputError: if the question leaves no room for a passage.
    """
    ids = _render(question, [], tokenizer)
    n_around = len(ids)
    limit = min(n_around + PASSAGE_TOKENS, context - max_new_tokens)
    if limit <= n_around:
        raise InputError(
            f"The question takes {n_around} tokens of a context of {context}, of which {max_new_tokens} are kept for "
            "the answer; ask a shorter question."
        )
    texts: list[str] = []
    n_cut = 0
    for hit in hits:
        text = f"{hit.title}\n{hit.text}\n\n"
        longer = _render(question, [*texts, text], tokenizer)
        if len(longer) > limit and texts:
            break
        starts = [start for start, _ in tokenizer.encode_with_offsets(text)[1]]
        while len(longer) > limit:  # again if the tokens come out otherwise where the text is cut
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
