"""Reader of BEIR folders: a corpus, queries, and relevance judgements (qrels) by split."""

from collections import Counter
from collections.abc import Container
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows

Qrels = dict[str, dict[str, int]]  # query id → document id → grade; above 0 is relevant


def is_beir(folder: Path) -> bool:
    """Whether `folder` contains a corpus and queries under BEIR's file names."""
    return all(any((folder / f"{stem}{end}").is_file() for end in JSONL) for stem in ("corpus", "queries"))


def read_beir(folder: str | Path, split: str) -> tuple[dict[str, str], dict[str, str], Qrels]:
    """Read `corpus.jsonl`, `queries.jsonl` (or .gz, .xz) and `qrels/<split>.tsv` of a BEIR folder.

    Returns:
        Documents by id, each as one text (`join_title`); all queries by id; the split's judgements.

    Raises:
        InputError: for a missing file or split, an invalid line (named by its number), a duplicate id, or judgements of
            unknown queries or documents.
    """
    folder = Path(folder)
    documents, queries, qrels = read_corpus(folder), read_queries(folder), read_qrels(folder, split)
    check_qrels(folder, split, qrels, queries, documents)
    return documents, queries, qrels


def read_corpus(folder: str | Path) -> dict[str, str]:
    """The documents of a BEIR folder by id, each as one text (`join_title`).

    Raises:
        InputError: for a missing file, an invalid line (named by its number), or a duplicate id.
    """
    texts = _read_texts(find_part(Path(folder), "corpus"))
    return {name: join_title(title, text) for name, (title, text) in texts.items()}


def read_queries(folder: str | Path) -> dict[str, str]:
    """The queries of a BEIR folder by id.

    Raises:
        InputError: for a missing file, an invalid line (named by its number), or a duplicate id.
    """
    return {name: text for name, (_, text) in _read_texts(find_part(Path(folder), "queries")).items()}


def join_title(title: str, text: str) -> str:
    """A document or passage as it is embedded and searched, as is usual for BEIR and in mteb: title, space, text."""
    return f"{title} {text}".strip()


def find_part(folder: Path, stem: str) -> Path:
    """The path of `stem`.jsonl (or .gz, .xz) in a BEIR folder.

    Raises:
        InputError: if no such file exists.
    """
    for path in (folder / f"{stem}{ending}" for ending in JSONL):
        if path.is_file():
            return path
    raise InputError(f"{folder} has no {stem}.jsonl (or .gz, .xz); expected a BEIR folder.")


def read_qrels(folder: Path, split: str) -> Qrels:
    """The judgements of a split, `qrels/<split>.tsv`.

    Raises:
        InputError: for a missing split (the message lists the available ones), or an invalid line (named by number).
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in path.parent.glob("*.tsv"))) or "none"
        raise InputError(f"{path} is missing; available splits: {splits}.")
    qrels: Qrels = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: expected query, document and grade separated by tabs."
            ) from None
    return qrels


def check_qrels(
    folder: Path, split: str, qrels: Qrels, queries: Container[str], documents: Container[str]
) -> None:
    """Check that all judged queries and documents exist.

    Raises:
        InputError: for unknown ids; names the first and counts the others.
    """
    unknown = {
        "query": [query for query in qrels if query not in queries],
        "document": list(Counter(d for grades in qrels.values() for d in grades if d not in documents)),
    }
    for what, names in unknown.items():
        if names:
            file = "queries.jsonl" if what == "query" else "corpus.jsonl"
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"{folder}: qrels/{split}.tsv judges {what} {names[0]}, which is not in {file}{more}; "
                "remove these judgements or add the missing texts."
            )


def _read_texts(path: Path) -> dict[str, tuple[str, str]]:
    texts: dict[str, tuple[str, str]] = {}  # title and text by id
    for place, row in read_rows(path):
        name, title, text = row.get("_id", row.get("id")), row.get("title") or "", row.get("text")
        if not isinstance(name, str | int) or not isinstance(text, str) or not isinstance(title, str):
            raise InputError(
                f'{place}: expected "_id" and a string under "text"; its keys are {", ".join(row)}.'
            )
        if str(name) in texts:
            raise InputError(f"{place}: the id {name!r} occurs twice; expected unique ids.")
        texts[str(name)] = title, text
    return texts
