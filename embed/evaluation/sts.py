"""Semantic textual similarity (STS): correlation of cosines with human scores, for an embedder and its baselines."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embed.data.sentence_pairs import SentencePairs
from embed.data.vectors import Vectors
from embed.encoding.contenders import OF_BASE, Contender, contenders, names_of, variants
from embed.encoding.embedder import PromptName
from embed.encoding.encoder import Dtype
from embed.evaluation.contamination import count_seen, training_texts
from embed.evaluation.published import check_published, content_sha256
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import DEFAULT_EMBEDDER

Row = Literal[
    "baseline", "random", "raw-mean", "raw-weightedmean", "floor", "dense", "unmapped", "int8", "dims"
]
Numbers = NDArray[np.float64]

COLUMNS = ("dataset", "system", "model", "dimension", "Spearman", "Pearson", "vs baseline")
RESAMPLES = 1000


def evaluate_sts(
    *,
    data: list[str],
    embedder: str = DEFAULT_EMBEDDER,
    base: str | None = None,
    baseline: str = "all-MiniLM-L6-v2",
    max_tokens: int = 256,
    rows: list[Row] | None = None,
    dims: tuple[int, ...] = (256, 128, 64),
    prompt_name: PromptName | None = None,
    training_data: list[str] | None = None,
    device: DeviceName = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Evaluate an embedder on sentence pairs: Spearman and Pearson correlation of cosines with human scores.

    Rows, as in `eval.py retrieval`: baseline; random, raw-mean, raw-weightedmean and floor of the base; dense,
    unmapped, int8 and dims of the embedder. First sentences are treated as queries, second sentences as documents: the
    corpus map is fitted on the second sentences, and only they are quantised for int8.

    "vs baseline" is the 95 % interval of the difference in Spearman: paired bootstrap over pairs, 1,000 resamples with
    seed 0. Prints a table and a last line of JSON; prints neither if the baseline misses its published score.

    Args:
        data: files of sentence1, sentence2 and score: .csv or .tsv with these column names in the first line, or
            .jsonl; optionally .gz or .xz.
        embedder: the embedder: a model folder, a run's out_dir, or a known name.
        base: the GPT that the embedder was trained from, for the base's rows; if not given, the embedder's own GPT.
        baseline: a sentence-transformers model: a known name or a folder.
        max_tokens: longest text in tokens.
        rows: the rows to compute; if not given, all, but random and raw rows only with --base.
        dims: the dimensions to which the rows of dims truncate vectors.
        prompt_name: query or document prepends that prompt of each model to both sentences; if not given, no prompt,
            as in mteb.
        training_data: the embedder's training data, as for train_embedder; near-duplicates of it are counted.
        device: device of the models.
        dtype: dtype of the GPTs' matrix products.
    """
    if not data:
        raise InputError("--data is empty; expected files of sentence pairs.")
    for n in dims:
        if n < 1:
            raise InputError(f"dims contains {n}; expected numbers of at least 1.")
    asked = set(rows or _usual_rows(base))
    files = [SentencePairs.load(path) for path in data]
    tables: list[list[dict[str, Any]]] = [[] for _ in files]
    cosines: list[list[Numbers]] = [[] for _ in files]
    for contender in contenders(
        names_of(asked),
        embedder=embedder,
        base=base,
        baseline=baseline,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    ):
        for pairs, table, columns in zip(files, tables, cosines, strict=True):
            for row, values in _rows(pairs, contender, prompt_name, asked, dims):
                if row["system"] != "dense" or "dense" in asked:
                    table.append(row)
                    columns.append(values)
    training = training_texts(training_data) if training_data else []
    for pairs, table, columns in zip(files, tables, cosines, strict=True):
        if not table:
            raise InputError(
                f"dims are {dims}, none below the vectors' dimension, so the table is empty; give smaller dims."
            )
        if table[0]["system"] == "baseline":
            for row, interval in zip(table[1:], intervals(pairs.scores, columns), strict=True):
                row["vs baseline"] = list(interval)
        if training_data:
            seen = count_seen(f"sentences of {pairs.name}", [*pairs.first, *pairs.second], training)
            for row in table:
                row["near-duplicate sentences"] = seen
    results = [row for table in tables for row in table]
    print_report(results, COLUMNS, _ratios(results), ("sentence-transformers", "scipy"))


