"""Benchmark nearest-neighbour search: ours, FAISS with the same index, and other vector stores."""

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.own_process import in_own_process
from embed.data.vectors import Vectors, unit_length
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from index.dense.ann import AUTO, FLAT, Ann, Wanted, make
from index.dense.block import Block, nearest, set_threads
from index.dense.manifest import Manifest, State
from index.dense.snapshot import Snapshot
from index.dense.view import View

COLUMNS = (
    "system", "type", "build_s", "megabytes", "memory_mb", "open_ms", "qps_1", "qps_64", "recall@10",
)  # fmt: skip
D, K, QUERIES, SEED = 384, 10, 256, 0
TOPICS, INTRINSIC = 2000, 48  # of synthetic vectors
SINGLE = 64  # queries that are searched one at a time
Search = Callable[[Vectors], Any]


def bench_search(
    *,
    n: int = 100_000,
    data: str | None = None,
    faiss: str = AUTO,
    recall: float = 0.95,
    peers: tuple[str, ...] = ("sqlite-vec", "usearch", "hnswlib", "lancedb"),
    threads: int = 1,
) -> None:
    """Measure nearest-neighbour search: ours, plain FAISS, and other vector stores that are installed.

    Without data, vectors of 384 dimensions around 2,000 centres in a subspace of 48 dimensions, plus noise; queries are
    drawn likewise. Each system runs in a process of its own, over the same vectors and queries. Ours and "ours, exact"
    are the vectors' part of an index, without fetching passages. FAISS has the index that ours made, with the same
    parameters, in an IndexRefineFlat, which scores as many candidates on the vectors; "FAISS, exact" is IndexFlatIP
    with its default settings. build_s: seconds to build, tune and write; megabytes: on the disk; memory_mb: growth of
    the process's memory by opening and searching, pages of mapped files included; qps_1, qps_64: queries per second,
    one and 64 at a time; recall@10: share of the 10 nearest. Prints a table and ends with a line of JSON.

    Args:
        n: number of vectors.
        data: a .npy file of vectors (m, d), of which the last 256 are the queries; n of the others are taken.
        faiss: our index's type, as for build_index.py.
        recall: the recall that our index is tuned to.
        peers: other systems to measure: sqlite-vec (exact), usearch, hnswlib, lancedb, each with its default settings.
        threads: CPU threads of all but sqlite-vec and lancedb.
    """
    for name, value in {"n": n, "threads": threads}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1.")
    systems = {"ours": _ours, "ours, exact": _ours_exact, "FAISS": _faiss, "FAISS, exact": _faiss_exact}
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise InputError(f"peers has {unknown[0]!r}; expected {', '.join(PEERS)}.")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vectors, queries = _vectors(n, data)
        np.save(folder / "data.npy", vectors)
        np.save(folder / "queries.npy", queries)
        np.save(folder / "truth.npy", nearest(queries, vectors, K, None)[1])
        del vectors
        for name, function in (systems | {name: PEERS[name] for name in peers}).items():
            try:
                measured = in_own_process(_measured, function, str(folder), Wanted(faiss, recall), threads)
            except ModuleNotFoundError as error:
                print(f"{name} is not measured: {error.name} is not installed")
                continue
            except AttributeError as error:  # a Python whose sqlite3 loads no extensions
                print(f"{name} is not measured: {error}")
                continue
            rows.append({"system": name, "n": n, **measured})
    by_name = {row["system"]: row for row in rows}
    pairs = [
        ("ours", "FAISS", "qps_1"),
        ("ours", "FAISS", "qps_64"),
        ("ours, exact", "FAISS, exact", "qps_64"),
    ]
    ratios = {f"{a}/{b} {figure}": by_name[a][figure] / by_name[b][figure] for a, b, figure in pairs}
    print_report(rows, COLUMNS, ratios, ("faiss-cpu",))


