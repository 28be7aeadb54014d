"""A grounded answer: retrieve passages, build the prompt, generate, attribute. Independent of HTTP.

`prepare` comes before the generation and `ground` after it. The server generates on its worker's thread between them;
`answer_question` does all of it synchronously.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Hit, Index
from index.index import Mode
from index.search.filters import Filter
from serve.answers.attribution import AnswerSentence, attribute
from serve.answers.contradiction_zh import HAN

ANSWER_TOKENS = 96
GREEDY = SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0, stop=("\nQuestion:",))
# Two passages of the default 256 tokens with their titles. With more passages a small model answers worse, even if the
# right passage is among them (docs/log.md, 2026-11-22), and the time to the first token grows.
MAX_PASSAGE_TOKENS = 560
SYSTEM = "You are a helpful assistant that answers questions about a text."
REQUEST = "According to the text: {question} Answer in a complete sentence."

NOT_FOUND = "The corpus does not say."
NOT_FOUND_ZH = "资料里没有答案。"
# Japanese and Korean are written with Han characters, too
KANA_OR_HANGUL = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")


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


@dataclass(frozen=True)
class Prepared:
    """A question with the retrieved passages, best first, and the generator's prompt; None without passages."""

    question: str
    hits: list[Hit]
    prompt: Prompt | None


@dataclass(frozen=True)
class Answer:
    """The result of a question.

    Attributes:
        text: the supported sentences with the white space of the draft between them, or a sentence that the corpus
            does not say. Unsupported sentences are only in `draft` and `sentences`.
        found: whether at least one sentence of the draft is supported.
        draft: the generated text without surrounding white space; "" if nothing was retrieved.
        sentences: the draft's sentences, each with its citation or marked as unsupported. The first repeated sentence
            and all after it are dropped, and so is a last sentence that was truncated by the token limit.
        hits: the retrieved passages, best first.
        n_prompt_hits: number of hits in the generator's prompt.
        n_prompt_cut: number of tokens truncated from a first hit that is too long for the prompt.
        finish_reason: why generation ended; None if nothing was generated.
    """

    text: str
    found: bool
    draft: str
    sentences: list[AnswerSentence]
    hits: list[Hit]
    n_prompt_hits: int
    n_prompt_cut: int
    finish_reason: str | None


def answer_question(
    question: str,
    index: Index,
    engine: Engine,
    *,
    k: int = 5,
    mode: Mode = "hybrid",
    filter: Filter | None = None,
    params: SamplingParams = GREEDY,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer `question` from the passages of `index`, stepping `engine` until generation is done.

    Args:
        question: the question, in any language that the models support.
        index: the index to search.
        engine: the generator; no other thread may step it meanwhile.
        k: number of passages to retrieve; those that fit the token budget go into the prompt, all can be cited.
        mode: "hybrid", "dense" or "lexical", as in `Index.search`.
        filter: as in `Index.search`.
        params: generation parameters; greedy, 96 tokens by default.
        on_text: called with each new piece of the draft.

    Raises:
        InputError: for an empty question, or one that does not fit the context.
    """
    n_kept = params.max_new_tokens or ANSWER_TOKENS
    prepared = prepare(question, index, engine, k=k, mode=mode, filter=filter, max_new_tokens=n_kept)
    if prepared.prompt is None:
        return ground(prepared, "", None)
    request = engine.submit(prepared.prompt.token_ids, params, on_text)
    engine.run()
    if request.error is not None:
        raise request.error
    return ground(prepared, request.text, request.finish_reason)


def prepare(
    question: str,
    index: Index,
    engine: Engine,
    *,
    k: int,
    mode: Mode,
    filter: Filter | None,
    max_new_tokens: int,
) -> Prepared:
    """Retrieve the passages for `question` and build the prompt; arguments and errors as for `answer_question`."""
    hits = retrieve(question, index, k=k, mode=mode, filter=filter)
    if not hits:
        return Prepared(question, [], None)
    prompt = build_prompt(question, hits, engine.tokenizer, engine.context, max_new_tokens)
    return Prepared(question, hits, prompt)


def retrieve(
    query: str, index: Index, *, k: int = 5, mode: Mode = "hybrid", filter: Filter | None = None
) -> list[Hit]:
    """The k best passages for `query`, best first; an empty list if none matches.

    Raises:
        InputError: if the query is empty, or longer than the embedder's context.
    """
    if not query.strip():
        raise InputError("The question is empty; expected text.")
    if mode != "lexical" and (encoder := index.encoder):
        (n_tokens,) = encoder.count_tokens([query], encoder.config.query_prompt)
        if n_tokens > encoder.max_tokens:
            raise InputError(
                f"The question has {n_tokens} tokens, but the embedder's limit is {encoder.max_tokens}; shorten it."
            )
    return index.search(query, k=k, mode=mode, filter=filter)


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


def ground(prepared: Prepared, draft: str, finish_reason: str | None) -> Answer:
    """Attribute the draft to the hits. If no sentence is supported, the answer says that the corpus does not say.

    Args:
        prepared: the question and its passages.
        draft: the generated text; "" without hits.
        finish_reason: why generation ended; None without hits.
    """
    draft, hits, prompt = draft.strip(), prepared.hits, prepared.prompt
    sentences = _kept(attribute(draft, prepared.question, hits), finish_reason)
    found = any(s.supported for s in sentences)
    text = _supported_text(draft, sentences) if found else not_found(prepared.question)
    read = (prompt.n_hits, prompt.n_cut) if prompt else (0, 0)
    return Answer(text, found, draft, sentences, hits, *read, finish_reason)


def _supported_text(draft: str, sentences: Sequence[AnswerSentence]) -> str:
    """The supported sentences, each after the draft's own separator: a space, a line break, nothing in Chinese."""
    text, end = "", 0
    for sentence in sentences:
        if sentence.supported:
            text += (draft[end : sentence.start] if text else "") + sentence.text
        end = sentence.end
    return text


def not_found(question: str) -> str:
    """The sentence that the corpus does not say: in Chinese for a Chinese question, else in English."""
    return NOT_FOUND_ZH if HAN.search(question) and not KANA_OR_HANGUL.search(question) else NOT_FOUND


def _kept(sentences: list[AnswerSentence], finish_reason: str | None) -> list[AnswerSentence]:
    """Drop repeated sentences and a truncated last one, which small models write when they do not stop."""
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        if sentence.text in seen:
            return sentences[:i]
        seen.add(sentence.text)
    return sentences[:-1] if finish_reason == "length" and len(sentences) > 1 else sentences
