"""Fit the ranker of answers: its weights, its two probabilities and its thresholds, for a language and an embedder."""

import json
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
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
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.evaluation.built_index import CachingEncoder, built_index
from serve.answers.features import NAMES, OF_EMBEDDER
from serve.answers.language import Language, language_of
from serve.answers.likelihood import Likelihood
from serve.answers.quotes import LEAST_PRESENT
from serve.answers.ranker import (
    CONFIDENCE_NAMES,
    CONFIDENCE_OF_EMBEDDER,
    N_RESCORED,
    NOT_OF_PRESENCE,
    SecondStage,
    confidence_numbers,
    sigmoid,
    vector,
)
from serve.evaluation.metrics import auroc, coverage
from serve.evaluation.qa_cases import Absent, Case, make_cases
from serve.evaluation.qa_data import QaData, read_qa

L2 = 3e-4  # on weights of features that are divided by their deviation
FOLDS = 5  # of articles; thresholds are chosen on probabilities of questions that their weights were not fitted on
PRECISION = 0.9  # of "answered" on these questions
DENIED = 0.05  # share of the questions with an answer in the corpus of which it is said that the corpus does not say
COLUMNS = ("dataset", "language", "embedder", "questions", "sentence_accuracy", "AUROC_present", "AUROC_right",
           "coverage", "not_found", "answered", "perhaps")  # fmt: skip

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
    embedder: str = DEFAULT_EMBEDDER,
    split: str = "dev",
    questions: int = 5000,
    articles: int = 130,
    passages: int = 8,
    second_stage_questions: int = 0,
    seed: int = 0,
    documents_only: bool = False,
) -> None:
    """Fit weights and thresholds for answers, and write them to a JSON file; never fit on a test split.

    Each data set is one language. An index of its paragraphs is built and searched as for a user; its questions are
    answered from it, then without their paragraph, then without their article. For each language two sets of weights
    are written: with the embedder's scores and a second stage, keyed by its fingerprint, and without them, for any
    other embedder. Prints the figures of questions whose article was left out of the fit (five folds).

    Args:
        data: one or more of SQuAD's JSON files, or BEIR folders whose queries have answers in their metadata.
        out: the file to write; what it has for other languages and other embedders stays.
        embedder: model folder or known name.
        split: split of the BEIR folders.
        questions: number of questions of each data set, drawn at random.
        articles: number of articles of each SQuAD file, drawn at random; they are the corpus.
        passages: number of passages whose sentences are ranked.
        second_stage_questions: number of these questions that the second stage is fitted on, such as 300, which takes
            one to three seconds of a core for each; 0: no second stage. The embedder must be a language model, too.
        seed: seed of the draws.
        documents_only: write only the texts of the data's documents to `out`, as JSON lines. An embedder must be
            trained without them (prepare_pairs --exclude), or its scores are too good on these questions.
    """
    if not data:
        raise InputError("--data names nothing; expected SQuAD's JSON or BEIR folders.")
    if documents_only:
        texts = [d.text for path in data for d in read_qa(path, split, articles, seed).documents.values()]
        atomic_write(out, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        return
    encoder = CachingEncoder.from_pretrained(embedder)
    if second_stage_questions and not encoder.model.config.n_layer:
        raise InputError(
            f"second_stage_questions is {second_stage_questions}, but {embedder} is a table of token vectors and no "
            "language model; leave it out."
        )
    rankers: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for path in data:
        read = read_qa(path, split, articles, seed).sample(questions, seed)
        language = _language(read)
        absent: list[Absent] = ["nothing", "paragraph"]
        if read.has_articles:
            absent.append("article")
        with built_index(read.collection, encoder) as index:
            cases = [case for case in make_cases(read, index, passages, absent) if case.candidates]
        for fingerprint in (encoder.fingerprint, None):
            fields, figures = _fit_set(cases, with_embedder=fingerprint is not None)
            if fingerprint and second_stage_questions:
                chosen = {asked.id for asked in read.sample(second_stage_questions, seed).questions}
                few = [case for case in cases if case.asked.id in chosen and case.absent == "nothing"]
                weight = _fit_likelihood_weight(few, fields["weights"], Likelihood(encoder))
                fields["likelihood_weight"] = weight
            rankers.append({"embedder": fingerprint, "language": language, "n_passages": passages, **fields,
                            "provenance": _provenance(read, embedder)})  # fmt: skip
            results.append({"dataset": read.name, "language": language, "embedder": embedder if fingerprint else "any",
                            "questions": len(read.questions), **figures})  # fmt: skip
    fitted = {(ranker["embedder"], ranker["language"]) for ranker in rankers}
    kept = json.loads(out.read_text())["rankers"] if out.exists() else []
    rankers = [*(r for r in kept if (r["embedder"], r["language"]) not in fitted), *rankers]
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
    articles = sorted({case.asked.article for case in cases})
    random.Random(0).shuffle(articles)
    judged: list[Judged] = []
    for fold in range(FOLDS):
        held_out = set(articles[fold::FOLDS])
        fitted = _fit([c for c in cases if c.asked.article not in held_out], names)
        judged += [_judge(c, fitted) for c in cases if c.asked.article in held_out]
    right, present = np.array([j.right for j in judged]), np.array([j.present for j in judged])
    is_right = np.array([j.is_right for j in judged])
    is_present = np.array([j.absent == "nothing" for j in judged])
    is_near = np.array([j.absent != "article" for j in judged])
    shown = np.where(present >= LEAST_PRESENT, right, 0.0)
    answered_share, answered = coverage(shown[is_present], is_right[is_present], PRECISION)
    perhaps = float(np.quantile(present[is_present], DENIED))
    figures = {
        "sentence_accuracy": float(is_right[is_present].mean()),
        "AUROC_present": auroc(present[is_near], is_present[is_near]),
        "AUROC_right": auroc(right[is_near], is_right[is_near]),
        "coverage": answered_share,
        "not_found": float((present < perhaps)[~is_present & is_near].mean()),
        "answered": answered,
        "perhaps": perhaps,
    }
    final = _fit(cases, names)
    fields = {
        "weights": _named(NAMES, final.weights),
        "right": _named(CONFIDENCE_NAMES, final.right),
        "present": _named(CONFIDENCE_NAMES, final.present),
        "thresholds": {"answered": round(answered, 4), "perhaps": round(perhaps, 4)},
    }
    return fields, figures


def _fit_likelihood_weight(
    cases: Sequence[Case], weights: Mapping[str, float], second_stage: SecondStage
) -> float:
    """The weight of the second stage that maximises the mean log of the probability of what is right."""
    found: list[tuple[Tensor, ...]] = []
    for case in tqdm(cases, "second stage", disable=None):
        scores = case.matrix @ vector(weights, NAMES)
        best = np.argsort(-scores, kind="stable")[:N_RESCORED]
        if case.is_right[best].any():
            likelihoods = second_stage(case.question.text, [case.candidates[i] for i in best])
            of_best = (scores[best], likelihoods, case.is_right[best])
            found.append(tuple(torch.from_numpy(array) for array in of_best))

    def loss(weight: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for scores, likelihoods, is_right in found:
            new = scores + weight * likelihoods
            total += new.logsumexp(0) - new[is_right].logsumexp(0)
        return total / len(found)

    return round(float(_minimise(loss, 1)[0]), 4)


class Names(NamedTuple):
    """The places of the features of each model, in `NAMES` and, for the two logistic models, in `CONFIDENCE_NAMES`."""

    ranking: list[int]
    right: list[int]
    present: list[int]

    @classmethod
    def chosen(cls, with_embedder: bool) -> "Names":
        """The names that are used with or without an embedder's scores."""
        n_features = len(NAMES) - (0 if with_embedder else OF_EMBEDDER)
        right = [
            i
            for i, name in enumerate(CONFIDENCE_NAMES)
            if with_embedder or name not in CONFIDENCE_OF_EMBEDDER
        ]
        present = [i for i in right if CONFIDENCE_NAMES[i] not in NOT_OF_PRESENCE]
        return cls(list(range(n_features)), right, present)


class Judged(NamedTuple):
    """What a fitted ranker says of a case, and whether its best candidate is right."""

    absent: Absent
    right: float
    present: float
    is_right: bool


def _judge(case: Case, fitted: Fitted) -> Judged:
    numbers, best = _confidence(case, fitted.weights)
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
    confidence = [_confidence(case, weights) for case in cases]
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


def _named(names: Sequence[str], weights: Vector) -> dict[str, float]:
    return {name: round(float(w), 5) for name, w in zip(names, weights, strict=True) if w}
