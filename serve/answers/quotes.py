"""Quotes: the best candidates of a question as verbatim text of the documents, and what they are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from index import Hit
from index.reading.pages import PageRange
from serve.answers.candidates import Candidate, find_candidates
from serve.answers.features import features
from serve.answers.question import Idf, Question
from serve.answers.ranker import Ranker, Ranking, SecondStage, Thresholds

Verdict = Literal["answered", "perhaps", "not_found"]
MOST_JOINED = 3  # pieces of one quote
# A piece beside the best one joins the quote if its probability is at least this share of the best one's.
JOIN_SHARE = 0.5
# Of the corpus's answering, for a quote. On SQuAD's train split .1 % fewer questions are answered than without it.
LEAST_PRESENT = 0.25
MOST_PERHAPS = 3  # quotes that are shown where none is probable enough for an answer


@dataclass(frozen=True)
class Quote:
    """One to three successive pieces of a document.

    Attributes:
        text: the document's text[start:end], in code points.
        passage_id: the retrieved passage.
        doc_id, title: the document.
        headings: the headings above the quote, the outermost first.
        start, end: offsets into the document's text.
        probability: that the quote answers the question.
        pages: the pages that the quote is on; None for a document without pages.
    """

    text: str
    passage_id: str
    doc_id: str
    title: str
    headings: tuple[str, ...]
    start: int
    end: int
    probability: float
    pages: PageRange | None = None


@dataclass(frozen=True)
class Quoted:
    """The quotes for a question, best first.

    `probability`: that the best candidate is right, quoted or not; `present`: that the corpus answers the question.
    """

    verdict: Verdict
    quotes: list[Quote]
    probability: float
    present: float


def quote(
    question: str,
    hits: Sequence[Hit],
    document: Callable[[str], str],
    idf: Idf,
    ranker: Ranker,
    thresholds: Thresholds,
    before: str = "",
    second_stage: SecondStage | None = None,
) -> Quoted:
    """Quote what answers a question best.

    Args:
        question: the question.
        hits: the passages, best first.
        document: gives the text of the document with an id.
        idf: `Index.idf`.
        ranker: weights for the question's language.
        thresholds: least probabilities of the verdicts.
        before: earlier questions that it refers to.
        second_stage: orders the best candidates again; None: there is none.
    """
    analysed = Question.of(question, idf, before)
    candidates = find_candidates(question, hits, document)
    if not candidates or not analysed.keys:
        return Quoted("not_found", [], 0.0, 0.0)
    ranking = ranker.rank(analysed, candidates, features(analysed, candidates), second_stage)
    return choose(ranking, document, thresholds)


def choose(ranking: Ranking, document: Callable[[str], str], thresholds: Thresholds) -> Quoted:
    """The verdict on a ranking, and its quotes; `document` gives the text of the document with an id.

    Where all passages are about something else, or there is one sentence only, the best candidate may be much better
    than the others. So a quote also needs `LEAST_PRESENT`.
    """
    if ranking.present < thresholds.perhaps:
        return Quoted("not_found", [], min(ranking.right, ranking.present), ranking.present)
    if ranking.right >= thresholds.answered and ranking.present >= LEAST_PRESENT:
        return Quoted("answered", [best_quote(ranking, document)], ranking.right, ranking.present)
    nearest: list[Quote] = []
    for place in range(len(ranking.candidates)):
        found = best_quote(ranking, document, place)
        if all(found.doc_id != q.doc_id or found.start >= q.end or found.end <= q.start for q in nearest):
            nearest.append(found)
        if len(nearest) == MOST_PERHAPS:
            break
    return Quoted("perhaps", nearest, ranking.right, ranking.present)


def best_quote(ranking: Ranking, document: Callable[[str], str], place: int = 0) -> Quote:
    """The candidate at a place with those beside it that are nearly as probable, or that are the list it announces."""
    best, least = ranking.candidates[place], JOIN_SHARE * ranking.probabilities[place]
    text = document(best.hit.doc_id)
    section = sorted(
        (
            (candidate, probability)
            for candidate, probability in zip(ranking.candidates, ranking.probabilities, strict=True)
            if (candidate.hit.doc_id, candidate.headings) == (best.hit.doc_id, best.headings)
        ),
        key=lambda pair: pair[0].start,
    )
    first = last = next(i for i, (candidate, _) in enumerate(section) if candidate is best)
    while last - first + 1 < MOST_JOINED:
        before, after = section[first - 1] if first else None, section[last + 1 : last + 2]
        if (
            after
            and _follow(text, section[last][0], after[0][0])
            and (after[0][1] >= least or _announces(section[first][0], after[0][0]))
        ):
            last += 1
        elif before and _follow(text, before[0], section[first][0]) and before[1] >= least:
            first -= 1
        else:
            break
    start, end = section[first][0].start, section[last][0].end
    probability = ranking.right * min(1.0, ranking.probabilities[place] / ranking.probabilities[0])
    return Quote(
        *(text[start:end], best.hit.passage_id, best.hit.doc_id, best.hit.title, best.headings),
        *(start, end, probability),
    )


def _follow(text: str, one: Candidate, other: Candidate) -> bool:
    """Whether only white space and the mark of a list item are between two candidates."""
    return len(text[one.end : other.start].split()) <= (other.kind == "item")


def _announces(first: Candidate, item: Candidate) -> bool:
    return item.kind == "item" and first.text.endswith((":", "："))
