"""An answer: retrieve passages, quote the sentences that answer; or generate a text and attribute it. Knows no HTTP.

`prepare` retrieves and quotes. To generate, it also builds the prompt, and `ground` attributes the generated text; the
server generates on its worker's thread between them. `answer_question` does all of it synchronously.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import chain, zip_longest
from typing import Any, Literal, NamedTuple, get_args

from embed import Encoder
from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from index import Document, Hit, Index
from index.search.filters import Filter
from index.search.rank import Hits
from index.search.search import Mode
from serve.answers.attribution import AnswerSentence, attribute
from serve.answers.conversation import earlier, questions_in
from serve.answers.language import Language, language_of
from serve.answers.likelihood import Likelihood
from serve.answers.prompt import ChatPrompt, Prompt, build_chat, build_prompt
from serve.answers.quotes import Quote, Quoted, Verdict, quote
from serve.answers.ranker import SecondStage, Thresholds, ranker_for
from serve.answers.reader import Reader, ShortAnswer
from serve.work.remote import Draft, RemoteGenerator

Kind = Literal["quote", "perhaps", "generated", "not_found"]
VERDICTS = get_args(Verdict)  # the best first
ANSWER_TOKENS = 96
GREEDY = SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0, stop=("\nQuestion:",))

NOT_FOUND = {"en": "The corpus does not say.", "zh": "资料里没有答案。"}
LEXICAL_ONLY = (
    "The weights of answers were not fitted with this index's embedder, so sentences are ranked by their words alone; "
    "scripts/fit_answers.py fits them."
)
PERHAPS = {"en": "The corpus may say:", "zh": "资料里也许有："}
UNANSWERED = {"en": "Not answered: {}", "zh": "没有回答：{}"}


@dataclass(frozen=True)
class Prepared:
    """A question with what was found.

    Attributes:
        question: the question, or several in one text.
        hits: the retrieved passages, best first.
        quoted: the quotes.
        prompt: the generator's, if it is to write.
        unanswered: of several questions, those to which the quotes do not belong.
        queries: the texts that were searched for: each question after the earlier ones that it refers to.
        span: a short answer inside the first quote.
    """

    question: str
    hits: list[Hit]
    quoted: Quoted
    prompt: Prompt | ChatPrompt | None = None
    unanswered: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    span: ShortAnswer | None = None


@dataclass(frozen=True)
class Answer:
    """The result of a question.

    Attributes:
        kind: "quote": the text is that of the quotes. "generated": a model wrote it, and a passage supports each of its
            sentences. "perhaps": the quotes are the nearest text, but not probably an answer. "not_found": the corpus
            does not say.
        text: the answer, in words; unsupported sentences of a model are only in `draft` and `sentences`.
        probability: that the first quote, or the best sentence that is not quoted, is right.
        present: the probability that the corpus answers the question.
        quotes: verbatim text of the documents, best first.
        span: a short answer inside the first quote; None without a reader, or if it finds none.
        hits: the retrieved passages, best first.
        unanswered: of several questions in one text, those to which the quotes do not belong.
        draft: the generated text without surrounding white space; "" if nothing was generated.
        sentences: the draft's sentences, each with its citation or marked as unsupported. The first repeated sentence
            and all after it are dropped, and so is a last sentence that was truncated by the token limit.
        n_prompt_hits: number of hits in the generator's prompt.
        n_prompt_cut: number of tokens truncated from a first hit that is too long for the prompt; of characters for a
            remote generator.
        finish_reason: why generation ended; None if nothing was generated.
        failure: why a remote generator gave no text, in a sentence; None if there was no failure.
    """

    kind: Kind
    text: str
    probability: float
    present: float
    quotes: list[Quote]
    span: ShortAnswer | None
    hits: list[Hit]
    unanswered: list[str] = field(default_factory=list)
    draft: str = ""
    sentences: list[AnswerSentence] = field(default_factory=list)
    n_prompt_hits: int = 0
    n_prompt_cut: int = 0
    finish_reason: str | None = None
    failure: str | None = None


def answer_question(
    question: str,
    index: Index,
    generator: Engine | RemoteGenerator | None = None,
    *,
    k: int | None = None,
    mode: Mode = "hybrid",
    filter: Filter | None = None,
    answered: float | None = None,
    perhaps: float | None = None,
    second_stage: SecondStage | None = None,
    reader: Reader | None = None,
    params: SamplingParams = GREEDY,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer `question` from the passages of `index`: in quotes, or in the words of a generator.

    Args:
        question: the question, in any language that the models support; of several in one text, each is answered.
        index: the index to search.
        generator: a local one is stepped until it is done, and no other thread may step it meanwhile; a remote one is
            called in an event loop of its own, and its failure is in the answer; None: the answer consists of quotes.
        k: number of passages to retrieve; None: as many as the ranker was fitted with.
        mode: "hybrid", "dense" or "lexical", as in `Index.search`.
        filter: as in `Index.search`.
        answered: least probability that a quote is right for an answer; None: the ranker's.
        perhaps: least probability that the corpus answers for the kind "perhaps"; None: the ranker's.
        second_stage: from `second_stage_of`; None: there is none.
        reader: finds a short answer inside the first quote; None: there is none.
        params: generation parameters; greedy, 96 tokens by default.
        on_text: called with each new piece of a local generator's draft.

    Raises:
        InputError: for an empty question, or one that does not fit the context.
    """
    n_kept = params.max_new_tokens or ANSWER_TOKENS
    prepared = prepare(
        question,
        index,
        generator,
        k=k,
        mode=mode,
        filter=filter,
        answered=answered,
        perhaps=perhaps,
        second_stage=second_stage,
        reader=reader,
        max_new_tokens=n_kept,
    )
    draft = Draft()
    if isinstance(generator, Engine) and isinstance(prepared.prompt, Prompt):
        request = generator.submit(prepared.prompt.token_ids, params, on_text)
        generator.run()
        if request.error is not None:
            raise request.error
        draft = Draft(request.text, request.finish_reason)
    elif isinstance(generator, RemoteGenerator) and isinstance(prepared.prompt, ChatPrompt):
        draft = asyncio.run(generator.write(prepared.prompt.messages, params))
    return ground(prepared, draft.text, draft.finish_reason, draft.failure)