def clustered(n: int, rng: np.random.Generator) -> Vectors:
    """Unit vectors (n, 384) around centres in a subspace, as those of texts on many topics are, plus noise.

    Vectors without such a structure have no near neighbours, which makes every approximate search look bad.
    """
    shared = np.random.default_rng(SEED)
    lift = shared.normal(size=(INTRINSIC, D)).astype(np.float32) / INTRINSIC**0.5
    centres = shared.normal(size=(TOPICS, INTRINSIC)).astype(np.float32)
    vectors = np.empty((n, D), dtype=np.float32)
    for start in range(0, n, 65_536):
        part = vectors[start : start + 65_536]
        inner = centres[rng.integers(TOPICS, size=len(part))]
        inner = inner + 0.5 * rng.normal(size=inner.shape).astype(np.float32)
        part[:] = unit_length(inner @ lift + 0.1 * rng.normal(size=part.shape).astype(np.float32))
    return vectors


def _vectors(n: int, data: str | None) -> tuple[Vectors, Vectors]:
    """Vectors (n, d) and queries (256, d)."""
    if data is None:
        return clustered(n, np.random.default_rng(1)), clustered(QUERIES, np.random.default_rng(2))
    try:
        known = np.load(data, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{data} cannot be read as a .npy file: {error}.") from None
    if known.ndim != 2 or len(known) < n + QUERIES:
        raise InputError(f"{data} has the shape {known.shape}; expected at least {n + QUERIES} vectors.")
    return tuple(unit_length(np.asarray(rows, np.float32)) for rows in (known[:n], known[-QUERIES:]))  # type: ignore[return-value]


def _measured(function: Callable[..., Any], folder: str, wanted: Wanted, threads: int) -> dict[str, Any]:
    """Build in `folder`, open, and search; `function` gives the path of what it wrote and a function that opens it."""
    torch.set_num_threads(threads)
    set_threads()
    place = Path(folder)
    vectors, queries = np.load(place / "data.npy", mmap_mode="r"), np.load(place / "queries.npy")
    start = time.perf_counter()
    kind, path, opened = function(np.asarray(vectors), place, wanted, threads)
    build_s = time.perf_counter() - start
    before, start = _memory(), time.perf_counter()
    search: Search = opened()
    search(queries[:1])
    open_s = time.perf_counter() - start
    found = np.concatenate([search(queries[i : i + 64]) for i in range(0, QUERIES, 64)])
    truth = np.load(place / "truth.npy")
    pairs = zip(found, truth, strict=True)
    memory = _memory() - before
    return {
        "type": kind,
        "build_s": build_s,
        "megabytes": sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*"))) / 1e6,
        "memory_mb": memory / 1e6,
        "open_ms": 1000 * open_s,
        "qps_1": _rate(lambda: [search(queries[i : i + 1]) for i in range(SINGLE)], SINGLE),
        "qps_64": _rate(lambda: [search(queries[i : i + 64]) for i in range(0, QUERIES, 64)], QUERIES),
        "recall@10": float(np.mean([np.isin(one, some).mean() for some, one in pairs])),
    }


def _rate(action: Callable[[], Any], n: int) -> float:
    """Calls per second, the best of 3 rounds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return n / min(seconds)


def _memory() -> int:
    """The memory of this process in bytes, with the pages of mapped files that it has touched."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _ours(vectors: Vectors, folder: Path, wanted: Wanted, _: int) -> tuple[str, Path, Callable[[], Search]]:
    n, dimension = vectors.shape
    folder, state = folder / "ours", State("", "", n)
    folder.mkdir(exist_ok=True)
    steps = range(0, n, 8192)
    blocks = (Block(np.arange(i, min(i + 8192, n)), vectors[i : i + 8192]) for i in steps)
    kind = Snapshot.write(folder, n, dimension, blocks, state, wanted).search.type

    def opened() -> Search:
        loaded = Snapshot.load(folder, state, 0)
        assert loaded
        loaded.check(threading.Event())  # in an index, a thread does this while the first searches run
        view = View.of(loaded, CorpusMap())
        return lambda queries: np.stack([numbers for numbers, _ in view.search(queries, K)])

    return kind, folder, opened


def _ours_exact(
    vectors: Vectors, folder: Path, wanted: Wanted, threads: int
) -> tuple[str, Path, Callable[[], Search]]:
    (folder / "exact").mkdir()
    return _ours(vectors, folder / "exact", Wanted(FLAT), threads)


def _faiss(vectors: Vectors, folder: Path, wanted: Wanted, _: int) -> tuple[str, Path, Callable[[], Search]]:
    manifest = Manifest.read(folder / "ours")
    assert manifest
    kind, path = manifest.search.type, folder / "plain.faiss"
    if kind == FLAT:
        index = make(FLAT, vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(path))
    else:
        refined = faiss.IndexRefineFlat(Ann.build(kind, vectors)._index, faiss.swig_ptr(vectors))
        faiss.write_index(refined, str(path))
    effort = manifest.search.efforts[0] if manifest.search.efforts else None

    def opened() -> Search:
        index = faiss.read_index(str(path))
        parameters = None
        if effort:
            inner = faiss.SearchParametersIVF(nprobe=effort.probes) if "IVF" in kind else None  # type: ignore[call-arg]
            parameters = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
                k_factor=effort.candidates, base_index_params=inner
            )
        return lambda queries: index.search(queries, K, params=parameters)[1]

    return kind, path, opened


