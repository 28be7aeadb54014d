"""Semantic textual similarity (STS): correlation of cosines with human scores, for an embedder and its baselines."""

import csv
import gzip
import lzma
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from embed.encoding.contenders import Contender, contenders, names_of, variants
from embed.encoding.encoder import Dtype, PromptName
from embed.evaluation.contamination import count_seen, training_texts
from embed.evaluation.published import check_published, content_sha256
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import DEFAULT_MODEL

Row = Literal["baseline", "random", "raw-mean", "raw-weightedmean", "floor", "dense", "int8", "dims"]
Numbers = NDArray[np.float64]

COLUMNS = ("dataset", "system", "model", "dimension", "Spearman", "Pearson", "vs baseline")
FIELDS = ("sentence1", "sentence2", "score")
RESAMPLES = 1000


def evaluate_sts(
    *,
    data: list[str],
    embedder: str = DEFAULT_MODEL,
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

    Rows, as in `eval.py retrieval`: baseline; random, raw-mean, raw-weightedmean and floor of the base; dense, int8 and
    dims of the embedder. First sentences are treated as queries, second sentences as documents: the corpus map is
    fitted on the second sentences, and only they are quantised for int8.

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
    files = [Pairs.load(path) for path in data]
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
            for row, values in _rows(
                pairs, contender, prompt_name, dims if "dims" in asked else (), "int8" in asked
            ):
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


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with human scores: three columns of equal length."""

    name: str
    first: list[str]
    second: list[str]
    scores: Numbers

    @cached_property
    def sha256(self) -> str:
        """Checksum of the pairs and their scores, whatever the file's name and format."""
        columns = zip(self.first, self.second, self.scores, strict=True)
        return content_sha256((first, second, f"{score:.3f}") for first, second, score in columns)

    @classmethod
    def load(cls, path: str | Path) -> "Pairs":
        """Read a file of sentence1, sentence2 and score.

        Raises:
            InputError: for a missing file, an unknown file type, a missing column (the message lists the existing
                ones), a score that is not a finite number, equal scores only, or fewer than two pairs.
        """
        path = Path(path)
        rows = [(place, [row.get(key) for key in FIELDS]) for place, row in _read(path)]
        for place, (first, second, score) in rows:
            if not isinstance(first, str) or not isinstance(second, str):
                raise InputError(f"{place}: expected sentence1 and sentence2, both strings.")
            if not _is_number(score):
                raise InputError(f"{place}: score is {score!r}; expected a number.")
        if len(rows) < 2:
            raise InputError(f"{path} has {len(rows)} sentence pairs; expected at least two.")
        if len({float(score) for _, (_, _, score) in rows if score is not None}) < 2:
            raise InputError(
                f"{path}: all scores are {rows[0][1][2]}; expected different scores: a correlation needs variance."
            )
        first, second, scores = (list(column) for column in zip(*(values for _, values in rows), strict=True))
        return cls(path.name.split(".")[0], first, second, np.array(scores, dtype=np.float64))


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


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _rows(
    pairs: Pairs, contender: Contender, role: PromptName | None, dims: Sequence[int], int8: bool
) -> Iterator[tuple[dict[str, Any], Numbers]]:
    """A contender's table rows, each with its cosines (n,)."""
    first, second = contender.encode(pairs.first, role), contender.encode(pairs.second, role)
    for variant in variants(contender, first, second, dims, int8):
        cosines = _cosines(variant.queries, variant.stored)
        figures = correlations(cosines, pairs.scores)
        check_published(
            contender.weights_sha256,
            pairs.sha256,
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
    needs_base: list[Row] = ["random", "raw-mean", "raw-weightedmean"] if base else []
    return ["baseline", *needs_base, "floor", "dense", "int8", "dims"]


def _ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    figure = {(row["dataset"], row["system"]): row["Spearman"] for row in results}
    return {
        f"dense/{peer} Spearman {dataset}": figure[dataset, "dense"] / value
        for (dataset, peer), value in figure.items()
        if (dataset, "dense") in figure and peer in ("baseline", "floor", "raw-weightedmean") and value
    }


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file of any supported format, each with its location for messages."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file of sentence1, sentence2 and score.")
    if has_ending(path, JSONL):
        yield from read_rows(path)
        return
    endings = [ending.lower() for ending in path.suffixes if ending.lower() in (".csv", ".tsv")]
    if not endings:
        raise InputError(
            f"{path} has an unknown file type; expected .csv, .tsv or .jsonl, optionally with .gz or .xz."
        )
    # In tab-separated files, quotation marks belong to the sentence and do not quote a field.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if endings[-1] == ".tsv" else {}
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, **dialect)
            if missing := [field for field in FIELDS if field not in (reader.fieldnames or ())]:
                raise InputError(
                    f"{path} has no column {missing[0]}; its columns are {', '.join(reader.fieldnames or ['none'])}."
                )
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}; save it as UTF-8.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"{path} is damaged or not a table of sentences: {error}.") from None
