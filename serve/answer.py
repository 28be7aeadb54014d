"""A grounded answer: retrieve, prompt, generate, attribute. Nothing here knows HTTP.

The server generates on its worker's thread and calls `retrieve`, `build_prompt` and `ground` itself; `answer` is the
same four steps in a row.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_core.engine import Engine
from gpt_core.errors import InputError
from gpt_core.sampling import SamplingParams
from gpt_core.tokenizer import Tokenizer
from index import Hit, Index
from index.index import Mode
from index.lexical import CJK
from serve.attribution import AnswerSentence, attribute

# What a prompt's passages may take: three of the default 256 tokens with their titles, which two cores read in about
# five seconds. Prompts are read at a constant rate, so twice the passages are twice the wait for the first word.
PASSAGE_TOKENS = 840
GREEDY = SamplingParams(max_new_tokens=128, temperature=0.0)

INSTRUCTION = (
    "You answer questions from passages. Use only what the passages say, in one to three short sentences, "
    "in the language of the question."
)
NOT_FOUND = "The corpus does not say."
NOT_FOUND_ZH = "资料里没有答案。"


@dataclass(frozen=True)
class Prompt:
    """What the generator reads: its token ids, and how many of the best hits are in it."""

    token_ids: list[int]
    n_hits: int


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        text: the answer, or that the corpus does not say.
        found: whether at least one sentence of the draft is supported.
        draft: what the generator wrote, white space around it removed; "" if nothing was retrieved.
        sentences: the draft's sentences, each with its citation or marked as unsupported.
        hits: the retrieved passages, best first; `n_prompt_hits` of them were in the prompt.
        finish_reason: of the generation; None if there was none.
    """

    text: str
    found: bool
    draft: str
    sentences: list[AnswerSentence]
    hits: list[Hit]
    n_prompt_hits: int
    finish_reason: str | None


def answer(
    question: str,
    index: Index,
    engine: Engine,
    *,
    k: int = 5,
    mode: Mode = "hybrid",
    filter: dict[str, Any] | None = None,
    params: SamplingParams = GREEDY,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer `question` from the passages of `index`, stepping `engine` until it is done.

    Args:
        question: in any language that the models know.
        index: where to look.
        engine: the generator; nobody else may step it meanwhile.
        k: passages to retrieve; those that fit the prompt's budget are read, all can be cited.
        mode: "hybrid", "dense" or "lexical", as in `Index.search`.
        filter: as in `Index.search`.
        params: how to generate; greedy, 128 tokens by default.
        on_text: gets the draft piece by piece.

    Raises:
        InputError: for an empty question, or one that does not fit the context.
    """
    hits = retrieve(question, index, k=k, mode=mode, filter=filter)
    if not hits:
        return ground(question, "", [], 0, None)
    prompt = build_prompt(question, hits, engine.tokenizer, engine.context, params.max_new_tokens)
    request = engine.submit(prompt.token_ids, params, on_text)
    engine.run()
    if request.error is not None:
        raise request.error
    return ground(question, request.text, hits, prompt.n_hits, request.finish_reason)


def retrieve(
    question: str, index: Index, *, k: int = 5, mode: Mode = "hybrid", filter: dict[str, Any] | None = None
) -> list[Hit]:
    """The k passages nearest to `question`, best first; none if the corpus holds nothing that matches."""
    if not question.strip():
        raise InputError("The question is empty; ask something.")
    return index.search(question, k=k, mode=mode, filter=filter)


def build_prompt(
    question: str, hits: Sequence[Hit], tokenizer: Tokenizer, context: int, max_new_tokens: int
) -> Prompt:
    """Passages first, then the question; as a chat if the model knows one, else as text to be continued.

    The best hits go in, in their order, as long as they fit `PASSAGE_TOKENS` and leave room for the answer. A best hit
    that alone is too long is cut.

    Raises:
        InputError: if the question leaves no room for a passage.
    """
    n_around = len(_render(question, [], tokenizer))
    room = min(PASSAGE_TOKENS, context - n_around - max_new_tokens)
    if room < 1:
        raise InputError(
            f"The question takes {n_around} tokens of a context of {context}, of which {max_new_tokens} are kept for "
            "the answer; ask a shorter question."
        )
    texts: list[str] = []
    for hit in hits:
        text = f"{hit.title}\n{hit.text}\n\n"
        starts = [start for start, _ in tokenizer.encode_with_offsets(text)[1]]
        if len(starts) > room and texts:
            break
        texts.append(text if len(starts) <= room else text[: starts[room]])
        room -= len(starts)
    return Prompt(_render(question, texts, tokenizer), len(texts))


def _render(question: str, texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    content = f"{''.join(texts)}Question: {question.strip()}"
    if tokenizer.chat_template is None:
        return tokenizer.encode(f"{INSTRUCTION}\n\n{content}\nAnswer:", add_special_tokens=True)
    return tokenizer.chat([{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}])


def ground(
    question: str, draft: str, hits: Sequence[Hit], n_prompt_hits: int, finish_reason: str | None
) -> Answer:
    """Attribute the draft to the hits; without one supported sentence the answer is that the corpus does not say."""
    draft = draft.strip()
    sentences = attribute(draft, question, hits)
    found = any(s.supported for s in sentences)
    not_found = NOT_FOUND_ZH if re.search(f"[{CJK}]", question) else NOT_FOUND
    text = draft if found else not_found
    return Answer(text, found, draft, sentences, list(hits), n_prompt_hits, finish_reason)
