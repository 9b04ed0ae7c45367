"""Masks as polygons along the edges of pixels, and polygons as masks.

A polygon goes around pixels, not through their centres: its corners are whole numbers,
(0, 0) is the upper left corner of the photo. A pixel is inside where its centre is, by
the even-odd rule, so a mask comes back exactly as it was. A hole is joined to the
outline around it by a slit of no width, walked there and back, since most formats know
polygons without holes alone.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

# To the next corner, for an edge that has the object to its right.
_STEPS = {'up': (0, -1), 'right': (1, 0), 'down': (0, 1), 'left': (-1, 0)}


def rings_of(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines of a mask (H, W), each (N, 2) of x and y.

    The object lies to the right of every step, so outer rings have a positive area
    (``ring_area``) and holes a negative one. Where two pixels touch at a corner alone,
    the rings keep them apart.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    # Corner -> the steps that leave it.
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for neighbour, (dx, dy), (x0, y0) in (
        (padded[:-2, 1:-1], _STEPS['right'], (0, 0)),
        (padded[1:-1, 2:], _STEPS['down'], (1, 0)),
        (padded[2:, 1:-1], _STEPS['left'], (1, 1)),
        (padded[1:-1, :-2], _STEPS['up'], (0, 1)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            leaving[x + x0, y + y0].append((dx, dy))
    rings = []
    while leaving:
        rings.append(_walked(leaving))
    return rings


def _walked(leaving: dict) -> np.ndarray:
    """One ring, taken out of the steps; corners on a straight line are left out."""
    start = corner = next(iter(leaving))
    step = first = leaving[corner][0]
    points = []
    while True:
        leaving[corner].remove(step)
        if not leaving[corner]:
            del leaving[corner]
        corner = (corner[0] + step[0], corner[1] + step[1])
        options = [*leaving.get(corner, ()), *([first] if corner == start else [])]
        # A right turn stays with the same pixel where two touch at their corner.
        right = (-step[1], step[0])
        following = right if right in options else options[0]
        if following != step:
            points.append(corner)
        if corner == start and following == first:
            return np.array(points, dtype=np.float64)
        step = following


def ring_area(ring: np.ndarray) -> float:
    """Area of a ring (N, 2) in pixels, negative for a hole."""
    x, y = ring.T
    return 0.5 * float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon (N, 2) of the outer ring of a part and its holes."""
    outer, *holes = sorted(rings, key=ring_area, reverse=True)
    polygon = outer
    for hole in holes:
        distance = np.abs(polygon[:, None] - hole[None]).sum(2)
        here, there = np.unravel_index(distance.argmin(), distance.shape)
        turned = np.roll(hole, -there, axis=0)
        # To the hole, around it, back to its beginning, and back.
        polygon = np.concatenate(
            [polygon[: here + 1], turned, turned[:1], polygon[here:]]
        )
    return polygon


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Fewer corners, none of those left out farther off than ``tolerance`` pixels.

    Douglas and Peucker, "Algorithms for the reduction of the number of points required
    to represent a digitized line or its caricature", Cartographica 1973. A ring that
    would lose its area stays as it is.
    """
    if tolerance <= 0 or len(ring) < 5:
        return ring
    far = int(np.abs(ring - ring[0]).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = {0, far}
    waiting = [(0, far), (far, len(ring))]
    while waiting:
        begin, end = waiting.pop()
        if end - begin < 2:
            continue
        between = _distances(closed[begin + 1 : end], closed[begin], closed[end])
        most = int(between.argmax())
        if between[most] > tolerance:
            middle = begin + 1 + most
            kept.add(middle)
            waiting += [(begin, middle), (middle, end)]
    found = ring[sorted(kept)]
    return found if len(found) > 2 and abs(ring_area(found)) > 0 else ring


def _distances(points: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of points (N, 2) from the stretch between two others."""
    along = end - begin
    length = float(along @ along)
    share = (points - begin) @ along / length if length else np.zeros(len(points))
    nearest = begin + np.clip(share, 0, 1)[:, None] * along
    return np.hypot(*(points - nearest).T)


def filled(polygons: Sequence[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Pixels (H, W) whose centres are inside an odd number of times.

    Args:
        polygons: (N, 2) of x and y each, closed by themselves; parts outside the
            photo are cut off.
        size: Height and width.
    """
    height, width = (int(side) for side in size)
    toggles = np.zeros((height, width + 1), dtype=np.int64)
    for polygon in polygons:
        begin = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        end = np.roll(begin, -1, axis=0)
        upward = begin[:, 1] > end[:, 1]
        top, bottom = (
            np.where(upward[:, None], end, begin),
            np.where(upward[:, None], begin, end),
        )
        # Rows whose centre lies in [top, bottom).
        first = np.clip(np.ceil(top[:, 1] - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(bottom[:, 1] - 0.5), 0, height).astype(np.int64)
        counts = last - first
        edge = np.repeat(np.arange(len(begin)), counts)
        if not len(edge):
            continue
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        row = first[edge] + np.arange(len(edge)) - starts
        slope = (bottom[edge] - top[edge])[:, 0] / (bottom[edge] - top[edge])[:, 1]
        x = top[edge, 0] + (row + 0.5 - top[edge, 1]) * slope
        # The first pixel whose centre is to the right of the edge or on it.
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.add.at(toggles, (row, column), 1)
    return toggles[:, :width].cumsum(1) % 2 == 1
