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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embed.text.content_terms import Term, content_terms
from embed.text.sentences import split_sentences
from index import Hit

# Tuned on SQuAD's training questions, like the formula: docs/log.md, 2026-11-22.
SUPPORT_THRESHOLD = 0.65
PAIR_FACTOR = 0.85  # two neighbouring sentences contain more of the words by chance than one sentence
MAX_FRAGMENT_WORDS = 3  # an answer sentence with at most this many new content words is a fragment
MIN_DF = (
    3  # lower limit of document frequencies, so that one rare wrong word does not outweigh all right ones
)


@dataclass(frozen=True)
class Citation:
    """One or two neighbouring sentences of a document: `text` is the document's text[start:end] in code points."""

    passage_id: str
    doc_id: str
    title: str
    start: int
    end: int
    text: str


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
    question_terms, *sentences = content_terms([question, *(answer[a:b] for a, b in spans)])
    asked = {t.key for t in question_terms}
    sources, weight = _sources(hits)
    attributed = []
    for (start, end), terms in zip(spans, sentences, strict=True):
        scored = ((_support(terms, asked, source, weight), source) for source in sources)
        score, best = max(scored, key=lambda pair: pair[0], default=(0.0, None))
        supported = best is not None and score >= threshold
        citation = best.citation if best is not None and supported else None
        attributed.append(AnswerSentence(answer[start:end], start, end, supported, score, citation))
    return attributed


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


def _support(terms: Sequence[Term], asked: set[str], source: _Source, weight: _Weights) -> float:
    stems = {t.key for t in terms}
    new = stems - asked
    if not new & source.own:
        return 0.0
    if len(new) > MAX_FRAGMENT_WORDS and stems <= source.title:  # small models repeat titles from the prompt
        return 0.0
    if any(t.is_number and t.key not in source.stems for t in terms):
        return 0.0
    if any(t.is_name and t.key in new and t.key not in source.passage for t in terms):
        return 0.0
    if repeated := stems & asked:
        echo = _share(repeated, source.stems, weight)
    else:
        echo = _share(asked, source.stems if len(new) <= MAX_FRAGMENT_WORDS else source.passage, weight)
    return source.factor * _share(new, source.stems, weight) * (1 + echo) / 2


def _share(stems: set[str], held: frozenset[str], weight: _Weights) -> float:
    """The share of the weight of `stems` that is in `held`; 0 if `stems` is empty."""
    total = sum(weight[s] for s in stems)
    return sum(weight[s] for s in stems & held) / total if total else 0.0


def _sources(hits: Sequence[Hit]) -> tuple[list[_Source], _Weights]:
    sources: list[_Source] = []
    sentences: list[frozenset[str]] = []
    for hit in hits:
        spans = split_sentences(hit.text)
        analysed = content_terms([hit.title, *(hit.text[a:b] for a, b in spans)])
        title, *stems = (frozenset(t.key for t in terms) for terms in analysed)
        sentences += stems
        passage = title.union(*stems)
        for start, end, factor, held in _windows(spans, stems):
            where = (hit.start + start, hit.start + end, hit.text[start:end])
            citation = Citation(hit.passage_id, hit.doc_id, hit.title, *where)
            sources.append(_Source(citation, factor, held, title, held | title, passage))
    return sources, _Weights(sentences)


def _windows(
    spans: Sequence[tuple[int, int]], stems: Sequence[frozenset[str]]
) -> Iterator[tuple[int, int, float, frozenset[str]]]:
    """Every sentence and every pair of neighbouring sentences as (start, end, factor, stems)."""
    for (start, end), held in zip(spans, stems, strict=True):
        yield start, end, 1.0, held
    for i in range(len(spans) - 1):
        yield spans[i][0], spans[i + 1][1], PAIR_FACTOR, stems[i] | stems[i + 1]
