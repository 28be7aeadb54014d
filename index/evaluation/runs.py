"""Search results as TREC run files, the common format of retrieval evaluation tools."""

from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from index.evaluation.collection import Collection, Run


def write_run(folder: str | Path, collection: Collection, system: str, run: Run) -> Path:
    """Write `<folder>/<collection>.<system>.run`: query, Q0, document, rank, score and system separated by spaces.

    Raises:
        InputError: for an id with white space, which the format does not allow.
    """
    lines = []
    for query, found in run.items():
        for rank, (document, score) in enumerate(sorted(found.items(), key=lambda pair: -pair[1]), 1):
            for name in (query, document):
                if len(name.split()) != 1:
                    raise InputError(
                        f"{collection.name}: the id {name!r} has white space, which run files do not allow; "
                        "leave out --runs, or rename the id."
                    )
            lines.append(f"{query} Q0 {document} {rank} {score!r} {system}\n")
    path = Path(folder) / f"{collection.name}.{system}.run"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(lines))
    return path


def read_run(path: str | Path, collection: Collection) -> Run:
    """Read a TREC run file for a collection; lines of queries outside the collection are skipped.

    Raises:
        InputError: for a missing file, a malformed line (with its number), a document that is not in the collection,
            or a file without results for the collection's queries.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing; expected a TREC run file.")
    run: Run = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            query, _, document, _, score, _ = line.split()
            value = float(score)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: expected query, Q0, document, rank, score and system."
            ) from None
        if query not in collection.queries:
            continue
        if document not in collection.documents:
            raise InputError(f"{path}, line {number}: {collection.name} has no document {document}.")
        run.setdefault(query, {})[document] = value
    if not run:
        raise InputError(f"{path} has no results for the queries of {collection.name}.")
    return run