def _faiss_exact(vectors: Vectors, folder: Path, *_: Any) -> tuple[str, Path, Callable[[], Search]]:
    path = folder / "flat.faiss"
    index = make(FLAT, vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(path))
    faiss.cvar.distance_compute_blas_threshold = 128_000  # FAISS's default

    def opened() -> Search:
        read = faiss.read_index(str(path))
        return lambda queries: read.search(queries, K)[1]

    return FLAT, path, opened


def _sqlite_vec(vectors: Vectors, folder: Path, *_: Any) -> tuple[str, Path, Callable[[], Search]]:
    import sqlite_vec

    path = folder / "vec.sqlite"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        return connection

    with connect() as tx:
        tx.execute(f"CREATE VIRTUAL TABLE v USING vec0 (x float[{vectors.shape[1]}] distance_metric=cosine)")
        tx.executemany(
            "INSERT INTO v (rowid, x) VALUES (?, ?)", ((i, x.tobytes()) for i, x in enumerate(vectors))
        )

    def opened() -> Search:
        connection = connect()
        query = f"SELECT rowid FROM v WHERE x MATCH ? AND k = {K} ORDER BY distance"
        return lambda queries: np.array(
            [[row for (row,) in connection.execute(query, (q.tobytes(),))] for q in queries]
        )

    return "exact", path, opened


def _usearch(
    vectors: Vectors, folder: Path, _: Wanted, threads: int
) -> tuple[str, Path, Callable[[], Search]]:
    from usearch.index import Index

    path, index = folder / "usearch", Index(ndim=vectors.shape[1], metric="ip")
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    index.save(str(path))

    def opened() -> Search:
        read = Index.restore(str(path), view=True)
        return lambda queries: read.search(queries, K, threads=threads).keys.reshape(-1, K)

    return "HNSW", path, opened


def _hnswlib(
    vectors: Vectors, folder: Path, _: Wanted, threads: int
) -> tuple[str, Path, Callable[[], Search]]:
    import hnswlib

    path, index = folder / "hnswlib", hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors))
    index.add_items(vectors, num_threads=threads)
    index.save_index(str(path))

    def opened() -> Search:
        read = hnswlib.Index("ip", vectors.shape[1])
        read.load_index(str(path))
        read.set_ef(64)  # its default of 10 is the least for 10 neighbours
        return lambda queries: read.knn_query(queries, K, num_threads=threads)[0]

    return "HNSW", path, opened


def _lancedb(vectors: Vectors, folder: Path, *_: Any) -> tuple[str, Path, Callable[[], Search]]:
    import lancedb
    import pyarrow

    path = folder / "lance"
    flat = pyarrow.array(vectors.ravel())
    column = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    rows = pyarrow.table({"id": np.arange(len(vectors)), "vector": column})
    table = lancedb.connect(path).create_table("v", rows)
    table.create_index(metric="cosine", index_type="IVF_PQ")

    def opened() -> Search:
        read = lancedb.connect(path).open_table("v")

        def ids(query: Vectors) -> list[int]:
            found = read.search(query).distance_type("cosine").limit(K).select(["id", "_distance"])
            return [row["id"] for row in found.to_list()]

        return lambda queries: np.array([ids(query) for query in queries])

    return "IVF_PQ", path, opened


PEERS = {"sqlite-vec": _sqlite_vec, "usearch": _usearch, "hnswlib": _hnswlib, "lancedb": _lancedb}
