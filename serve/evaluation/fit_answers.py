"""Fit the ranker of answers: its weights, its two probabilities and its thresholds, for a language and an embedder."""

import json
import random
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from embed.evaluation.published import content_sha256
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.evaluation.report import machine, print_report
from index.evaluation.built_index import CachingEncoder, built_index
from serve.answers.features import NAMES, OF_EMBEDDER
from serve.answers.language import Language, language_of
from serve.answers.likelihood import Likelihood
from serve.answers.ranker import (
    CONFIDENCE_NAMES,
    CONFIDENCE_OF_EMBEDDER,
    N_RESCORED,
    NOT_OF_PRESENCE,
    Gains,
    confidence_numbers,
    rescored,
    sigmoid,
    vector,
)
from serve.evaluation.metrics import auroc, coverage
from serve.evaluation.qa_cases import Absent, Case, make_cases
from serve.evaluation.qa_data import QaData, read_qa

L2 = 3e-4  # on weights of features that are divided by their deviation
FOLDS = 5  # of articles; thresholds are chosen on probabilities of questions that their weights were not fitted on
PRECISION = 0.9  # of "answered" on these questions
COLUMNS = ("dataset", "language", "embedder", "questions", "sentence_accuracy", "AUROC_present", "AUROC_right",
           "coverage", "answered", "perhaps")  # fmt: skip

Vector = NDArray[np.float64]


class Fitted(NamedTuple):
    """Weights of the ranker, and of the two logistic models, in the order of `NAMES` and `CONFIDENCE_NAMES`."""

    weights: Vector
    right: Vector
    present: Vector


def fit_answers(
    *,
    data: list[str],
    out: Path,
    embedder: str = "smollm2-135m-instruct",
    split: str = "dev",
    questions: int = 5000,
    articles: int = 130,
    passages: int = 8,
    second_stage_questions: int = 600,
    seed: int = 0,
) -> None:
    """Fit weights and thresholds for answers, and write them to a JSON file; never fit on a test split.

    Each data set is one language. An index of its paragraphs is built and searched as for a user; its questions are
    answered from it, then without their paragraph, then without their article. For each language two sets of weights
    are written: with the embedder's scores and a second stage, keyed by its fingerprint, and without them, for any
    other embedder. Prints the figures of questions whose article was left out of the fit (five folds).

    Args:
        data: one or more of SQuAD's JSON files, or BEIR folders whose queries have answers in their metadata.
        out: the file to write; languages that it has already, and that are not fitted now, stay.
        embedder: model folder or known name.
        split: split of the BEIR folders.
        questions: number of questions of each data set, drawn at random.
        articles: number of articles of each SQuAD file, drawn at random; they are the corpus.
        passages: number of passages whose sentences are ranked.
        second_stage_questions: number of these questions that the second stage is fitted on, with about four seconds of
            one core each for SmolLM2; 0: no second stage.
        seed: seed of the draws.
    """
    if not data:
        raise InputError("--data names nothing; expected SQuAD's JSON or BEIR folders.")
    encoder = CachingEncoder.from_pretrained(embedder)
    rankers: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for path in data:
        read = read_qa(path, split, articles, seed).sample(questions, seed)
        language = _language(read)
        absent: list[Absent] = ["nothing", "paragraph"]
        if len(set(read.articles.values())) < len(read.documents):
            absent.append("article")
        with built_index(read.collection, encoder) as index:
            cases = [case for case in make_cases(read, index, passages, absent) if case.candidates]
        for fingerprint in (encoder.fingerprint, None):
            fields, figures = _fit_set(cases, with_embedder=fingerprint is not None)
            if fingerprint and second_stage_questions:
                chosen = {asked.id for asked in read.sample(second_stage_questions, seed).questions}
                few = [case for case in cases if case.asked.id in chosen]
                second, of_second = _fit_second_stage(few, fields["weights"], Likelihood(encoder))
                fields["second"] = {**second, "provenance": {"questions": len(chosen)}}
                results.append({"dataset": read.name, "language": language, "embedder": f"{embedder}, second stage",
                                "questions": len(chosen), **of_second})  # fmt: skip
            rankers.append({"embedder": fingerprint, "language": language, "n_passages": passages, **fields,
                            "provenance": _provenance(read, embedder)})  # fmt: skip
            results.append({"dataset": read.name, "language": language, "embedder": embedder if fingerprint else "any",
                            "questions": len(read.questions), **figures})  # fmt: skip
    fitted = {ranker["language"] for ranker in rankers}
    kept = json.loads(out.read_text())["rankers"] if out.exists() else []
    rankers = [*(r for r in kept if r["language"] not in fitted), *rankers]
    atomic_write(out, json.dumps({"rankers": rankers}, indent=1, ensure_ascii=False) + "\n")
    print_report(results, COLUMNS, {})


def _language(data: QaData) -> Language:
    chinese = sum(language_of(asked.text) == "zh" for asked in data.questions)
    return "zh" if 2 * chinese > len(data.questions) else "en"


