"""How much an approximate search must look at to reach a recall, measured against exact search."""

from collections.abc import Sequence

import numpy as np

from embed.data.vectors import Vectors, unit_length
from gpt_core.common.errors import InputError
from index.dense.ann import AUTO, FLAT, Ann, Effort, Search, Wanted, choose
from index.dense.block import nearest
from index.store.store import Numbers

QUERIES = 256
# A query is a stored vector, plus `OTHER` times another one, plus a random direction of the same length. These two are
# not counted as found. Such queries need as many lists of an IVF as real questions do (docs/log.md, 2026-11-30,
# "Approximate search: queries to tune on"); a stored vector alone needs far fewer.
OTHER = 0.5
# Numbers of passages that searches are tuned for: a page of hits, and hybrid search's candidates.
DEPTHS = (10, 100)
CANDIDATES = (1, 2, 4, 10, 20)
SEED = 1


def build(vectors: Vectors, wanted: Wanted) -> tuple[Ann | None, Search]:
    """An approximate index of `vectors` (n, d) that has the wanted recall; None for exact search.

    Search is exact where there are few vectors, and where no index of the wanted type has the recall.
    """
    types = choose(*vectors.shape) if wanted.faiss == AUTO else (wanted.faiss,)
    note = ""
    for factory in types:
        if factory == FLAT or len(vectors) < 3:
            return None, Search()
        try:
            ann = Ann.build(factory, vectors)
        except InputError as error:
            note = str(error)
            continue
        found = tune(ann, vectors, wanted.recall)
        if found:
            ann.efforts, recalls = found
            return ann, Search(factory, recalls, ann.efforts)
        note = f"{factory} does not reach the recall {wanted.recall}."
    return None, Search(note=note)


def tune(ann: Ann, vectors: Vectors, target: float) -> tuple[tuple[Effort, ...], tuple[float, ...]] | None:
    """The least efforts whose recall on held-out queries is the target plus a standard error or more, and the recalls.

    None if no effort suffices.

    Args:
        ann: an index of `vectors`.
        vectors: (n, d), n at least 3.
        target: mean share of the k nearest that is found, for each k of `DEPTHS` up to n - 2.
    """
    own, queries = held_out(vectors, QUERIES)
    depths = [k for k in DEPTHS if k <= len(vectors) - 2] or [len(vectors) - 2]
    truth = without(nearest(queries, vectors, depths[-1] + 2, None)[1], own, depths[-1])
    efforts, recalls = [], []
    levels = list(ann.levels())
    few = slice(QUERIES // 4)  # tried on all lists first: codes that are too coarse are soon recognised
    if _least(ann, queries[few], own[few], truth[few], levels[-1:], target) is None:
        return None
    for k in depths:
        found = _least(ann, queries, own, truth[:, :k], levels, target)
        if found is None:
            return None
        effort, recall = found
        efforts.append(effort)
        recalls.append(recall)
        levels = [level for level in levels if level >= effort.probes]
    return tuple(efforts), tuple(recalls)


def held_out(vectors: Vectors, n: int) -> tuple[Numbers, Vectors]:
    """Up to n queries (Q, d) that are not among `vectors`, and the rows (Q, 2) of the vectors that they are made of."""
    rng = np.random.default_rng(SEED)
    own = rng.permutation(len(vectors))[:n].astype(np.int64)
    others = rng.integers(len(vectors), size=len(own))
    directions = unit_length(rng.normal(size=(len(own), vectors.shape[1])).astype(np.float32))
    queries = vectors[own] + np.float32(OTHER) * vectors[others] + directions
    return np.stack([own, others], axis=1), unit_length(queries)


def without(rows: Numbers, own: Numbers, k: int) -> Numbers:
    """The first k of each row of `rows` (Q, k + 2 or more) that are not among `own` (Q, 2)."""
    is_own = (rows[:, :, None] == own[:, None]).any(axis=2)
    return np.take_along_axis(rows, np.argsort(is_own, axis=1, kind="stable")[:, :k], 1)


def _least(
    ann: Ann, queries: Vectors, own: Numbers, truth: Numbers, levels: Sequence[int], target: float
) -> tuple[Effort, float] | None:
    """The least effort that finds the `truth` (Q, k), and its recall."""
    k = truth.shape[1]
    for probes in levels:
        found = without(
            ann.candidates(queries, max(CANDIDATES) * k + 2, probes, None), own, max(CANDIDATES) * k
        )
        in_truth = np.stack([np.isin(some, one) for some, one in zip(found, truth, strict=True)])  # (Q, c)
        for multiple in CANDIDATES:
            # The candidates are scored exactly, so the k best of them are those of the truth that are among them.
            recalls = in_truth[:, : multiple * k].sum(axis=1) / k
            if recalls.mean() - recalls.std() / len(recalls) ** 0.5 >= target:
                return Effort(k, probes, multiple), float(recalls.mean())
    return None
