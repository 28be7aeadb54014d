"""Approximate search: a FAISS index gives candidates, which the caller scores on the vectors."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors
from gpt_core.common.errors import InputError
from index.dense.block import set_threads
from index.store.store import Numbers

# isort: split
import faiss  # after torch, which `index.dense.block` imports

FLAT, AUTO = "Flat", "auto"
EXPECTED = (
    'expected "auto", "Flat", or a FAISS factory string of an IVF or of codes, such as "IVF1024,SQ8", '
    '"IVF1024,RaBitQfs", "SQ8", "RaBitQ" or "MRL128,IVF1024,SQ8" (the first 128 dimensions)'
)
# Exact search of vectors up to this size takes one query 15 ms on one thread, and needs no training. Beyond, an IVF
# with one bit per dimension is the smallest and the fastest of the types that docs/log.md compares, 2026-11-30,
# "Approximate search: types". Where one bit is too little for the recall, as for whitened vectors, it has eight.
FLAT_BYTES = 200_000_000
PER_LIST = 50  # vectors that an IVF's lists are trained on, for each list
OTHER_TRAINING = 65_536  # vectors that other types are trained on
ROWS_PER_STEP = 65_536
# Types that leave out deleted passages and can be mapped into memory; FAISS trains others that fail when they search.
SEARCHABLE = (
    *(faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan),
    *(faiss.IndexIVFRaBitQ, faiss.IndexIVFRaBitQFastScan),
    *(faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexRaBitQ),
)
SEED = 0


@dataclass(frozen=True)
class Effort:
    """Parameters with which a search for `k` passages has the recall that was asked for.

    Attributes:
        k: number of passages.
        probes: lists of an IVF that are read (nprobe); 1 for other types.
        candidates: candidates that are scored on the vectors, as a multiple of k.
    """

    k: int
    probes: int
    candidates: int


class Wanted(NamedTuple):
    """What the index's settings ask of its snapshots.

    Attributes:
        faiss: a factory string, or "auto" for `choose`.
        recall: least recall of approximate search.
    """

    faiss: str = AUTO
    recall: float = 0.95

    def changed(self, faiss: str | None, recall: float | None) -> "Wanted":
        """With another type or recall; None: as it is."""
        return Wanted(self.faiss if faiss is None else faiss, self.recall if recall is None else recall)


DEFAULT = Wanted()


@dataclass(frozen=True)
class Search:
    """How a snapshot is searched.

    Attributes:
        type: FAISS factory string; "Flat" for exact search.
        recalls: recall that was measured for the k of each of `efforts`.
        efforts: parameters of approximate search.
        note: why the type is not the one that was wanted, or "".
    """

    type: str = FLAT
    recalls: tuple[float, ...] = ()
    efforts: tuple[Effort, ...] = ()
    note: str = ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Search":
        """Parse the output of `dataclasses.asdict`."""
        efforts = tuple(Effort(**one) for one in values["efforts"])
        return cls(values["type"], tuple(values["recalls"]), efforts, values["note"])


FLAT_SEARCH = Search()


class Ann:
    """A FAISS index whose ids are rows of the vectors.

    Attributes:
        efforts: how a search for at most `k` passages is done, k ascending; set when they were measured.
    """

    def __init__(self, index: Any, efforts: tuple[Effort, ...] = ()) -> None:
        self._index, self.efforts = index, efforts
        self._is_transformed = isinstance(index, faiss.IndexPreTransform)
        self._inner = _inner(index)

    @classmethod
    def build(cls, factory: str, vectors: Vectors) -> "Ann":
        """Train an index on a sample of `vectors` (n, d), then add all of them.

        Raises:
            InputError: for a factory string that has no meaning here, or that needs more vectors.
        """
        index = make(factory, vectors.shape[1])
        inner = _inner(index)
        n_train = OTHER_TRAINING
        if isinstance(inner, faiss.IndexIVF):
            if inner.nlist > len(vectors):
                raise InputError(f"{factory} needs {inner.nlist:,} passages, one for each list.")
            inner.cp.min_points_per_centroid = 1  # no warning on stderr
            n_train = max(n_train, PER_LIST * inner.nlist)
        set_threads()
        rows = np.random.default_rng(SEED).permutation(len(vectors))[:n_train]
        try:
            index.train(vectors[np.sort(rows)])
        except RuntimeError as error:  # for example product quantisers with more centroids than vectors
            raise InputError(f"{factory} cannot be trained on {len(vectors):,} passages: {error}.") from None
        for start in range(0, len(vectors), ROWS_PER_STEP):
            index.add(np.ascontiguousarray(vectors[start : start + ROWS_PER_STEP]))
        return cls(index)

    @classmethod
    def read(cls, path: Path, efforts: tuple[Effort, ...]) -> "Ann":
        """Open a file that `write` wrote; its codes stay in the file, mapped into memory.

        FAISS may crash for a damaged file, so the caller has checked it.
        """
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), efforts)

    def write(self, write: Any) -> None:
        """Write the index through a function that takes bytes."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write))  # type: ignore[attr-defined]

    def levels(self) -> Iterator[int]:
        """Values of `Effort.probes` to try, ascending to the greatest useful one."""
        most, level = self._most, 1.0
        while level < most:
            yield round(level)
            level *= 2**0.5 if level >= 4 else 2
        yield most

    def search(self, queries: Vectors, k: int, live: NDArray[np.bool_] | None) -> Numbers:
        """Candidates for the k nearest of the rows that are `live` (n,); None for all.

        Returns:
            Rows (Q, c), c ≥ k, each row once; -1 where there are no more.
        """
        share = 1.0 if live is None else float(live.mean())
        effort = next((one for one in self.efforts if one.k >= k), self.efforts[-1])
        probes = math.ceil(effort.probes * max(1.0, k / effort.k) / max(share, 1e-9))
        return self.candidates(queries, k * effort.candidates, min(probes, self._most), live)

    def candidates(self, queries: Vectors, n: int, probes: int, live: NDArray[np.bool_] | None) -> Numbers:
        """The `n` best rows (Q, n) by FAISS's approximate scores; -1 where it finds no more."""
        set_threads()
        options: dict[str, Any] = {}
        parameters: Any
        if live is not None:
            bits = np.packbits(live, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(len(live), faiss.swig_ptr(bits))
        if isinstance(self._inner, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(nprobe=probes, **options)  # type: ignore[call-arg]
        else:
            parameters = faiss.SearchParameters(**options)
        if self._is_transformed:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)  # type: ignore[call-arg]
        _, rows = self._index.search(
            np.ascontiguousarray(queries), min(n, self._index.ntotal), params=parameters
        )
        return rows

    @property
    def _most(self) -> int:
        return int(self._inner.nlist) if isinstance(self._inner, faiss.IndexIVF) else 1


def choose(n: int, dimension: int) -> tuple[str, ...]:
    """Factory strings to try for `n` vectors; none as long as exact search is fast."""
    if 4 * n * dimension <= FLAT_BYTES:
        return ()
    return tuple(f"IVF{4 * math.isqrt(n)},{codes}" for codes in ("RaBitQfs", "SQ8"))


def make(factory: str, dimension: int) -> Any:
    """An empty FAISS index for inner products.

    "MRL128," before a factory string means the first 128 dimensions (Matryoshka representation learning).

    Raises:
        InputError: for a string that FAISS does not know, or an index that cannot leave out deleted passages, or that
            is slower than these at the same recall (HNSW).
    """
    found = re.fullmatch(r"MRL(\d+),(.+)", factory)
    first, inner = (int(found[1]), found[2]) if found else (dimension, factory)
    if not 1 <= first <= dimension:
        raise InputError(f"faiss is {factory!r}; the vectors have {dimension} dimensions.")
    try:
        index = faiss.index_factory(first, inner, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"faiss is {factory!r}; {EXPECTED}.") from None
    core = _inner(index)
    if not isinstance(core, SEARCHABLE) or (isinstance(core, faiss.IndexIVF) and core.nlist < 1):
        raise InputError(f"faiss is {factory!r}; {EXPECTED}. Candidates are always scored on the vectors.")
    if not 1 <= core.d <= first:  # as after PCA64 of fewer dimensions
        raise InputError(f"faiss is {factory!r}; the vectors have {dimension} dimensions.")
    if not found:
        return index
    if isinstance(index, faiss.IndexPreTransform):
        raise InputError(f"faiss is {factory!r}; after MRL, {EXPECTED}.")
    transform: Any = faiss.RemapDimensionsTransform(dimension, first, False)  # type: ignore[arg-type]
    return faiss.IndexPreTransform(transform, index)


def check_wanted(wanted: Wanted, dimension: int) -> None:
    """Raise InputError unless snapshots of vectors of this dimension can be `wanted`."""
    if not isinstance(wanted.recall, int | float) or not 0 < wanted.recall <= 1:
        raise InputError(f"recall is {wanted.recall!r}; expected a number above 0, at most 1.")
    if wanted.faiss != AUTO:
        make(wanted.faiss, dimension)


def _inner(index: Any) -> Any:
    """The index below linear transforms."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
