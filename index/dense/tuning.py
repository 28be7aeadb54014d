"""How much an approximate search must look at to reach a recall, measured against exact search."""

from collections.abc import Sequence

import numpy as np

from embed.data.vectors import Vectors, unit_length
from gpt_core.common.errors import InputError
from index.dense.ann import AUTO, FLAT, Ann, Effort, Search, Wanted, choose
from index.dense.block import nearest
from index.store.store import Numbers

QUERIES = 256
# A query is a stored vector plus this share of another one, so its cosine with the first is about .89; the first is not
# counted as found. Real questions lie outside of the passages' vectors, too, and need about as many lists of an IVF
# (docs/log.md, 2026-11-30, "Approximate search: which types").
OTHER = 0.5
DEPTHS = (
    10,
    100,
)  # numbers of passages that searches are tuned for: a page of hits, and hybrid search's candidates
CANDIDATES = (1, 2, 4, 10, 20)
SEED = 1


def build(vectors: Vectors, wanted: Wanted) -> tuple[Ann | None, Search]:
    """An approximate index of `vectors` (n, d) that has the wanted recall; None for exact search.

    Search is exact where there are few vectors, and where an index of the wanted type cannot be had.
    """
    factory = choose(*vectors.shape) if wanted.faiss == AUTO else wanted.faiss
    if factory == FLAT or len(vectors) < 2:
        return None, Search()
    try:
        ann = Ann.build(factory, vectors)
    except InputError as error:
        return None, Search(note=str(error))
    found = tune(ann, vectors, wanted.recall)
    if found is None:
        return None, Search(note=f"{factory} does not reach the recall {wanted.recall}.")
    ann.efforts, recalls = found
    return ann, Search(factory, recalls, ann.efforts)


def tune(ann: Ann, vectors: Vectors, target: float) -> tuple[tuple[Effort, ...], tuple[float, ...]] | None:
    """The least efforts whose recall on held-out queries is the target plus a standard error or more, and the recalls.

    None if no effort suffices.

    Args:
        ann: an index of `vectors`.
        vectors: (n, d), n at least 2.
        target: mean share of the k nearest that is found, for each k of `DEPTHS` that is below n.
    """
    own, queries = held_out(vectors, QUERIES)
    depths = [k for k in DEPTHS if k < len(vectors)] or [len(vectors) - 1]
    truth = without(nearest(queries, vectors, depths[-1] + 1, None)[1], own, depths[-1])
    efforts, recalls = [], []
    levels = list(ann.levels())
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
    """Up to n queries (Q, d) that are not among `vectors`, and the rows (Q,) of the vectors that they are made of."""
    rng = np.random.default_rng(SEED)
    own = rng.permutation(len(vectors))[:n].astype(np.int64)
    others = rng.integers(len(vectors), size=len(own))
    return own, unit_length(vectors[own] + np.float32(OTHER) * vectors[others])


def without(rows: Numbers, own: Numbers, k: int) -> Numbers:
    """The first k of each row of `rows` (Q, more than k) that are not `own` (Q,)."""
    places = np.argsort(rows == own[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, places, 1)


def _least(
    ann: Ann, queries: Vectors, own: Numbers, truth: Numbers, levels: Sequence[int], target: float
) -> tuple[Effort, float] | None:
    """The least effort that finds the `truth` (Q, k), and its recall."""
    k = truth.shape[1]
    for probes in levels:
        found = without(
            ann.candidates(queries, max(CANDIDATES) * k + 1, probes, None), own, max(CANDIDATES) * k
        )
        in_truth = np.stack([np.isin(some, one) for some, one in zip(found, truth, strict=True)])  # (Q, c)
        for multiple in CANDIDATES:
            # The candidates are scored exactly, so the k best of them are those of the truth that are among them.
            recalls = in_truth[:, : multiple * k].sum(axis=1) / k
            if recalls.mean() - recalls.std() / len(recalls) ** 0.5 >= target:
                return Effort(k, probes, multiple), float(recalls.mean())
    return None
