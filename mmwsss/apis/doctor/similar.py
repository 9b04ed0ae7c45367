"""Groups of equal and of nearly equal photos, without comparing all pairs.

128-bit hashes are cut into 8 pieces. Two hashes that differ in no more than 6 bits
agree in at least two pieces, so photos are sorted by each of the 28 pairs of pieces
and only those with the same pair are compared: n log n instead of n^2.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

MAX_BITS = 6
_PIECES = 8
# Photos of one place by a fixed camera may all agree; each is compared with so many
# that follow it, which links the group all the same.
_WINDOW = 32
# Thumbnails of a photo that was saved again correlate above this.
MIN_CORRELATION = 0.95


def equal_groups(digests: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more equal rows of (N, B) uint8, as ascending indices."""
    rows = np.ascontiguousarray(digests).view(f'V{digests.shape[1]}').ravel()
    order = np.argsort(rows, kind='stable')
    if not len(order):
        return []
    starts = np.flatnonzero(rows[order][1:] != rows[order][:-1]) + 1
    return [group for group in np.split(order, starts) if len(group) > 1]


def near_groups(hashes: np.ndarray, thumbs: np.ndarray) -> list[np.ndarray]:
    """Groups of photos that look alike, each linked through its next likeness.

    Args:
        hashes: (N, 16) uint8.
        thumbs: (N, D) uint8 thumbnails, which confirm what the hashes say.

    Returns:
        Groups of two or more ascending indices.
    """
    number = len(hashes)
    if number < 2:
        return []
    unit = _normalised(thumbs)
    roots = np.arange(number)
    for first, second in _candidates(hashes):
        apart = roots[first] != roots[second]
        first, second = first[apart], second[apart]
        alike = (unit[first] * unit[second]).sum(1) >= MIN_CORRELATION
        roots = _joined(roots, first[alike], second[alike])
    order = np.argsort(roots, kind='stable')
    starts = np.flatnonzero(np.diff(roots[order])) + 1
    return [group for group in np.split(order, starts) if len(group) > 1]


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices whose hashes differ in no more than ``MAX_BITS``."""
    pieces = np.ascontiguousarray(hashes).view(np.uint16).astype(np.uint64)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    for one, other in combinations(range(_PIECES), 2):
        keys = (pieces[:, one] << np.uint64(16)) | pieces[:, other]
        order = np.lexsort((words[:, 1], words[:, 0], keys))
        keys = keys[order]
        for step in range(1, min(_WINDOW, len(order) - 1) + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                break  # Neighbours are nearer than those further off.
            first, second = order[same], order[same + step]
            bits = np.unpackbits(hashes[first] ^ hashes[second], axis=1).sum(1)
            near = bits <= MAX_BITS
            yield first[near], second[near]


def _normalised(thumbs: np.ndarray) -> np.ndarray:
    values = thumbs.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _joined(roots: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Roots (N,) after linking pairs; every entry names its group's lowest index."""
    parent = roots.tolist()

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    if not len(first):
        return roots
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array([root(index) for index in range(len(parent))])