def sha256_of(pairs: SentencePairs) -> str:
    """Checksum of the pairs and their scores, whatever the file's name and format."""
    columns = zip(pairs.first, pairs.second, pairs.scores, strict=True)
    return content_sha256((first, second, f"{score:.3f}") for first, second, score in columns)


def correlations(cosines: Numbers, scores: Numbers) -> dict[str, float]:
    """Spearman's and Pearson's correlation of cosines (n,) with human scores (n,), by scipy."""
    with extra("eval"):
        from scipy.stats import pearsonr, spearmanr
    return {
        "Spearman": float(spearmanr(cosines, scores).statistic),
        "Pearson": float(pearsonr(cosines, scores).statistic),
    }


def intervals(scores: Numbers, cosines: Sequence[Numbers], seed: int = 0) -> list[tuple[float, float]]:
    """95 % intervals of the difference in Spearman from the first system: percentile bootstrap over pairs.

    Args:
        scores: (n,) human scores.
        cosines: (n,) for each system; the first system is the reference.
        seed: seed of the resamples, which are the same for all systems.

    Returns:
        Lower and upper end for each system but the first.
    """
    with extra("eval"):
        from scipy.stats import rankdata
    drawn = np.random.default_rng(seed).integers(len(scores), size=(RESAMPLES, len(scores)))

    def ranks(values: Numbers) -> Numbers:
        """Ranks within each resample as standard scores: the mean of a product is then Spearman's correlation."""
        resampled = rankdata(values[drawn], axis=1)
        resampled -= resampled.mean(axis=1, keepdims=True)
        deviation = resampled.std(axis=1, keepdims=True)
        return np.divide(resampled, deviation, out=np.zeros_like(resampled), where=deviation > 0)

    human = ranks(scores)
    spearman = [(ranks(values) * human).mean(axis=1) for values in cosines]
    ends = [np.percentile(values - spearman[0], (2.5, 97.5)) for values in spearman[1:]]
    return [(float(low), float(high)) for low, high in ends]


def _rows(
    pairs: SentencePairs, contender: Contender, role: PromptName | None, asked: set[Row], dims: Sequence[int]
) -> Iterator[tuple[dict[str, Any], Numbers]]:
    """A contender's table rows, each with its cosines (n,)."""
    first, second = contender.encode(pairs.first, role), contender.encode(pairs.second, role)
    for variant in variants(contender, first, second, asked, dims):
        cosines = _cosines(variant.queries, variant.stored)
        figures = correlations(cosines, pairs.scores)
        check_published(
            contender.weights_sha256,
            sha256_of(pairs),
            "Spearman",
            figures["Spearman"],
            model=contender.model,
            data=pairs.name,
        )
        row = {"dataset": pairs.name, "system": variant.name, "model": contender.model}
        yield row | {"dimension": variant.stored.shape[1]} | figures | {"pairs": len(pairs.first)}, cosines


def _cosines(first: Vectors, second: Vectors) -> Numbers:
    return np.einsum("nd,nd->n", first.astype(np.float64), second.astype(np.float64))


def _usual_rows(base: str | None) -> list[Row]:
    return [row for row in get_args(Row) if base or row not in OF_BASE]


def _ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    figure = {(row["dataset"], row["system"]): row["Spearman"] for row in results}
    return {
        f"dense/{peer} Spearman {dataset}": figure[dataset, "dense"] / value
        for (dataset, peer), value in figure.items()
        if (dataset, "dense") in figure and peer in ("baseline", "floor", "raw-weightedmean") and value
    }
