"""The ranker: which candidate answers a question best, and how probably it is right.

A log-linear model over `serve.answers.features`; `scripts/fit_answers.py` fits its weights and those of two logistic
models: that the corpus answers the question at all, and that the best candidate is right. A softmax over the candidates
tells which of them is best, and the words that they share with the question whether any is; both numbers need both.

A second stage may order the best `N_RESCORED` candidates again by how probable the question is after each of them to a
language model (`serve.answers.likelihood`).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from serve.answers.candidates import Candidate
from serve.answers.features import FIRST_TYPE, NAMES
from serve.answers.language import Language
from serve.answers.question import Question

SHIPPED = Path(__file__).with_name("ranker.json")
N_RESCORED = 4  # candidates of the second stage
# What the two logistic models know of a ranking. The number and the weight of the question's words are left out: short
# questions are rare in the data of the fit, but usual in use (docs/log.md, 2026-11-29, "Answers that quote").
CONFIDENCE_NAMES = (
    "bias",
    "log_probability", "log_gap",  # softmax over the candidates: the best one's, and how far the second is below it
    *NAMES[:FIRST_TYPE], "lacks_type",  # of the best candidate
    "entropy",  # of the softmax, in nats
    "bm25_of_question",  # the best passage's BM25, relative to the total weight of the question's words
    "bm25_gap",  # how far the second passage's is below it
    "score",  # of the log-linear model
    "dense_of_passage", "dense_gap",  # the best passage's cosine, and how far the second passage's is below it
    "dense",  # of the best candidate's passage, relative to the best one's
)  # fmt: skip
CONFIDENCE_OF_EMBEDDER = frozenset(("dense_of_passage", "dense_gap", "dense"))

# Whether the corpus answers does not depend on how the candidates compare: it may say the same in many places.
NOT_OF_PRESENCE = frozenset(("log_probability", "log_gap", "entropy"))


# Gives the mean log-probability of a token of the question after each of some candidates, (n,) in nats.
SecondStage = Callable[[str, Sequence[Candidate]], NDArray[np.float64]]


@dataclass(frozen=True)
class Thresholds:
    """Least probabilities: that a quote is right for an answer, and that the corpus answers for "perhaps"."""

    answered: float
    perhaps: float


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first, with the probability of each among them, and those of the two logistic models."""

    candidates: list[Candidate]
    probabilities: list[float]
    right: float
    present: float


@dataclass(frozen=True)
class Ranker:
    """Weights for one language, by name; a feature without a weight does not count.

    Attributes:
        embedder: fingerprint of the embedder that they were fitted with; None: they do not depend on the embedder.
        n_passages: number of passages whose sentences are ranked.
        weights: of the features. right, present: of the two logistic models.
        provenance: the command, the data and the date of the fit.
        likelihood_weight: of the second stage's log-probabilities; None if it was not fitted.
    """

    embedder: str | None
    language: Language
    n_passages: int
    weights: Mapping[str, float]
    right: Mapping[str, float]
    present: Mapping[str, float]
    thresholds: Thresholds
    provenance: Mapping[str, Any]
    likelihood_weight: float | None = None

    def rank(
        self,
        question: Question,
        candidates: Sequence[Candidate],
        matrix: NDArray[np.float64],
        second_stage: SecondStage | None = None,
    ) -> Ranking:
        """Order candidates by their probability of being the answer; there must be one at least.

        Args:
            question: the question.
            candidates: the candidates.
            matrix: (n, F) their features.
            second_stage: counts only if `likelihood_weight` is there.
        """
        scores = matrix @ vector(self.weights, NAMES)
        order = np.argsort(-scores, kind="stable")
        if second_stage and self.likelihood_weight is not None:
            best = order[:N_RESCORED]
            likelihoods = second_stage(question.text, [candidates[i] for i in best])
            scores[best] = rescored(scores[best], likelihoods, self.likelihood_weight)
            order = np.argsort(-scores, kind="stable")
        probabilities = np.exp(log_softmax(scores[order]))
        ordered = [candidates[i] for i in order]
        numbers = confidence_numbers(question, ordered, matrix[order], scores[order])
        return Ranking(
            ordered,
            probabilities.tolist(),
            *(sigmoid(float(numbers @ vector(w, CONFIDENCE_NAMES))) for w in (self.right, self.present)),
        )


def rescored(
    scores: NDArray[np.float64], likelihoods: NDArray[np.float64], weight: float
) -> NDArray[np.float64]:
    """Scores (n,) plus weighted log-probabilities (n,), less a constant, so that their total probability stays."""
    new = scores + weight * likelihoods
    return new - np.logaddexp.reduce(new) + np.logaddexp.reduce(scores)


def confidence_numbers(
    question: Question,
    candidates: Sequence[Candidate],
    matrix: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The numbers of `CONFIDENCE_NAMES`, from candidates in the order of their descending scores (n,), and features."""
    log_p = log_softmax(scores)
    second = min(1, len(scores) - 1)
    total = question.weight(question.keys)
    best = dict(zip(NAMES, matrix[0], strict=True))
    hits = {c.hit.passage_id: c.hit for c in candidates}.values()
    bm25 = [*sorted(((hit.lexical or 0.0) / question.largest_idf for hit in hits), reverse=True), 0.0]
    dense = [*sorted((hit.dense or 0.0 for hit in hits), reverse=True), 0.0]
    numbers = [
        1.0,
        log_p[0],
        max(log_p[0] - log_p[second], 0.0),
        *matrix[0, :FIRST_TYPE],
        best["lacks_type"],
        -float(np.exp(log_p) @ log_p),
        bm25[0] / total if total else 0.0,
        (bm25[0] - bm25[1]) / total if total else 0.0,
        scores[0],
        dense[0],
        dense[0] - dense[1],
        best["dense"],
    ]
    return np.array(numbers)


def vector(weights: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    """The weights in the order of `names`; 0 for those that are not there."""
    return np.array([weights.get(name, 0.0) for name in names])


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the probabilities (n,) from scores (n,)."""
    below = scores - scores.max()
    return below - np.log(np.exp(below).sum())


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 0.5 * (1 + math.tanh(x / 2))


def ranker_for(language: Language, embedder: str | None, path: Path = SHIPPED) -> Ranker:
    """The weights for a language and the embedder with this fingerprint, else those that need no embedder.

    Raises:
        InputError: if the file is not one of `scripts/fit_answers.py`.
    """
    found = {r.embedder: r for r in _read(path) if r.language == language}
    if None not in found:
        raise InputError(
            f"{path} has no weights for the language {language}; fit them with scripts/fit_answers.py."
        )
    return found.get(embedder, found[None])


@lru_cache(maxsize=4)
def _read(path: Path) -> list[Ranker]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return [
            Ranker(**{**fields, "thresholds": Thresholds(**fields["thresholds"])})
            for fields in content["rankers"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as weights of answers ({error}); make it with scripts/fit_answers.py."
        ) from None
