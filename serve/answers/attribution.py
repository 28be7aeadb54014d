"""Which retrieved sentence supports a sentence of an answer, if any.

A small model does not cite reliably, so its citations are ours. Each sentence of the answer is held against every
sentence of the retrieved passages, and against every two neighbouring ones:

    support = new · (1/2 + asked/2)

`new` is the share of the sentence's content words, those of the question apart, that the source holds. `asked` is the
share of the question's words that the sentence repeats which the source holds: "X was built in 1845" needs the year and
the building. A sentence that repeats none of them is read together with the question: all its words count, and are
looked for in the source if the sentence is a fragment ("In 1845."), in the passage around it if it is not. Shares are
weighted by how rare a word is among the retrieved sentences.

The title counts as part of every source, but is none itself: the source must hold a new word of its own. A sentence
that adds nothing to the question thus has no support; nor has one that only repeats the title, one with a number that
neither the source nor the title holds, or one with a new name that the passage does not. What all this cannot see is
who did what to whom: "A defeated B" supports "B defeated A".
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embed.text.sentences import split_sentences
from index import Hit
from serve.answers.content_terms import Term, content_terms

# Chosen on SQuAD's training questions, like the formula: docs/log.md, 2026-11-22.
SUPPORT_THRESHOLD = 0.65
PAIR_FACTOR = 0.85  # two neighbouring sentences hold more words than one by chance
FRAGMENT = 3  # content words that make no statement of their own
RARE = 3  # a word in fewer retrieved sentences weighs no more: one slip must not outweigh all that is right


@dataclass(frozen=True)
class Citation:
    """A sentence, or two neighbouring ones, of a document: `text` is the document's text[start:end] in code points."""

    passage_id: str
    doc_id: str
    title: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class AnswerSentence:
    """A sentence of an answer, answer[start:end] in code points, and what it stands on.

    Attributes:
        score: the best support found, 0 to 1.
        citation: where; None unless `supported`.
    """

    text: str
    start: int
    end: int
    supported: bool
    score: float
    citation: Citation | None


@dataclass(frozen=True)
class _Source:
    """A stretch of a passage that can be cited, and the stems that are held by it and what is around it."""

    citation: Citation
    factor: float
    own: frozenset[str]
    title: frozenset[str]
    stems: frozenset[str]  # its own and the title's
    passage: frozenset[str]  # the passage's and the title's


def attribute(
    answer: str, question: str, hits: Sequence[Hit], threshold: float = SUPPORT_THRESHOLD
) -> list[AnswerSentence]:
    """Split `answer` into sentences and attribute each to the sentence of `hits` that supports it best.

    Args:
        answer: what the model wrote.
        question: what it was asked.
        hits: the retrieved passages.
        threshold: support below it is none.
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
    """Stem → inverse document frequency (BM25's, in Lucene's form), a retrieved sentence counting as a document."""

    def __init__(self, sentences: Sequence[frozenset[str]]) -> None:
        self._n = len(sentences)
        for stem, df in Counter(stem for stems in sentences for stem in stems).items():
            self[stem] = self._idf(df)

    def __missing__(self, stem: str) -> float:
        return self._idf(0)

    def _idf(self, df: int) -> float:
        df = min(max(df, RARE), self._n)
        return math.log(1 + (self._n - df + 0.5) / (df + 0.5))


def _support(terms: Sequence[Term], asked: set[str], source: _Source, weight: _Weights) -> float:
    stems = {t.key for t in terms}
    new = stems - asked
    if not new & source.own:
        return 0.0
    if len(new) > FRAGMENT and stems <= source.title:  # small models repeat titles that they were shown
        return 0.0
    if any(t.is_number and t.key not in source.stems for t in terms):
        return 0.0
    if any(t.is_name and t.key in new and t.key not in source.passage for t in terms):
        return 0.0
    if repeated := stems & asked:
        echo = _share(repeated, source.stems, weight)
    else:
        echo = _share(asked, source.stems if len(new) <= FRAGMENT else source.passage, weight)
    return source.factor * _share(new, source.stems, weight) * (1 + echo) / 2


def _share(stems: set[str], held: frozenset[str], weight: _Weights) -> float:
    """How much of the weight of `stems` is in `held`; 0 if there are none."""
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
    """Every sentence, and every two neighbouring ones, as (start, end, factor, stems)."""
    for (start, end), held in zip(spans, stems, strict=True):
        yield start, end, 1.0, held
    for i in range(len(spans) - 1):
        yield spans[i][0], spans[i + 1][1], PAIR_FACTOR, stems[i] | stems[i + 1]
