"""Attribution: find the retrieved sentence that supports each sentence of an answer, if any.

Small models do not cite reliably, so citations are computed. Each sentence of the answer is compared with every
sentence of the retrieved passages and with every pair of neighbouring sentences (the sources):

    support = new · (1/2 + asked/2), times `PAIR_FACTOR` for a pair

`new` is the share of the answer sentence's content words, without those of the question, that occur in the source.
`asked` is the share, among the question's words that the answer sentence repeats, of those that occur in the source: "X
was built in 1845" needs the year and the building. If the sentence repeats none of them, all words of the question
count; they must occur in the source if the sentence is a fragment ("In 1845."), else anywhere in its passage. Words are
weighted by their inverse document frequency among the retrieved sentences.

The title counts as part of every source, but at least one word that is in the answer and not in the question must be in
the source sentence itself. Support is 0 for a sentence that adds nothing to the question, that only repeats the title
(unless it is a fragment), that has a number which is in neither source nor title, or a new name which is not in the
passage. Word order is ignored: "A defeated B" supports "B defeated A".
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from embed.text.content_terms import Term, content_terms
from embed.text.sentences import split_sentences
from index import Hit
from index.reading.pages import PageRange
from serve.answers import contradiction, contradiction_zh
from serve.answers.contradiction import OPENERS, Statement
from serve.answers.language import HAN

# Tuned on SQuAD's training questions: docs/log.md, 2026-11-29, "Sentences that contradict their source"; the formula
# and the other constants: 2026-11-22.
SUPPORT_THRESHOLD = 0.63
PAIR_FACTOR = 0.85  # two neighbouring sentences contain more of the words by chance than one sentence
MAX_FRAGMENT_WORDS = 3  # an answer sentence with at most this many new content words is a fragment
MIN_DF = (
    3  # lower limit of document frequencies, so that one rare wrong word does not outweigh all right ones
)


@dataclass(frozen=True)
class Citation:
    """One or two neighbouring sentences of a document: `text` is the document's text[start:end] in code points.

    `pages`: the pages that they are on; None for a document without pages.
    """

    passage_id: str
    doc_id: str
    title: str
    start: int
    end: int
    text: str
    pages: PageRange | None = None


@dataclass(frozen=True)
class AnswerSentence:
    """A sentence of an answer, answer[start:end] in code points, with its source.

    Attributes:
        score: the highest support, 0 to 1.
        citation: the source with this support; None unless `supported`.
    """

    text: str
    start: int
    end: int
    supported: bool
    score: float
    citation: Citation | None


@dataclass(frozen=True)
class _Source:
    """One or two sentences that can be cited, with the stems in them, in the title and in the passage."""

    citation: Citation
    factor: float
    sentences: Sequence[Statement]
    title_statement: Statement
    own: frozenset[str]
    title: frozenset[str]
    stems: frozenset[str]  # own and title stems
    passage: frozenset[str]  # stems of the passage and the title


def attribute(
    answer: str, question: str, hits: Sequence[Hit], threshold: float = SUPPORT_THRESHOLD
) -> list[AnswerSentence]:
    """Split `answer` into sentences and attribute each to the sentence of `hits` that supports it best.

    Args:
        answer: the generated text.
        question: the question.
        hits: the retrieved passages.
        threshold: minimum support for a citation.
    """
    spans = split_sentences(answer)
    asking, *statements = _statements([question, *(answer[a:b] for a, b in spans)])
    asked = _stems(asking.terms)
    sources, weight = _sources(hits)
    attributed = []
    for (start, end), statement in zip(spans, statements, strict=True):
        scored = [(_support(statement.terms, asked, source, weight), source) for source in sources]
        scored.sort(key=lambda pair: pair[0], reverse=True)
        agreeing = (
            (score, source) for score, source in scored if not score or _agrees(statement, asking, source)
        )
        score, best = next(agreeing, (0.0, None))
        supported = best is not None and score >= threshold
        citation = best.citation if best is not None and supported else None
        attributed.append(AnswerSentence(answer[start:end], start, end, supported, score, citation))
    return attributed


def _statements(texts: Sequence[str]) -> list[Statement]:
    return [Statement(text, terms) for text, terms in zip(texts, content_terms(texts), strict=True)]


def _agrees(statement: Statement, question: Statement, source: _Source) -> bool:
    """Whether a source contains the statement's numbers and negations, and contradicts none of its words."""
    held = [*source.sentences, source.title_statement]
    checks = [contradiction, contradiction_zh] if HAN.search(statement.text) else [contradiction]
    return not any(
        check.missing(statement, question, held)
        or any(check.conflicts(statement, s) for s in source.sentences)
        for check in checks
    )


