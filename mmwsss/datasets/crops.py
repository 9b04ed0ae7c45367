"""Crops: with and without the object by its masks, and around the peak of a map."""

import cv2
import numpy as np


def make_negative_crops(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    *,
    max_area: int = 0,
    n: int,
    generator: np.random.Generator,
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Crops that (nearly) no object reaches into.

    Void pixels (255) count as object here: nobody knows that they are none.

    Args:
        image: (H, W, 3).
        mask: (H, W), 0 background.
        size: side of the crops in pixels.
        max_area: so many pixels of the object are let through.
        n: crops wanted; their centres are at least half a side apart, in one direction.
        generator: draws the places.

    Returns:
        Up to n pairs of a crop (size, size, 3) and its upper left corner (row,
        column); fewer where there is no more room, none in a photo smaller than that.
    """
    areas = _areas(mask != 0, size)
    places = _draw(areas <= max_area, size, n, generator)
    return [(_cut(image, place, size), place) for place in places]


def make_positive_crops(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    *,
    min_area_ratio: float,
    n: int,
    generator: np.random.Generator,
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Crops that the object covers at least a share of; otherwise as above.

    Args:
        image: (H, W, 3).
        mask: (H, W), 0 background, 255 void, which does not count.
        size: side of the crops in pixels.
        min_area_ratio: share of a crop in [0, 1]; at least one pixel is wanted anyhow.
        n: crops wanted.
        generator: draws the places.
    """
    areas = _areas((mask != 0) & (mask != 255), size)
    wanted = max(min_area_ratio * size**2, 1)
    places = _draw(areas >= wanted, size, n, generator)
    return [(_cut(image, place, size), place) for place in places]


def peak_box(values: np.ndarray, cut: float) -> tuple[int, int, int, int] | None:
    """Box around the connected part, diagonals too, of a map that holds its peak.

    Args:
        values: (h, w), not negative.
        cut: share of the peak in (0, 1] that the part reaches everywhere.

    Returns:
        (top, left, bottom, right), the last two not in it; None if all values are 0.
    """
    peak = values.max(initial=0.0)
    if peak <= 0:
        return None
    _, parts = cv2.connectedComponents((values >= cut * peak).astype(np.uint8))
    rows, columns = np.nonzero(parts == parts.flat[values.argmax()])
    return tuple(
        int(side)
        for side in (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    )


def _areas(shown: np.ndarray, size: int) -> np.ndarray:
    """Pixels shown in the square at every corner, (H - size + 1, W - size + 1)."""
    if size < 1:
        raise ValueError(f'size must be at least 1, got {size}')
    if min(shown.shape) < size:
        return np.zeros((0, 0), np.int64)
    sums = cv2.integral(shown.astype(np.uint8)).astype(np.int64)
    return (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size]) + sums[
        :-size, :-size
    ]


def _draw(
    allowed: np.ndarray, size: int, n: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    allowed = allowed.copy()
    places = []
    while len(places) < n and allowed.any():
        rows, columns = np.nonzero(allowed)
        pick = int(generator.integers(len(rows)))
        row, column = int(rows[pick]), int(columns[pick])
        places.append((row, column))
        near = max(size // 2, 1)
        allowed[
            max(row - near + 1, 0) : row + near,
            max(column - near + 1, 0) : column + near,
        ] = False
    return places


def _cut(values: np.ndarray, place: tuple[int, int], size: int) -> np.ndarray:
    row, column = place
    return values[row : row + size, column : column + size]
