"""A grounded answer: retrieve, build the prompt, generate, attribute. Independent of HTTP.

The server generates on its worker's thread and calls `retrieve`, `build_prompt` and `ground` itself; `answer` runs the
same four steps synchronously.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embed.text.terms import CJK
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from index import Hit, Index
from index.index import Mode
from index.search.filters import Filter
from serve.answers.attribution import AnswerSentence, attribute
from serve.answers.prompt import Prompt, build_prompt

ANSWER_TOKENS = 96
GREEDY = SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0, stop=("\nQuestion:",))

NOT_FOUND = "The corpus does not say."
NOT_FOUND_ZH = "资料里没有答案。"


@dataclass(frozen=True)
class Answer:
    """The result of a question.

    Attributes:
        text: the answer, or a sentence that the corpus does not say.
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


def answer(
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
    hits = retrieve(question, index, k=k, mode=mode, filter=filter)
    if not hits:
        return ground(question, "", hits, None, None)
    n_kept = params.max_new_tokens or ANSWER_TOKENS
    prompt = build_prompt(question, hits, engine.tokenizer, engine.context, n_kept)
    request = engine.submit(prompt.token_ids, params, on_text)
    engine.run()
    if request.error is not None:
        raise request.error
    return ground(question, request.text, hits, prompt, request.finish_reason)


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


def ground(
    question: str, draft: str, hits: Sequence[Hit], prompt: Prompt | None, finish_reason: str | None
) -> Answer:
    """Attribute the draft to the hits. If no sentence is supported, the answer says that the corpus does not say.

    Args:
        question: the question.
        draft: the generated text; "" without hits.
        hits: the retrieved passages.
        prompt: the generator's prompt; None without hits.
        finish_reason: why generation ended; None without hits.
    """
    draft = draft.strip()
    sentences = _kept(attribute(draft, question, hits), finish_reason)
    found = any(s.supported for s in sentences)
    not_found = NOT_FOUND_ZH if re.search(f"[{CJK}]", question) else NOT_FOUND
    text = draft[: sentences[-1].end] if found else not_found
    read = (prompt.n_hits, prompt.n_cut) if prompt else (0, 0)
    return Answer(text, found, draft, sentences, list(hits), *read, finish_reason)


def _kept(sentences: list[AnswerSentence], finish_reason: str | None) -> list[AnswerSentence]:
    """Drop repeated sentences and a truncated last one, which small models write when they do not stop."""
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        if sentence.text in seen:
            return sentences[:i]
        seen.add(sentence.text)
    return sentences[:-1] if finish_reason == "length" and len(sentences) > 1 else sentences
