"""Test collections: documents, queries and relevance judgements, from BEIR folders or from training pairs."""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed.data.beir import Qrels, check_qrels, find_part, join_title, read_qrels, read_queries
from embed.data.pairs import read_examples
from embed.evaluation.published import content_sha256
from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.read import iter_documents

Run = dict[str, dict[str, float]]  # query id → document id → score


@dataclass(frozen=True)
class Collection:
    """A corpus with judged queries, each of which has at least one relevant document."""

    name: str
    split: str
    documents: dict[str, Document]
    queries: dict[str, str]
    qrels: Qrels

    @property
    def texts(self) -> list[str]:
        """One text per document: `join_title`."""
        return [join_title(document.title, document.text) for document in self.documents.values()]

    @cached_property
    def sha256(self) -> str:
        """Checksum of the documents, the judged queries and the positive judgements, whatever the folder's name."""
        texts = zip(self.documents, self.texts, strict=True)
        relevant = [
            ("relevant", query, document, str(grade))
            for query, grades in self.qrels.items()
            for document, grade in grades.items()
            if grade > 0
        ]
        return content_sha256(
            [
                *(("document", *pair) for pair in texts),
                *(("query", *pair) for pair in self.queries.items()),
                *relevant,
            ]
        )

    @classmethod
    def load(cls, folder: str | Path, split: str) -> "Collection":
        """Read `corpus.jsonl`, `queries.jsonl` (or .gz, .xz) and `qrels/<split>.tsv` of a BEIR folder.

        Raises:
            InputError: for a missing file, a malformed line (with its number), or judgements of unknown ids.
        """
        folder = Path(folder)
        documents = {document.id: document for document in iter_documents([find_part(folder, "corpus")])}
        texts = read_queries(folder)
        qrels = read_qrels(folder, split)
        check_qrels(folder, split, qrels, texts, documents)
        qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
        if not documents or not qrels:
            raise InputError(
                f"{folder} has {len(documents)} documents and {len(qrels)} judged queries in {split}; "
                "expected at least one of each."
            )
        return cls(folder.resolve().name, split, documents, {query: texts[query] for query in qrels}, qrels)

    @classmethod
    def from_pairs(cls, path: str | Path) -> "Collection":
        """Make a collection of training pairs (`embed.data.pairs`): a query's positives are its relevant documents.

        Raises:
            InputError: as `read_examples` raises it, or for examples without positives.
        """
        path = Path(path)
        names: dict[str, str] = {}  # text of each distinct positive → document id
        queries: dict[str, str] = {}
        qrels: Qrels = {}
        for example in read_examples(path):
            if not example.positives:
                raise InputError(f"{path} has texts without positives; expected pairs of query and positive.")
            key = f"q{len(queries)}"
            queries[key] = example.query
            qrels[key] = {names.setdefault(positive, f"d{len(names)}"): 1 for positive in example.positives}
        documents = {name: Document(name, text) for text, name in names.items()}
        return cls(path.name.split(".")[0], "pairs", documents, queries, qrels)

    def sample(self, n_queries: int, n_documents: int, seed: int = 0) -> "Collection":
        """A random sample: queries, their relevant documents, and random other documents up to `n_documents`.

        Judgements of documents outside the sample are dropped, and so are queries left without a relevant document.
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
        """Results in the form that ir-measures reads.

        Args:
            places: (Q, k) positions in `documents`.
            scores: (Q, k) scores of these documents.
            above: only documents with a higher score than this are results.
        """
        names = list(self.documents)
        return {
            query: {names[p]: float(s) for p, s in zip(row, row_scores, strict=True) if s > above}
            for query, row, row_scores in zip(self.queries, places, scores, strict=True)
        }