def _provenance(data: QaData, embedder: str) -> dict[str, Any]:
    questions = [(asked.id, asked.text, *asked.answers) for asked in data.questions]
    return {
        "command": shlex.join(Path(word).name if "/" in word else word for word in sys.argv),
        "date": date.today().isoformat(),
        "data": data.name,
        "questions": len(data.questions),
        "documents": len(data.documents),
        "sha256_of_questions": content_sha256(questions),
        "embedder": embedder,
        "processor": machine()["processor"],
    }


def _fit_set(cases: Sequence[Case], *, with_embedder: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """The fields of a `Ranker`, and figures of the cross-validation."""
    names = Names.chosen(with_embedder)
    judged: list[Judged] = []
    for fitting, held_out in _folds(cases):
        fitted = _fit([cases[i] for i in fitting], names)
        judged += [_judge(cases[i], *_confidence(cases[i], fitted.weights), fitted) for i in held_out]
    final = _fit(cases, names)
    figures = _figures(judged)
    return {"weights": _named(NAMES, final.weights), **_logistic_fields(final, figures)}, figures


def _fit_second_stage(
    cases: Sequence[Case], weights: Mapping[str, float], gains: Gains
) -> tuple[dict[str, Any], dict[str, float]]:
    """The fields of a `SecondStage` on the scores by `weights`, and figures of the cross-validation."""
    first = vector(weights, NAMES)
    names = Names.chosen(with_embedder=True, second_stage=True)
    scores = [case.matrix @ first for case in cases]
    gained = [np.zeros(len(s)) for s in scores]
    best = [np.argsort(-s, kind="stable")[:N_RESCORED] for s in scores]
    bar = tqdm(zip(cases, best, gained, strict=True), "second stage", len(cases), disable=None)
    for case, places, gain in bar:
        gain[places] = gains(case.question.text, [case.candidates[i] for i in places])
    of_present = [
        i for i, case in enumerate(cases) if case.absent == "nothing" and case.is_right[best[i]].any()
    ]

    def loss(weight: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in of_present:
            new = torch.from_numpy(scores[i][best[i]]) + weight * torch.from_numpy(gained[i][best[i]])
            total += new.logsumexp(0) - new[torch.from_numpy(cases[i].is_right[best[i]])].logsumexp(0)
        return total / len(of_present)

    weight = float(_minimise(loss, 1)[0])
    confidence = []
    for case, score, places, gain in zip(cases, scores, best, gained, strict=True):
        score[places] = rescored(score[places], gain[places], weight)
        order = np.argsort(-score, kind="stable")
        candidates = [case.candidates[i] for i in order]
        numbers = confidence_numbers(
            case.question, candidates, case.matrix[order], score[order], gain[order[0]]
        )
        confidence.append((numbers, int(order[0])))

    def fit(places: Sequence[int]) -> Fitted:
        return _fit_confidence([cases[i] for i in places], [confidence[i] for i in places], first, names)

    judged: list[Judged] = []
    for fitting, held_out in _folds(cases):
        fitted = fit(fitting)
        judged += [_judge(cases[i], *confidence[i], fitted) for i in held_out]
    figures = _figures(judged)
    return {"weight": round(weight, 4), **_logistic_fields(fit(range(len(cases))), figures)}, figures


def _folds(cases: Sequence[Case]) -> Iterator[tuple[list[int], list[int]]]:
    """The places of the cases to fit on, and of those held out, which are of other articles."""
    articles = sorted({case.asked.article for case in cases})
    random.Random(0).shuffle(articles)
    for fold in range(FOLDS):
        held_out = set(articles[fold::FOLDS])
        is_held_out = [case.asked.article in held_out for case in cases]
        yield (
            [i for i, held in enumerate(is_held_out) if not held],
            [i for i, held in enumerate(is_held_out) if held],
        )


def _figures(judged: Sequence["Judged"]) -> dict[str, float]:
    right, present = np.array([j.right for j in judged]), np.array([j.present for j in judged])
    is_right = np.array([j.is_right for j in judged])
    is_present = np.array([j.absent == "nothing" for j in judged])
    is_near = np.array([j.absent != "article" for j in judged])
    perhaps = _best_threshold(present[is_near], is_present[is_near])
    shown = np.where(present >= perhaps, right, 0.0)  # below it, nothing is quoted
    answered_share, answered = coverage(shown[is_present], is_right[is_present], PRECISION)
    return {
        "sentence_accuracy": float(is_right[is_present].mean()),
        "AUROC_present": auroc(present[is_near], is_present[is_near]),
        "AUROC_right": auroc(right[is_near], is_right[is_near]),
        "coverage": answered_share,
        "answered": answered,
        "perhaps": perhaps,
    }


def _logistic_fields(fitted: "Fitted", figures: Mapping[str, float]) -> dict[str, Any]:
    return {
        "right": _named(CONFIDENCE_NAMES, fitted.right),
        "present": _named(CONFIDENCE_NAMES, fitted.present),
        "thresholds": {name: round(figures[name], 4) for name in ("answered", "perhaps")},
    }


class Names(NamedTuple):
    """The places of the features of each model, in `NAMES` and, for the two logistic models, in `CONFIDENCE_NAMES`."""

    ranking: list[int]
    right: list[int]
    present: list[int]

    @classmethod
    def chosen(cls, with_embedder: bool, second_stage: bool = False) -> "Names":
        """The names that are used with or without an embedder's scores, and those of the second stage."""
        n_features = len(NAMES) - (0 if with_embedder else OF_EMBEDDER)
        unused = (frozenset() if with_embedder else CONFIDENCE_OF_EMBEDDER) | (
            set() if second_stage else {"gain"}
        )
        right = [i for i, name in enumerate(CONFIDENCE_NAMES) if name not in unused]
        present = [i for i in right if CONFIDENCE_NAMES[i] not in NOT_OF_PRESENCE]
        return cls(list(range(n_features)), right, present)


class Judged(NamedTuple):
    """What a fitted ranker says of a case, and whether its best candidate is right."""

    absent: Absent
    right: float
    present: float
    is_right: bool


def _judge(case: Case, numbers: Vector, best: int, fitted: Fitted) -> Judged:
    right, present = (sigmoid(float(numbers @ weights)) for weights in (fitted.right, fitted.present))
    return Judged(case.absent, right, present, bool(case.is_right[best]))


def _confidence(case: Case, weights: Vector) -> tuple[Vector, int]:
    """The confidence numbers of a case, and the place of its best candidate."""
    scores = case.matrix @ weights
    order = np.argsort(-scores, kind="stable")
    candidates = [case.candidates[i] for i in order]
    return confidence_numbers(case.question, candidates, case.matrix[order], scores[order]), int(order[0])


def _fit(cases: Sequence[Case], names: Names) -> Fitted:
    weights = _fit_ranking([c for c in cases if c.absent == "nothing"], names.ranking)
    return _fit_confidence(cases, [_confidence(case, weights) for case in cases], weights, names)


def _fit_confidence(
    cases: Sequence[Case], confidence: Sequence[tuple[Vector, int]], weights: Vector, names: Names
) -> Fitted:
    """The two logistic models, from the confidence numbers and the place of the best candidate of each case."""
    numbers = np.array([row for row, _ in confidence])
    is_right = np.array([case.is_right[best] for case, (_, best) in zip(cases, confidence, strict=True)])
    is_present = np.array([case.absent == "nothing" for case in cases])
    right = _fit_logistic(numbers, is_right, names.right)
    present = _fit_logistic(numbers, is_present, names.present)
    return Fitted(weights, right, present)


def _fit_ranking(cases: Sequence[Case], used: list[int]) -> Vector:
    """Maximise the mean log of the probability, by a softmax over a case's candidates, of all that are right."""
    cases = [case for case in cases if case.is_right.any() and not case.is_right.all()]
    scale = np.concatenate([case.matrix for case in cases]).std(axis=0) + 1e-9
    longest = max(len(case.candidates) for case in cases)
    x = torch.zeros(len(cases), longest, len(NAMES), dtype=torch.float64)  # (cases, candidates, features)
    is_right = torch.zeros(len(cases), longest, dtype=torch.bool)
    is_there = torch.zeros(len(cases), longest, dtype=torch.bool)
    for i, case in enumerate(cases):
        n = len(case.candidates)
        x[i, :n] = torch.from_numpy(case.matrix / scale)
        is_right[i, :n], is_there[i, :n] = torch.from_numpy(case.is_right), True

    def loss(weights: Tensor) -> Tensor:
        scores = (x[..., used] @ weights[used]).masked_fill(~is_there, -torch.inf)
        right = scores.masked_fill(~is_right, -torch.inf)
        return (scores.logsumexp(1) - right.logsumexp(1)).mean() + L2 * weights.square().sum()

    return _minimise(loss, len(NAMES)) / scale


def _fit_logistic(numbers: Vector, labels: NDArray[np.bool_], used: list[int]) -> Vector:
    """Logistic regression of labels (n,) on numbers (n, F), the first of which is 1 for the bias."""
    mean, scale = numbers.mean(axis=0), numbers.std(axis=0) + 1e-9
    mean[0], scale[0] = 0, 1
    x, y = torch.from_numpy((numbers - mean) / scale), torch.from_numpy(labels.astype(np.float64))

    def loss(weights: Tensor) -> Tensor:
        logits = x[:, used] @ weights[used]
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        return entropy + L2 * weights[1:].square().sum()

    weights = _minimise(loss, numbers.shape[1]) / scale
    weights[0] -= weights @ mean
    return weights


def _minimise(loss: Any, n: int) -> Vector:
    weights = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach().numpy()


def _best_threshold(scores: Vector, labels: NDArray[np.bool_]) -> float:
    """The threshold with the highest Youden's J: true positive rate minus false positive rate."""
    order = np.argsort(-scores)
    true, false = np.cumsum(labels[order]) / labels.sum(), np.cumsum(~labels[order]) / (~labels).sum()
    return float(scores[order][np.argmax(true - false)])


def _named(names: Sequence[str], weights: Vector) -> dict[str, float]:
    return {name: round(float(w), 5) for name, w in zip(names, weights, strict=True) if w}
