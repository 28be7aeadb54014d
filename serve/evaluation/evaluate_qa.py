"""Evaluation of answers: the right sentence, and how well the probabilities tell it from a wrong one."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from embed.data.vectors import Vectors
from embed.encoding.encoder import Encoder
from embed.encoding.peer_model import Teacher
from gpt_core.common.errors import InputError
from gpt_core.evaluation.plots import require_matplotlib
from gpt_core.evaluation.report import print_report
from gpt_core.generation.engine import Engine
from gpt_core.hub.locate import DEFAULT_EMBEDDER, DEFAULT_GENERATOR
from gpt_core.tasks.metrics import exact_match, f1
from index import Index
from index.evaluation.built_index import CachingEncoder, built_index
from serve.answers.answer import answer_question
from serve.answers.features import NAMES
from serve.answers.language import language_of
from serve.answers.likelihood import Likelihood
from serve.answers.quotes import Verdict, best_quote, choose
from serve.answers.ranker import SHIPPED, Ranker, SecondStage, ranker_for
from serve.answers.reader import Reader
from serve.evaluation.metrics import auroc, coverage, precisions
from serve.evaluation.plot_confidence import plot_confidence
from serve.evaluation.qa_cases import Absent, Case, holds_answer, make_cases
from serve.evaluation.qa_data import QaData, read_qa
from serve.work.loading import load_generator

System = Literal["quote", "second stage", "reader", "overlap", "random", "baseline", "generate"]
TIMED = 200  # questions whose time is measured, one at a time
COLUMNS = (
    "dataset", "system", "model", "absent", "questions", "sentence_accuracy", "answered", "answered_right",
    "AUROC_present", "AUROC_right", "coverage@90", "not_found_rate", "EM", "F1", "milliseconds",
)  # fmt: skip


class Outcome(NamedTuple):
    """What a system says of a case.

    `right`, `present`: its probabilities, or scores; `is_right`: whether its quote has an answer, or how probably.
    """

    right: float
    present: float
    is_right: float
    verdict: Verdict
    em: float
    f1: float


def evaluate_qa(
    *,
    data: list[str],
    embedder: list[str] | None = None,
    split: str = "test",
    index_as: Literal["corpus", "paragraph"] = "corpus",
    questions: int | None = None,
    seed: int = 0,
    weights: Path = SHIPPED,
    second_stage: bool = False,
    reader: str | None = None,
    baseline: str | None = None,
    generator: str = DEFAULT_GENERATOR,
    generated: int = 0,
    plots: Path | None = None,
) -> None:
    """Evaluate answers in quotes over a corpus: find the passages, then the sentence, and know whether it is there.

    The paragraphs of a data set are indexed and searched as for a user. A quote is right if it holds one of the answers
    literally, in whatever passage. Each question is asked three times: as it is; without its paragraph among the
    passages; and without its article. Rows:

    - quote: the product; second stage: with it, if asked for. overlap: the sentence with the largest share of the
      question's words, by their weight in the corpus. random: any sentence of the passages; its expected figures.
    - baseline: the product's quotes from the passages that a sentence-transformers model finds by its vectors alone.
    - generate: the product's texts of a generator, without what no passage supports, for a number of the questions.
    - absent: what is left out for AUROC_present (questions as they are against those without it) and not_found_rate.
      adversarial: SQuAD 2.0's questions that their paragraph does not answer, against its others.
    - answered: share of the answerable questions with an answer; answered_right: share of these that is right, at the
      thresholds that were fitted with the weights. coverage@90: the largest share that could be answered with 90 %
      right. AUROC_right: of the probability that the quote is right, over both kinds of questions.
    - EM, F1: SQuAD's, of the whole quote, which is a sentence where the answers are a few words.
    - reader: the product's quotes, with EM and F1 of the short answer that a reader finds in each, however improbable;
      none counts 0.
    - milliseconds: median over 200 questions, one at a time, search included.

    Args:
        data: SQuAD's JSON, 1.1 or 2.0 (may be .gz), or BEIR folders whose queries have answers in their metadata.
        embedder: model folders or known names, each with rows of its own; default: zhizhi-mini. One that the
            weights were not fitted with gets those that need no embedder.
        split: split of the BEIR folders.
        index_as: corpus: all paragraphs are searched. paragraph: each question is answered from its own paragraph.
        questions: number of questions of each data set, drawn at random; default: all.
        seed: seed of the draw.
        weights: file of scripts/fit_answers.py; default: the one that is shipped.
        second_stage: whether to evaluate the second stage, too, which takes about a second per question and case.
        reader: model folder or run's out_dir of the task span, for the rows reader.
        baseline: a sentence-transformers model for the rows baseline, such as all-MiniLM-L6-v2; it needs extra eval.
        generator: model folder or known name, for the rows generate.
        generated: number of questions of each data set that it answers, drawn at random; it takes seconds for each.
        plots: folder for diagrams of reliability and of risk against coverage.
    """
    if not data:
        raise InputError("--data names nothing; expected SQuAD's JSON or BEIR folders.")
    if plots:
        require_matplotlib()
        plots.mkdir(parents=True, exist_ok=True)
    writer = load_generator(generator, max_running=1) if generated else None
    short = Reader(reader, least=0.0) if reader is not None else None
    results: list[dict[str, Any]] = []
    for name in embedder or [DEFAULT_EMBEDDER]:
        encoder = CachingEncoder.from_pretrained(name)
        for path in data:
            read = read_qa(path, split).sample(questions, seed)
            with built_index(read.collection, encoder) as index:
                results += _rows(
                    read, index, name, index_as == "paragraph", weights, second_stage, short, plots
                )
                if writer:
                    few = read.sample(generated, seed)
                    results.append({"dataset": read.name, "system": "generate", "model": name, "absent": "nothing",
                                    "generator": generator, **_generate(few, index, writer)})  # fmt: skip
    if baseline:
        teacher = Teacher(baseline)
        for path in data:
            read = read_qa(path, split).sample(questions, seed)
            results += _baseline(read, teacher, index_as == "paragraph", weights)
    print_report(results, COLUMNS, _ratios(results))


def _baseline(data: QaData, teacher: Teacher, own_paragraph: bool, weights: Path) -> list[dict[str, Any]]:
    documents = list(data.documents.values())
    vectors = teacher.encode([f"{document.title} {document.text}" for document in documents])
    with (
        tempfile.TemporaryDirectory() as scratch,
        Index.create(Path(scratch, "index"), dimension=teacher.dimension) as index,
    ):
        index.add(documents, vectors)
        ranker = ranker_for(language_of(data.questions[0].text), None, weights)
        outcomes: dict[str, list[Outcome]] = {}
        for case, absent in _cases(
            data, index, ranker, own_paragraph, partial(teacher.encode, prompt_name="query")
        ):
            outcomes.setdefault(absent, []).append(_quote(case, ranker, data))
    present = outcomes.pop("nothing")
    row = {"dataset": data.name, "system": "baseline", "model": teacher.name}
    return [
        {**row, "absent": left, **_figures(present, others)}
        for left, others in (outcomes or {"nothing": []}).items()
    ]


def _cases(
    data: QaData,
    index: Index,
    ranker: Ranker,
    own_paragraph: bool,
    encode: Callable[[list[str]], Vectors] | None = None,
) -> Iterator[tuple[Case, str]]:
    """The cases with what is absent, which may be "adversarial"."""
    left_out: list[Absent] = [] if own_paragraph else ["paragraph"]
    if left_out and data.has_articles:
        left_out.append("article")
    for case in make_cases(
        data, index, ranker.n_passages, ["nothing", *left_out], own_paragraph=own_paragraph, encode=encode
    ):
        absent = case.absent if case.asked.answers else "adversarial"
        if absent != "adversarial" or case.absent == "nothing":
            yield case, absent


def _rows(
    data: QaData,
    index: Index,
    model: str,
    own_paragraph: bool,
    weights: Path,
    second_stage: bool,
    reader: Reader | None,
    plots: Path | None,
) -> list[dict[str, Any]]:
    ranker = ranker_for(language_of(data.questions[0].text), index.settings.fingerprint, weights)
    rescore = _second_stage(ranker, index) if second_stage else None
    outcomes: dict[System, dict[str, list[Outcome]]] = {}
    for case, absent in _cases(data, index, ranker, own_paragraph):
        found: dict[System, Outcome] = {"quote": _quote(case, ranker, data)}
        if reader:
            # EM and F1, which need the reader, are those of questions whose answer is there
            found["reader"] = _quote(case, ranker, data, reader=reader if absent == "nothing" else None)
        if rescore:
            found["second stage"] = _quote(case, ranker, data, rescore)
        found |= {"overlap": _overlap(case), "random": _random(case)}
        for system, outcome in found.items():
            outcomes.setdefault(system, {}).setdefault(absent, []).append(outcome)
    milliseconds = {
        "quote": _latency(data, index),
        "second stage": rescore and _latency(data, index, rescore),
        "reader": reader and _latency(data, index, reader=reader),
    }
    rows: list[dict[str, Any]] = []
    for system, by_absent in outcomes.items():
        present = by_absent.pop("nothing")
        for left, others in (by_absent or {"nothing": []}).items():
            row: dict[str, Any] = {"dataset": data.name, "system": system, "model": model, "absent": left}
            row |= _figures(present, others)
            if system in milliseconds:
                row["milliseconds"] = milliseconds[system]
                if plots:
                    name = f"{data.name}.{Path(model).name}.{left}{'.second_stage' * (system != 'quote')}.png"
                    plot_confidence(plots / name, present, others)
            rows.append(row)
    return rows


def _second_stage(ranker: Ranker, index: Index) -> SecondStage:
    encoder = index.encoder
    if ranker.likelihood_weight is None or not isinstance(encoder, Encoder):
        raise InputError("The weights have no second stage for this embedder; leave out --second_stage.")
    return Likelihood(encoder)


def _quote(
    case: Case,
    ranker: Ranker,
    data: QaData,
    rescore: SecondStage | None = None,
    reader: Reader | None = None,
) -> Outcome:
    """What the best quote is worth; with a reader, EM and F1 are those of its short answer."""
    if not case.candidates or not case.question.keys:
        return Outcome(0, 0, 0, "not_found", 0, 0)

    def document(doc_id: str) -> str:
        return data.documents[doc_id].text

    ranking = ranker.rank(case.question, case.candidates, case.matrix, rescore)
    best, answers = best_quote(ranking, document), case.asked.answers
    verdict = choose(ranking, document, ranker.thresholds).verdict
    is_right = holds_answer(best.text, case.asked)
    text = best.text
    if reader:
        span = reader.read(case.asked.text, best) if answers else None
        text = span.text if span else ""
    return Outcome(
        ranking.right, ranking.present, is_right, verdict, exact_match(text, answers), f1(text, answers)
    )


def _generate(data: QaData, index: Index, generator: Engine) -> dict[str, Any]:
    """Figures of the texts that the generator writes for answerable questions."""
    outcomes: list[Outcome] = []
    cited: list[float] = []
    seconds: list[float] = []
    for asked in tqdm(data.questions, "generating", disable=None):
        if not asked.answers:
            continue
        start = time.perf_counter()
        found = answer_question(asked.text, index, generator)
        seconds.append(time.perf_counter() - start)
        citations = [sentence.citation.text for sentence in found.sentences if sentence.citation]
        cited += [holds_answer(text, asked) for text in citations]
        text = found.text if found.kind == "generated" else ""
        outcomes.append(
            Outcome(
                *(found.probability, found.present, holds_answer(text, asked)),
                "answered" if text else "not_found",
                *(exact_match(text, asked.answers), f1(text, asked.answers)),
            )
        )
    return _figures(outcomes, []) | {
        "citation_precision": _mean(cited),
        "milliseconds": 1000 * median(seconds),
    }


def _overlap(case: Case) -> Outcome:
    if not case.candidates:
        return Outcome(0, 0, 0, "not_found", 0, 0)
    covers = case.matrix[:, NAMES.index("cover")]
    best = int(np.argmax(covers))
    text, answers, cover = case.candidates[best].text, case.asked.answers, float(covers[best])
    is_right = holds_answer(text, case.asked)
    return Outcome(cover, cover, is_right, "answered", exact_match(text, answers), f1(text, answers))


def _random(case: Case) -> Outcome:
    texts = [candidate.text for candidate in case.candidates] or [""]
    is_right, em, f = (
        float(np.mean([score(text) for text in texts]))
        for score in (
            lambda text: holds_answer(text, case.asked),
            lambda text: exact_match(text, case.asked.answers),
            lambda text: f1(text, case.asked.answers),
        )
    )
    return Outcome(0, 0, is_right, "answered", em, f)


def _figures(present: Sequence[Outcome], others: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a system; a rate of questions that are not there is None."""
    right = np.array([o.right for o in (*present, *others)])
    is_right = np.array([o.is_right for o in (*present, *others)]) > 0.5
    is_present = np.arange(len(right)) < len(present)
    answered = [o.is_right for o in present if o.verdict == "answered"]
    refused = [o.verdict == "not_found" for o in others]
    wrongly = [o.verdict == "answered" for o in others]
    return {
        "questions": len(present),
        "sentence_accuracy": _mean([o.is_right for o in present]),
        "answered": len(answered) / max(1, len(present)),
        "answered_right": _mean(answered),
        "citation_precision": _mean(answered),
        "citation_recall": sum(answered) / max(1, len(present)),
        "AUROC_present": auroc(np.array([o.present for o in (*present, *others)]), is_present),
        "AUROC_right": auroc(right, is_right),
        "coverage@90": coverage(right[is_present], is_right[is_present], 0.9)[0],
        "not_found_rate": _mean(refused),
        "answered_though_absent": _mean(wrongly),
        "EM": _mean([o.em for o in present]),
        "F1": _mean([o.f1 for o in present]),
        "risk_coverage": _risk_coverage(right[is_present], is_right[is_present]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _risk_coverage(scores: NDArray[np.float64], is_right: NDArray[np.bool_]) -> list[list[float]]:
    """[coverage, share of wrong ones] for the best tenth, two tenths … of the questions."""
    wrong = 1 - precisions(scores, is_right)
    ends = [max(1, len(wrong) * tenths // 10) for tenths in range(1, 11)]
    return [[end / len(wrong), float(wrong[end - 1])] for end in ends]


def _latency(
    data: QaData, index: Index, rescore: SecondStage | None = None, reader: Reader | None = None
) -> float:
    """The median time of a question in milliseconds, after one that opens the index."""
    answer_question(data.questions[0].text, index, second_stage=rescore, reader=reader)
    seconds = []
    for asked in data.questions[:TIMED]:
        start = time.perf_counter()
        answer_question(asked.text, index, second_stage=rescore, reader=reader)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)


def _ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The accuracy of each system relative to the other systems and models on the same data."""
    accuracy = {(r["dataset"], r["system"], r["model"]): r["sentence_accuracy"] for r in results}
    return {
        f"{system} {model}/{other_system} {other_model} sentence_accuracy {dataset}": value / other
        for (dataset, system, model), value in accuracy.items()
        for (other_dataset, other_system, other_model), other in accuracy.items()
        if dataset == other_dataset
        and system in ("quote", "second stage")
        and (system, model) != (other_system, other_model)
        and other
    }