def _stems(terms: Sequence[Term]) -> frozenset[str]:
    return frozenset(t.key for t in terms if not t.is_function)


class _Weights(dict[str, float]):
    """Stem → inverse document frequency (Lucene's BM25 formula) with the retrieved sentences as documents."""

    def __init__(self, sentences: Sequence[frozenset[str]]) -> None:
        self._n = len(sentences)
        for stem, df in Counter(stem for stems in sentences for stem in stems).items():
            self[stem] = self._idf(df)

    def __missing__(self, stem: str) -> float:
        return self._idf(0)

    def _idf(self, df: int) -> float:
        df = min(max(df, MIN_DF), self._n)
        return math.log(1 + (self._n - df + 0.5) / (df + 0.5))


def _support(terms: Sequence[Term], asked: Set[str], source: _Source, weight: _Weights) -> float:
    stems = _stems(terms)
    new = stems - asked
    if not new & source.own:
        return 0.0
    if len(new) > MAX_FRAGMENT_WORDS and stems <= source.title:  # small models repeat titles from the prompt
        return 0.0
    if any(_is_name(terms, i) and t.key in new and t.key not in source.passage for i, t in enumerate(terms)):
        return 0.0
    if repeated := stems & asked:
        echo = _share(repeated, source.stems, weight)
    else:
        echo = _share(asked, source.stems if len(new) <= MAX_FRAGMENT_WORDS else source.passage, weight)
    return source.factor * _share(new, source.stems, weight) * (1 + echo) / 2


def _is_name(terms: Sequence[Term], place: int) -> bool:
    term = terms[place]
    if place == 0:
        return term.word[:1].isupper() and not term.is_function and term.word.lower() not in OPENERS
    return term.is_name


def _share(stems: Set[str], held: Set[str], weight: _Weights) -> float:
    """The share of the weight of `stems` that is in `held`; 0 if `stems` is empty."""
    total = sum(weight[s] for s in stems)
    return sum(weight[s] for s in stems & held) / total if total else 0.0


def _sources(hits: Sequence[Hit]) -> tuple[list[_Source], _Weights]:
    sources: list[_Source] = []
    sentences: list[frozenset[str]] = []
    spans = [split_sentences(hit.text) for hit in hits]
    texts = [[hit.title, *(hit.text[a:b] for a, b in ends)] for hit, ends in zip(hits, spans, strict=True)]
    statements = iter(_statements([text for texts_of_hit in texts for text in texts_of_hit]))
    for hit, ends in zip(hits, spans, strict=True):
        title_statement, *own = [next(statements) for _ in range(1 + len(ends))]
        title, stems = _stems(title_statement.terms), [_stems(s.terms) for s in own]
        sentences += stems
        passage = title.union(*stems)
        for first, last in _windows(len(ends)):
            start, end = ends[first][0], ends[last][1]
            where = (hit.start + start, hit.start + end)
            pages = hit.pages.of(*where) if hit.pages else None
            citation = Citation(hit.passage_id, hit.doc_id, hit.title, *where, hit.text[start:end], pages)
            factor = 1.0 if first == last else PAIR_FACTOR
            held, window = stems[first] | stems[last], own[first : last + 1]
            sources.append(
                _Source(citation, factor, window, title_statement, held, title, held | title, passage)
            )
    return sources, _Weights(sentences)


def _windows(n: int) -> Iterator[tuple[int, int]]:
    """The first and the last of every sentence, and of every pair of neighbouring sentences."""
    yield from ((i, i) for i in range(n))
    yield from ((i, i + 1) for i in range(n - 1))
