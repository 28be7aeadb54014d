"""The commands that look after an index: verify, repair, backup, stats, vacuum, snapshot, reembed."""

import json as json_library
import time
from contextlib import closing
from pathlib import Path

from embed.encoding.load import load_embedder
from gpt_core.common.errors import ExplainedError
from gpt_core.common.terminal import printable
from index.dense.manifest import describe
from index.dense.snapshot import Snapshot
from index.index import Index
from index.store.check import find_problems
from index.store.store import FILE, Store


class Damaged(ExplainedError):
    """An index has problems; the message says how many."""


def verify(*, index: str) -> None:
    """Check an index: SQLite's pages, and that documents, passages, vectors and full text agree; exit status 1 if not.

    Reads the whole index once; searches and writes may go on.

    Args:
        index: folder of the index.
    """
    with closing(Store(index)) as store:
        problems = list(find_problems(store))
        if not Snapshot.is_whole(store.folder):
            print(
                f"{index}: the snapshot of the vectors is damaged; it is not used, and another is made when one is due"
            )
        for problem in problems:
            print(printable(f"{index}: {problem.text}"))
        if any(problem.is_file for problem in problems):
            raise Damaged(f"{index}/{FILE} is damaged; restore a backup, or build the index again.")
        if problems:
            raise Damaged(f"{index} has {len(problems)} problems; run manage_index.py repair --index {index}")
        with store.read() as tx:
            n_documents, n_passages = store.count(tx, "documents"), store.count(tx, "passages")
    print(f"{index}: all is well with {n_documents:,} documents in {n_passages:,} passages")


def repair(*, index: str, embedder: str | None = None) -> None:
    """Mend what `verify` finds: write the full text anew, encode documents again whose passages or vectors are bad.

    The next build_index.py reads a document again whose text is not what was stored, from its file. A damaged SQLite
    file cannot be mended.

    Args:
        index: folder of the index.
        embedder: model folder, if it has moved since the index was built.
    """
    with Index.open(index, embedder) as opened:
        problems = opened.repair()
    for problem in problems:
        print(printable(f"{index}: mended: {problem.text}"))
    if any(problem.is_content for problem in problems):
        print(
            "run build_index.py with the same --input, so that these documents are read again from their files"
        )
    verify(index=index)


def backup(*, index: str, out: str) -> None:
    """Copy an index into a new folder, as it is at one moment, while searches and writes go on.

    The copy has no snapshot of the vectors; it is made when the copy is opened.

    Args:
        index: folder of the index.
        out: the new folder.
    """
    with closing(Store(index)) as store:
        store.backup(out)
    size = (Path(out) / FILE).stat().st_size
    print(f"{out}: a copy of {index}, {size / 1e6:.1f} MB")


def stats(*, index: str, json: bool = False) -> None:
    """Print counts, settings and sizes of an index.

    Args:
        index: folder of the index.
        json: print one JSON object.
    """
    with Index.open(index) as opened:
        found = opened.stats()
    folder = Path(index)
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if json:
        print(json_library.dumps({**found, "bytes": sizes}, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, value in found.items():
        print(
            printable(
                f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}"
            )
        )
    for name, size in sizes.items():
        print(printable(f"{'file':<{width}}  {name}, {size / 1e6:,.1f} MB"))


def vacuum(*, index: str) -> None:
    """Give the space of deleted documents back to the disk.

    Needs as much free space as the index has, for a while; another process must not write meanwhile.

    Args:
        index: folder of the index.
    """
    file = Path(index) / FILE
    with Index.open(index) as opened:
        before = file.stat().st_size
        opened.vacuum()
    print(f"{index}: {before / 1e6:.1f} MB before, {file.stat().st_size / 1e6:.1f} MB now")


def reembed(*, index: str, embedder: str) -> None:
    """Change the embedder of an index: encode all passages again, then swap to the new vectors at once.

    Searches go on meanwhile, with the old vectors; nothing can be written. To continue an interrupted run, run it
    again. Needs space for the new vectors beside the old ones. A server that was started without --embedder loads the
    new embedder at the next search.

    Args:
        index: folder of the index.
        embedder: model folder, known name or URL, as for build_index.py.
    """
    with Index.open(index) as opened:
        encoder = load_embedder(embedder)
        started = time.perf_counter()
        done = opened.reembed(encoder)
    seconds = time.perf_counter() - started
    print(
        f"{index}: {done.encoded} passages encoded by {encoder.name} in {seconds:.1f} s"
        + (f", {done.before} before" if done.before else "")
    )
    if done.truncated:
        print(
            f"{done.truncated} passages, titles included, were truncated to its {encoder.max_tokens} tokens"
        )


def snapshot(
    *, index: str, faiss: str | None = None, recall: float | None = None, store: str | None = None
) -> None:
    """Make the snapshot of the vectors anew, and choose how they are searched.

    Prints the type of the FAISS index, its parameters and the recall that was measured.

    Args:
        index: folder of the index.
        faiss: auto, Flat (exact search), or a FAISS factory string such as IVF1024,SQ8; default: as before.
        recall: least share of the nearest passages that approximate search must find, up to 1; default: as before.
        store: faiss, or the address of a copy of the vectors in Milvus, as for build_index.py; default: as before.
    """
    with Index.open(index) as opened:
        opened.set_faiss(faiss, recall)
        if store is not None:
            opened.set_store(store)
        opened.save_snapshot()
        print(f"{index}: {describe(opened.stats()['vectors'])}")
