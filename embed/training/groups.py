"""Groups of similar examples: batches made of whole groups have hard negatives.

Batches of one topic: Hofstätter et al. 2021 (TAS-B); Merrick 2024, "Embedding And Clustering Your Data Can Improve
Contrastive Pretraining".
"""

import numpy as np
from numpy.typing import NDArray

from embed.data.vectors import Vectors

ITERATIONS = 3  # of 2-means, from a random direction; the halves need not be optimal


def groups_of_similar(vectors: Vectors, size: int, seed: int = 0) -> NDArray[np.int64]:
    """Divide rows into groups of equal size whose vectors are similar.

    The rows are halved by 2-means, the halves again, and so on down to `size` rows. The last group is filled up with
    rows of the first.

    Args:
        vectors: (n, d); n at least 1.
        size: rows of a group.
        seed: seed of the directions.

    Returns:
        (ceil(n / size), size) row numbers.
    """
    rng = np.random.default_rng(seed)
    parts = [np.arange(len(vectors))]
    done: list[NDArray[np.int64]] = []
    while parts:
        rows = parts.pop()
        if len(rows) <= size:
            done.append(rows)
            continue
        own = vectors[rows]
        axis = rng.standard_normal(own.shape[1], dtype=np.float32)  # from one centre to the other
        for _ in range(ITERATIONS):
            near = own @ axis
            upper = near >= np.median(near)
            if upper.all():  # equal vectors
                break
            axis = own[upper].mean(axis=0) - own[~upper].mean(axis=0)
        order = np.argsort(own @ axis, kind="stable")
        half = max(len(rows) // 2 // size, 1) * size
        parts += [rows[order[half:]], rows[order[:half]]]
    ordered = np.concatenate(done)
    return np.resize(ordered, (-(-len(ordered) // size), size))