def prepare(
    question: str,
    index: Index,
    generator: Engine | RemoteGenerator | None = None,
    *,
    k: int | None = None,
    mode: Mode = "hybrid",
    filter: Filter | None = None,
    answered: float | None = None,
    perhaps: float | None = None,
    second_stage: SecondStage | None = None,
    reader: Reader | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
    history: Sequence[str] = (),
) -> Prepared:
    """Retrieve and quote; with a generator, also build its prompt. Arguments and errors as for `answer_question`.

    `history`: the earlier questions of a conversation, oldest first; those that the question refers to are searched
    with it (`serve.answers.conversation`).
    """
    asked = [*history, *questions_in(question)]
    document = cache(index.get)
    text = partial(_text, document)
    found: list[_Found] = []
    for end in range(len(history) + 1, len(asked) + 1):
        before = earlier(asked[:end], partial(_fits, index))
        ranker = ranker_for(language_of(asked[end - 1]), index.settings.fingerprint)
        hits: list[Hit] = retrieve(
            asked[end - 1], index, k=k or ranker.n_passages, mode=mode, filter=filter, before=before
        )
        thresholds = Thresholds(
            ranker.thresholds.answered if answered is None else answered,
            ranker.thresholds.perhaps if perhaps is None else perhaps,
        )
        quoted = quote(asked[end - 1], hits, text, index.idf, ranker, thresholds, before, second_stage)
        found.append(_Found(asked[end - 1], f"{before} {asked[end - 1]}".strip(), hits, quoted))
    merged, unanswered = _merged(found)
    by_rank = chain.from_iterable(zip_longest(*(one.hits for one in found)))
    hits = list({hit.passage_id: hit for hit in by_rank if hit}.values())
    prompt: Prompt | ChatPrompt | None = None
    if hits and isinstance(generator, RemoteGenerator):
        prompt = build_chat(question, hits)
    elif hits and isinstance(generator, Engine):
        prompt = build_prompt(question, hits, generator.tokenizer, generator.context, max_new_tokens)
    span = None
    if reader is not None and merged.quotes:
        asked_first = next(one.question for one in found if merged.quotes[0] in one.quoted.quotes)
        span = reader.read(asked_first, merged.quotes[0])
    merged = replace(merged, quotes=[_with_pages(document, one) for one in merged.quotes])
    return Prepared(question, hits, merged, prompt, unanswered, [one.query for one in found], span)


_Documents = Callable[[str], Document | None]  # by id


class _Found(NamedTuple):
    """What was found for one question; `query` is the text that was searched for."""

    question: str
    query: str
    hits: list[Hit]
    quoted: Quoted


def _merged(found: Sequence[_Found]) -> tuple[Quoted, list[str]]:
    """The quotes of the questions with the best verdict, with their least probability, and the other questions."""
    verdict = min((one.quoted.verdict for one in found), key=VERDICTS.index)
    best = [one for one in found if one.quoted.verdict == verdict]
    merged = Quoted(
        verdict,
        list(dict.fromkeys(chain.from_iterable(one.quoted.quotes for one in best))),
        min(one.quoted.probability for one in best),
        min(one.quoted.present for one in best),
    )
    return merged, [one.question for one in found if one.quoted.verdict != verdict]


def _fits(index: Index, query: str) -> bool:
    """Whether a query fits the context of the index's embedder, if it has one."""
    encoder = index.encoder
    return (
        encoder is None or encoder.count_tokens([query], encoder.config.query_prompt)[0] <= encoder.max_tokens
    )


