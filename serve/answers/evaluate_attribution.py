"""Evaluation of attribution as a classifier of supported and unsupported sentences, for tuning its threshold.

The data are SQuAD's training questions with their answers. A question and an answer are joined into a sentence ("When
was X built?" and "1845" give "X built was 1845."); attribution ignores the wrong word order. The retrieved passages are
the question's paragraph and its neighbours in the same article.
"""

import json
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embed.text.sentences import split_sentences
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from index import Hit
from serve.answers.attribution import SUPPORT_THRESHOLD, attribute

FILE = "squad_train.jsonl.xz"
THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
AUXILIARIES = frozenset(
    ("is", "are", "was", "were", "did", "does", "do", "has", "have", "had", "can", "could", "will")
)
QUESTION_WORDS = frozenset(("who", "what", "which", "when", "where", "how", "why", "whose", "whom"))


class Row(NamedTuple):
    """A line of the data file."""

    query: str
    positive: str
    answer: str
    title: str


class Case(NamedTuple):
    """A sentence of an answer with its question and retrieved passages; `kind` is a key of `KINDS`."""

    kind: str
    sentence: str
    question: str
    hits: list[Hit]


# kind → whether attribution should call the sentence supported
KINDS = {
    "right answer, full sentence": True,
    "right answer alone": True,
    "copied sentence of the paragraph": True,
    "wrong answer from the passages, full sentence": False,
    "wrong answer from the passages alone": False,
    "answer to another question about the article": False,
    "answer from another article": False,
    "copied sentence, question about another article": False,
    "the question restated": False,
}


def evaluate_attribution(*, data: Path, questions: int = 1500, seed: int = 1) -> None:
    """Print the share of sentences that attribution calls supported, for supported and unsupported sentences.

    Args:
        data: folder with squad_train.jsonl.xz (lines with query, positive, answer and title).
        questions: number of questions, drawn at random.
        seed: random seed of the draw.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for case in make_cases(_read(data / FILE), questions, seed):
        attributed = attribute(case.sentence, case.question, case.hits)
        scores[case.kind].append(max((s.score for s in attributed), default=0.0))
    results: list[dict[str, Any]] = []
    for kind, supported in KINDS.items():
        shares = {f"≥{t:.2f}": _share(scores[kind], t) for t in THRESHOLDS}
        results.append({"sentences": kind, "supported": supported, "n": len(scores[kind]), **shares})
    balance = {f"≥{t:.2f}": _youden(scores, t) for t in THRESHOLDS}
    results.append({"sentences": "Youden's J", "supported": "", "n": questions, **balance})
    ratios = {"J at the threshold/best J": _youden(scores, SUPPORT_THRESHOLD) / max(balance.values())}
    print_report(results, ("sentences", "supported", "n", *balance), ratios)


def make_cases(rows: Sequence[Row], n: int, seed: int) -> Iterator[Case]:
    """Yield cases of every kind from `n` random questions."""
    draw = random.Random(seed)
    articles: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        articles[row.title].append(row)
    for row, other in zip(draw.sample(rows, n), draw.sample(rows, n), strict=True):
        article = articles[row.title]
        paragraphs = list(dict.fromkeys(r.positive for r in article))
        place = paragraphs.index(row.positive)
        retrieved = [
            paragraphs[i] for i in (place, place - 1, place + 1, place + 2) if 0 <= i < len(paragraphs)
        ]
        hits = [_hit(row.title, text) for text in retrieved]
        start, end = draw.choice(split_sentences(row.positive))
        copied = row.positive[start:end]
        sentences = {
            "right answer, full sentence": _statement(row.query, row.answer),
            "right answer alone": f"It is {row.answer}.",
            "copied sentence of the paragraph": copied,
            "answer from another article": _statement(row.query, other.answer),
            "the question restated": _statement(row.query, ""),
        }
        wrong = [r for r in article if _same_kind(r.answer, row.answer)]
        if wrong:
            answer = draw.choice(wrong).answer
            sentences["answer to another question about the article"] = _statement(row.query, answer)
        if near := [r for r in wrong if r.positive in retrieved]:
            answer = draw.choice(near).answer
            sentences["wrong answer from the passages, full sentence"] = _statement(row.query, answer)
            sentences["wrong answer from the passages alone"] = f"It is {answer}."
        yield from (Case(kind, sentence, row.query, hits) for kind, sentence in sentences.items())
        if other.title != row.title:
            yield Case("copied sentence, question about another article", copied, other.query, hits)


def _statement(question: str, answer: str) -> str:
    """Join a question, without its question word, and an answer into a sentence."""
    words = question.strip(" ?").split()
    asking = next((i for i, word in enumerate(words) if word.lower() in QUESTION_WORDS), None)
    if asking is None:
        return f"{' '.join(words)} {answer}."
    before, after = words[:asking], words[asking + 1 :]
    verb = next((i for i, word in enumerate(after[:5]) if word.lower() in AUXILIARIES), None)
    if verb is None:  # Who built X → Y built X
        sentence = " ".join([*before, answer, *after])
    else:  # When was X built → X built was Y
        sentence = " ".join([*after[verb + 1 :], after[verb], *before, *after[:verb], answer])
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _same_kind(one: str, other: str) -> bool:
    """Whether two answers are of one kind (number, name or other) and neither contains the other."""

    def kind(text: str) -> str:
        return "number" if re.search(r"\d", text) else "name" if text[:1].isupper() else "other"

    same_words = one.lower() in other.lower() or other.lower() in one.lower()
    return kind(one) == kind(other) and not same_words


def _hit(title: str, text: str) -> Hit:
    return Hit(text[:40], title, title, text, 0, len(text), 0.0, None, None, {})


def _share(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / max(1, len(scores))


def _youden(scores: dict[str, list[float]], threshold: float) -> float:
    """Youden's J: true positive rate minus false positive rate, each averaged over kinds with equal weight."""
    shares = {
        supported: [_share(scores[k], threshold) for k in KINDS if KINDS[k] == supported]
        for supported in (True, False)
    }
    return sum(shares[True]) / len(shares[True]) - sum(shares[False]) / len(shares[False])


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected SQuAD's training questions.")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [Row(**{key: json.loads(line)[key] for key in Row._fields}) for line in lines]
