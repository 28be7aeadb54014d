"""Test collections: documents, queries and judgements, from BEIR folders or from training pairs."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_core.errors import InputError
from gpt_core.jsonl import JSONL, read_rows
from index.documents import Document, iter_documents

Qrels = dict[str, dict[str, int]]  # query id → document id → grade; relevant if above 0
Run = dict[str, dict[str, float]]  # query id → document id → score


@dataclass(frozen=True)
class Collection:
    """A corpus with judged queries, each of which has a relevant document."""

    name: str
    split: str
    documents: dict[str, Document]
    queries: dict[str, str]
    qrels: Qrels

    @property
    def texts(self) -> list[str]:
        """Each document as one text: title, space, text."""
        return [f"{document.title} {document.text}".strip() for document in self.documents.values()]

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "Collection":
        """Read `corpus.jsonl`, `queries.jsonl` (or .gz, .xz) and `qrels/<split>.tsv` of a BEIR folder.

        Raises:
            InputError: for a missing file, a broken line (its number), or a judged query that is not there.
        """
        folder = Path(folder)
        documents = {document.id: document for document in iter_documents([_find(folder, "corpus")])}
        texts = {query.id: query.text for query in iter_documents([_find(folder, "queries")])}
        qrels = _read_qrels(folder / "qrels" / f"{split}.tsv")
        for query in qrels:
            if query not in texts:
                raise InputError(
                    f"{folder}: qrels/{split}.tsv judges query {query}, which is not in queries.jsonl."
                )
        qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
        if not documents or not qrels:
            raise InputError(
                f"{folder} has {len(documents)} documents and {len(qrels)} judged queries in {split}."
            )
        return cls(folder.resolve().name, split, documents, {query: texts[query] for query in qrels}, qrels)

    @classmethod
    def from_pairs(cls, path: str | Path) -> "Collection":
        """Take training pairs, JSON lines of {"query", "positive"}, for a collection: find each query's positive.

        Raises:
            InputError: for a missing file or a broken line (its number).
        """
        path = Path(path)
        names: dict[str, str] = {}  # of each different positive
        queries: dict[str, str] = {}
        qrels: Qrels = {}
        for query, positive in _read_pairs(path):
            name = names.setdefault(positive, f"d{len(names)}")
            key = f"q{len(queries)}"
            queries[key], qrels[key] = query, {name: 1}
        documents = {name: Document(name, text) for text, name in names.items()}
        return cls(path.name.split(".")[0], "pairs", documents, queries, qrels)

    def sample(self, n_queries: int, n_documents: int, seed: int = 0) -> "Collection":
        """A smaller collection: queries at random, their relevant documents, and others at random to fill up.

        Judgements of documents that are left out go, and queries that then have no relevant document.
        """
        rng = random.Random(seed)
        queries = rng.sample(sorted(self.queries), min(n_queries, len(self.queries)))
        relevant = sorted(
            {d for q in queries for d, grade in self.qrels[q].items() if grade > 0} & self.documents.keys()
        )
        others = sorted(self.documents.keys() - set(relevant))
        rng.shuffle(relevant)
        rng.shuffle(others)
        documents = {d: self.documents[d] for d in [*relevant, *others][:n_documents]}
        qrels = {q: {d: grade for d, grade in self.qrels[q].items() if d in documents} for q in queries}
        qrels = {q: grades for q, grades in qrels.items() if max(grades.values(), default=0) > 0}
        return Collection(self.name, self.split, documents, {q: self.queries[q] for q in qrels}, qrels)

    def run(self, places: NDArray[np.integer], scores: NDArray[np.floating], above: float = -np.inf) -> Run:
        """Results as ir-measures takes them.

        Args:
            places: (Q, k) of documents in `documents`, for each query.
            scores: (Q, k) theirs.
            above: documents that score no more than this were not found.
        """
        names = list(self.documents)
        return {
            query: {names[p]: float(s) for p, s in zip(row, row_scores, strict=True) if s > above}
            for query, row, row_scores in zip(self.queries, places, scores, strict=True)
        }


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}{ending}" for ending in JSONL):
        if path.is_file():
            return path
    raise InputError(f"{folder} has no {stem}.jsonl (or .gz, .xz); expected a BEIR folder.")


def _read_qrels(path: Path) -> Qrels:
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in path.parent.glob("*.tsv"))) or "none"
        raise InputError(f"{path} is missing; the splits that are there: {splits}.")
    qrels: Qrels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: expected query, document and grade between tabs."
            ) from None
    return qrels


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"{path} is missing; expected JSON lines with query and positive.")
    for place, row in read_rows(path):
        query, positive = row.get("query"), row.get("positive")
        if not isinstance(query, str) or not isinstance(positive, str):
            raise InputError(f"{place}: expected query and positive, both strings.")
        yield query, positive
