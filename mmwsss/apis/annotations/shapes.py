"""Labelled shapes of a photo: what all formats of annotators have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mmwsss.errors import InputError

from .outlines import filled, joined, rings_of, simplified

IGNORE_INDEX = 255
IGNORE_LABEL = 'ignore'


@dataclass(frozen=True, eq=False)
class Region:
    """Connected pixels of one label.

    Attributes:
        label: Name of the class, or ``IGNORE_LABEL``.
        left: Of its box.
        top: Of its box.
        mask: (h, w) bool, the box alone.
        score: Mean reliability, or None.
    """

    label: str
    left: int
    top: int
    mask: np.ndarray
    score: float | None = None

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        height, width = self.mask.shape
        return self.left, self.top, width, height

    def whole(self, size: Sequence[int]) -> np.ndarray:
        """The mask (H, W) of the photo."""
        found = np.zeros(tuple(size), bool)
        height, width = self.mask.shape
        found[self.top : self.top + height, self.left : self.left + width] = self.mask
        return found

    def polygon(self, tolerance: float) -> np.ndarray:
        """One polygon (N, 2) in the photo, holes joined by slits."""
        rings = [simplified(ring, tolerance) for ring in rings_of(self.mask)]
        return joined(rings) + np.array([self.left, self.top])


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A photo and what is drawn on it, for a writer.

    Attributes:
        id: Of the photo.
        file: Its path below the folder of photos.
        size: Height and width.
        regions: In no order; they do not overlap.
        tags: Names of the classes in it.
    """

    id: str
    file: str
    size: tuple[int, int]
    regions: Sequence[Region]
    tags: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A photo and what an annotator says about it, from a reader.

    Attributes:
        names: How the photo may be called, the likeliest first.
        size: Height and width by the file.
        layers: Label and pixels (H, W), later ones above.
        where: The entry, for a sentence.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    layers: Sequence[tuple[str, np.ndarray]]
    where: str


def regions_of(
    label: np.ndarray,
    classes: Sequence[str],
    *,
    ignore: bool = True,
    reliability: np.ndarray | None = None,
) -> list[Region]:
    """Connected regions (sharing an edge) of a label map (H, W).

    Args:
        label: 0 background, k class k, 255 undecided.
        classes: K names.
        ignore: Make regions of 255 too, with ``IGNORE_LABEL``; False leaves it out.
        reliability: (H, W) in [0, 1], for the scores.
    """
    names: Mapping[int, str] = dict(enumerate(classes, 1))
    if ignore:
        names = {**names, IGNORE_INDEX: IGNORE_LABEL}
    found = []
    for value in np.unique(label).tolist():
        if value not in names:
            continue
        count, parts, boxes, _ = cv2.connectedComponentsWithStats(
            (label == value).astype(np.uint8), connectivity=4
        )
        for part in range(1, count):
            left, top, width, height, _ = boxes[part].tolist()
            place = np.s_[top : top + height, left : left + width]
            mask, score = parts[place] == part, None
            if reliability is not None:
                score = round(float(reliability[place][mask].mean()), 4)
            found.append(Region(names[value], left, top, mask, score))
    return found


def label_of(painted: Painted, classes: Sequence[str]) -> np.ndarray:
    """The label map (H, W) uint8 of what was painted.

    Raises:
        InputError: A label is not among the classes.
    """
    index = {name: k for k, name in enumerate(classes, 1)}
    index |= {IGNORE_LABEL: IGNORE_INDEX, 'background': 0}
    label = np.zeros(painted.size, dtype=np.uint8)
    for name, pixels in painted.layers:
        if name not in index:
            raise InputError(
                f'{painted.where} has the label {name!r}, which is not in the class '
                f'list ({", ".join(classes)}); rename it there, or add it to the list'
            )
        label[pixels] = index[name]
    return label


def polygon_pixels(
    polygons: Iterable[Sequence], size: Sequence[int], where: str
) -> np.ndarray:
    """Pixels (H, W) inside polygons of x, y pairs.

    Raises:
        InputError: A polygon is none.
    """
    found = []
    for points in polygons:
        try:
            corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            corners = np.zeros((0, 2))
        if len(corners) < 3 or not np.isfinite(corners).all():
            raise InputError(
                f'{where} has a polygon of {len(corners)} points; correct it there'
            )
        found.append(corners)
    return filled(found, size)


def checked_size(height: object, width: object, where: str) -> tuple[int, int]:
    """Height and width as whole numbers."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        size = (0, 0)
    # Larger than any photo, and small enough to hold.
    if min(size) < 1 or size[0] * size[1] > 1 << 30:
        raise InputError(
            f'{where} has the size {height!r} x {width!r}; export it again'
        )
    return size
