"""A pseudo-random permutation that is computed per position, independent of any library's random generator."""

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 6


def endless_order(positions: NDArray, n: int, seed: int) -> tuple[NDArray, NDArray]:
    """Indices of the items at positions of an endless stream in which each epoch is another permutation of range(n).

    Args:
        positions: (k,) int64, from 0.
        n: items in an epoch.
        seed: seed of all permutations.

    Returns:
        (k,) indices of the items, and (k,) epochs of the positions, from 0.
    """
    epochs, places = np.divmod(positions, n)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(places[chosen], n, seed, int(epoch))
    return indices, epochs


def permute(places: NDArray, n: int, seed: int, epoch: int) -> NDArray:
    """Images of `places` under a pseudo-random permutation of range(n): a Feistel cipher with cycle walking.

    A Feistel network permutes the integers of 2·h bits; repeating it until the image is below n gives a permutation
    of range(n) (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no memory, and the order
    does not depend on the version of a library's random generator.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    rounds = _mix(np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64) + np.uint64(epoch << 8))
    keys = _mix(np.full(FEISTEL_ROUNDS, seed % 2**64, dtype=np.uint64) + rounds)

    def encipher(x: NDArray) -> NDArray:
        left, right = x >> half, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        return left << half | right

    image = encipher(places.astype(np.uint64))
    while (outside := image >= n).any():
        image[outside] = encipher(image[outside])
    return image.astype(np.int64)


def _mix(x: NDArray) -> NDArray:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): each bit of x (uint64) changes half of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
