"""Benchmark embedder training from random weights: CPU time until retrieval reaches shares of a baseline's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.learn import cpu_seconds_to
from embed.encoding.contenders import Contender, contenders
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from index.evaluation.collection import Collection
from index.evaluation.metrics import score
from index.evaluation.rank_vectors import Retrievers
from index.evaluation.retrieval import RESULTS_PER_QUERY

SHARES = (0.80, 0.85, 0.90, 0.95, 1.00)  # of the baseline's mean nDCG@10
COLUMNS = ("run", "step", "cpu_minutes", "nDCG@10", "of_baseline")

Curve = list[tuple[float, float]]  # (CPU seconds so far, mean nDCG@10)


def bench_learn_embedding(
    *,
    data: list[str],
    runs: list[str],
    baseline: str = "all-MiniLM-L6-v2",
    split: str = "test",
    max_tokens: int = 256,
) -> None:
    """Evaluate every checkpoint of trainings that follow each other: mean nDCG@10 by CPU time of training.

    The trainings are by scripts/train_embedder.py, with --keep_checkpoints large enough to keep them all; each starts
    from the one before. CPU time is that of all threads of rank 0 in the steps, without evaluations and checkpoints,
    and without preparing the data and the tokenizer. Prints a row per checkpoint, and as ratios the CPU-minutes at
    which 80, 85, 90, 95 and 100 % of the baseline's mean are reached, interpolated between checkpoints.

    Args:
        data: BEIR folders.
        runs: out_dirs of the trainings, in order.
        baseline: known name or folder of a sentence-transformers model.
        split: split of the judgements.
        max_tokens: maximum text length in tokens.
    """
    if not data or not runs:
        raise InputError("--data or --runs is empty; give at least one BEIR folder and the out_dir of a run.")
    collections = [Collection.load(folder, split) for folder in data]
    (peer,) = contenders(["baseline"], embedder="", base=None, baseline=baseline, max_tokens=max_tokens)
    target = mean_ndcg(peer, collections)
    rows: list[dict[str, Any]] = []
    spent = 0.0
    for run in runs:
        checkpoints = sorted(Path(run).glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        if not checkpoints:
            raise InputError(f"{run} has no checkpoints; give the out_dir of a training.")
        seconds = cpu_seconds(Path(run))
        for folder in tqdm(checkpoints, desc=f"evaluating {run}", disable=None):
            step = int(folder.name.removeprefix("step-"))
            (ours,) = contenders(
                ["dense"], embedder=str(folder), base=None, baseline=baseline, max_tokens=max_tokens
            )
            mean = mean_ndcg(ours, collections)
            at = spent + max((s for n, s in seconds if n <= step), default=0.0)
            rows.append({"run": Path(run).name, "step": step, "cpu_minutes": at / 60, "nDCG@10": mean})
            rows[-1]["of_baseline"] = mean / target
        spent += seconds[-1][1] if seconds else 0.0
    curve = [(row["cpu_minutes"] * 60, row["nDCG@10"]) for row in rows]
    reached = {f"CPU-minutes to {share:.0%}": minutes_to(share * target, curve) for share in SHARES}
    found = {name: minutes for name, minutes in reached.items() if minutes is not None}
    rows.append({"run": baseline, "nDCG@10": target, "of_baseline": 1.0})
    print_report(rows, COLUMNS, found, ("sentence-transformers", "ir-measures"))


def mean_ndcg(contender: Contender, collections: Sequence[Collection]) -> float:
    """Mean over the collections of the contender's nDCG@10, without a corpus map."""
    total = 0.0
    for collection in collections:
        queries = contender.encode(list(collection.queries.values()), "query")
        documents = contender.encode(collection.texts, "document")
        run = Retrievers(collection).dense(queries, documents, RESULTS_PER_QUERY)
        total += score(collection, run)["nDCG@10"]
    return total / len(collections)


def cpu_seconds(run: Path) -> list[tuple[int, float]]:
    """(step, CPU seconds of training so far) of each logged step."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["cpu_s"]) for row in rows if "cpu_s" in row]


def minutes_to(target: float, curve: Curve) -> float | None:
    """CPU minutes until the mean first reached `target`, interpolated; None if it never did."""
    if curve and curve[0][1] >= target:
        return curve[0][0] / 60
    seconds = cpu_seconds_to(-target, [(0, at, -mean) for at, mean in curve])
    return None if seconds is None else seconds / 60