def _with_pages(document: _Documents, quote: Quote) -> Quote:
    found = document(quote.doc_id)
    return replace(quote, pages=found.pages.of(quote.start, quote.end)) if found and found.pages else quote


def _text(document: _Documents, doc_id: str) -> str:
    found = document(doc_id)
    return found.text if found else ""  # deleted since the search


def retrieve(
    question: str,
    index: Index,
    *,
    k: int = 5,
    mode: Mode = "hybrid",
    filter: Filter | None = None,
    before: str = "",
    **selection: Any,
) -> Hits:
    """The k best passages for `question`, after `before`, best first; an empty list if none matches.

    `selection`: the other arguments of `Index.search`.

    Raises:
        InputError: if the question is empty, or longer than the embedder's context.
    """
    if not question.strip():
        raise InputError("The question is empty; expected text.")
    query = f"{before} {question}" if before else question
    if mode != "lexical" and (encoder := index.encoder):
        (n_tokens,) = encoder.count_tokens([query], encoder.config.query_prompt)
        if n_tokens > encoder.max_tokens:
            raise InputError(
                f"The question has {n_tokens} tokens, but the embedder's limit is {encoder.max_tokens}; shorten it."
            )
    return index.search(query, k=k, mode=mode, filter=filter, **selection)


def ground(
    prepared: Prepared, draft: str = "", finish_reason: str | None = None, failure: str | None = None
) -> Answer:
    """The answer: the supported sentences of a draft; without one, the quotes, or that the corpus does not say.

    Args:
        prepared: the question with its passages and quotes.
        draft: the generated text; "" if nothing was generated.
        finish_reason: why generation ended; None if nothing was generated.
        failure: why a remote generator gave no text.
    """
    draft, hits, quoted = draft.strip(), prepared.hits, prepared.quoted
    language = language_of(prepared.question)
    sentences = _kept(attribute(draft, prepared.question, hits), finish_reason) if draft else []
    unanswered = [not_answered(question) for question in prepared.unanswered]
    kind: Kind
    if any(s.supported for s in sentences):
        kind, text = "generated", _supported_text(draft, sentences)
    elif quoted.verdict == "answered":
        kind, text = "quote", "\n".join([_words(quoted.quotes), *unanswered])
    elif quoted.verdict == "perhaps":
        kind, text = "perhaps", "\n".join([PERHAPS[language], _words(quoted.quotes), *unanswered])
    else:
        kind, text = "not_found", NOT_FOUND[language]
    read = (prepared.prompt.n_hits, prepared.prompt.n_cut) if prepared.prompt else (0, 0)
    return Answer(
        *(kind, text, quoted.probability, quoted.present, quoted.quotes, prepared.span, hits),
        prepared.unanswered,
        *(draft, sentences, *read, finish_reason, failure),
    )


def not_answered(question: str) -> str:
    """The line of an answer for one of several questions to which the quotes do not belong."""
    return UNANSWERED[language_of(question)].format(question)


@lru_cache(maxsize=1)  # kept with what its GPT has read
def second_stage_of(index: Index) -> SecondStage:
    """The second stage for `answer_question`, with the GPT of the index's embedder.

    Raises:
        InputError: if no second stage was fitted with this embedder.
    """
    encoder = index.encoder
    if not isinstance(encoder, Encoder) or all(
        ranker_for(language, index.settings.fingerprint).likelihood_weight is None
        for language in get_args(Language)
    ):
        raise InputError(
            f"The index's embedder {index.settings.embedder} has no second stage, since none was fitted with it; fit "
            "one with scripts/fit_answers.py, or leave it out."
        )
    return Likelihood(encoder)


def lexical_only(index: Index) -> bool:
    """Whether the shipped weights were not fitted with the index's embedder."""
    return ranker_for("en", index.settings.fingerprint).embedder is None


def _words(quotes: Sequence[Quote]) -> str:
    """The quotes' texts, each on a line."""
    return "\n".join(" ".join(quote.text.split()) for quote in quotes)


def _supported_text(draft: str, sentences: Sequence[AnswerSentence]) -> str:
    """The supported sentences, each after the draft's own separator: a space, a line break, nothing in Chinese."""
    text, end = "", 0
    for sentence in sentences:
        if sentence.supported:
            text += (draft[end : sentence.start] if text else "") + sentence.text
        end = sentence.end
    return text


def _kept(sentences: list[AnswerSentence], finish_reason: str | None) -> list[AnswerSentence]:
    """Drop repeated sentences and a truncated last one, which small models write when they do not stop."""
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        if sentence.text in seen:
            return sentences[:i]
        seen.add(sentence.text)
    return sentences[:-1] if finish_reason == "length" and len(sentences) > 1 else sentences
