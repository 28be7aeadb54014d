"""Questions with answers, and the corpus of their paragraphs: SQuAD's JSON, or a BEIR folder with answers."""

import gzip
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from embed.data.beir import find_part
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import read_rows
from index.evaluation.collection import Collection
from index.reading.document import Document


class QaQuestion(NamedTuple):
    """A question; `answers` are texts of its document, none if that document does not answer it."""

    id: str
    text: str
    answers: tuple[str, ...]
    document: str
    article: str


@dataclass(frozen=True)
class QaData:
    """A corpus of paragraphs, and questions about it."""

    name: str
    documents: dict[str, Document]
    questions: list[QaQuestion]
    articles: dict[str, str]  # document → article

    @property
    def collection(self) -> Collection:
        """The documents, to build an index of."""
        return Collection(self.name, "", self.documents, {}, {})

    @property
    def has_articles(self) -> bool:
        """Whether some documents are paragraphs of the same article."""
        return len(set(self.articles.values())) < len(self.documents)

    def sample(self, n: int | None, seed: int) -> "QaData":
        """The same corpus with `n` questions drawn at random, or with all."""
        if n is None or n >= len(self.questions):
            return self
        return replace(self, questions=random.Random(seed).sample(self.questions, n))


def read_qa(path: str | Path, split: str, articles: int | None = None, seed: int = 0) -> QaData:
    """Read questions and their corpus.

    Args:
        path: SQuAD's JSON, 1.1 or 2.0, may be compressed (.gz); or a BEIR folder whose queries have `answers` in their
            metadata.
        split: the judgements of a BEIR folder.
        articles: only so many of SQuAD's articles, drawn at random; None: all.
        seed: seed of the draw.

    Raises:
        InputError: for a missing file or one of another format.
    """
    path = Path(path)
    try:
        return _read_beir(path, split) if path.is_dir() else _read_squad(path, articles, seed)
    except (KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as questions with answers ({type(error).__name__}: {error}); expected SQuAD's "
            "JSON, or a BEIR folder with answers in the metadata of its queries."
        ) from None


def _read_squad(path: Path, n_articles: int | None, seed: int) -> QaData:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as f:
        articles = json.load(f)["data"]
    if n_articles is not None and n_articles < len(articles):
        articles = random.Random(seed).sample(articles, n_articles)
    documents: dict[str, Document] = {}
    questions: list[QaQuestion] = []
    article_of: dict[str, str] = {}
    for article in articles:
        name = article["title"].replace("_", " ")
        for paragraph in article["paragraphs"]:
            document = Document(f"{name} {len(documents)}", paragraph["context"], name)
            documents[document.id] = document
            article_of[document.id] = name
            for qa in paragraph["qas"]:
                answers = () if qa.get("is_impossible") else tuple({a["text"]: None for a in qa["answers"]})
                questions.append(QaQuestion(str(qa["id"]), qa["question"], answers, document.id, name))
    return QaData(path.name.partition(".json")[0], documents, questions, article_of)


def _read_beir(folder: Path, split: str) -> QaData:
    collection = Collection.load(folder, split)
    answers = {row["_id"]: row["metadata"]["answers"] for _, row in read_rows(find_part(folder, "queries"))
               if row["_id"] in collection.queries}  # fmt: skip
    questions = [
        QaQuestion(query, text, tuple(answers[query]), document, document)
        for query, text in collection.queries.items()
        for document in list(collection.qrels[query])[:1]
    ]
    return QaData(
        f"{folder.name}-{split}", collection.documents, questions, {d: d for d in collection.documents}
    )
