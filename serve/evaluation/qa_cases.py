"""Questions over an index, as they are and as if the corpus did not answer them: to fit and to judge a ranker."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.text.sentences import split_sentences
from index import Hit, Index
from serve.answers.candidates import Candidate, find_candidates
from serve.answers.features import features
from serve.answers.question import Question
from serve.evaluation.qa_data import QaData, QaQuestion

# What is left out of the hits; the index stays, and with it the words' document frequencies.
Absent = Literal["nothing", "paragraph", "article"]
N_RETRIEVED = 80  # enough that passages are left without an article
QUERIES_PER_BATCH = 64


@dataclass(frozen=True)
class Case:
    """A question with the candidates of its passages.

    Attributes:
        asked: the question with its answers.
        absent: what was left out.
        question: the question as analysed.
        candidates: their candidates.
        matrix: (n, F) the candidates' features.
        is_right: (n,) whether a candidate has an answer, or the first sentence of a longer one.
    """

    asked: QaQuestion
    absent: Absent
    question: Question
    candidates: list[Candidate]
    matrix: NDArray[np.float64]
    is_right: NDArray[np.bool_]


def make_cases(
    data: QaData,
    index: Index,
    n_passages: int,
    absent: Sequence[Absent],
    *,
    own_paragraph: bool = False,
    encode: Callable[[list[str]], Vectors] | None = None,
) -> Iterator[Case]:
    """Search for each question, and yield its cases; the passages are the best `n_passages` of those not left out.

    Args:
        data: the questions and their corpus.
        index: the index of the corpus.
        n_passages: number of passages.
        absent: what is left out, one case for each.
        own_paragraph: whether the passages are those of the question's own paragraph.
        encode: gives the vectors of questions, for an index of precomputed vectors.
    """
    for start in range(0, len(data.questions), QUERIES_PER_BATCH):
        batch = data.questions[start : start + QUERIES_PER_BATCH]
        if own_paragraph:
            found = [
                index.search(asked.text, n_passages, filter={"doc_id": asked.document}) for asked in batch
            ]
        else:
            texts = [asked.text for asked in batch]
            found = index.search(encode(texts) if encode else texts, N_RETRIEVED)
        for asked, hits in zip(batch, found, strict=True):
            question = Question.of(asked.text, index.idf)
            for left_out in absent:
                kept = [hit for hit in hits if not _is_left_out(hit, asked, data, left_out)][:n_passages]
                candidates = find_candidates(asked.text, kept, lambda doc_id: data.documents[doc_id].text)
                matrix = features(question, candidates)
                is_right = np.array([begins_answer(c.text, asked) for c in candidates], dtype=bool)
                yield Case(asked, left_out, question, candidates, matrix, is_right)


def holds_answer(text: str, asked: QaQuestion) -> bool:
    """Whether a text has one of the question's answers, literally."""
    return any(answer in text for answer in asked.answers)


def begins_answer(text: str, asked: QaQuestion) -> bool:
    """Whether a text has one of the answers, or the first sentence of an answer of several, which a quote continues."""
    firsts = (answer[slice(*split_sentences(answer)[0])] for answer in asked.answers if answer.strip())
    return any(first in text for first in firsts)


def _is_left_out(hit: Hit, asked: QaQuestion, data: QaData, absent: Absent) -> bool:
    if absent == "paragraph":
        return hit.doc_id == asked.document
    return absent == "article" and data.articles[hit.doc_id] == asked.article
