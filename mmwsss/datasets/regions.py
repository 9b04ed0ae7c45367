"""Pieces of other photos laid on a photo, so that they say nothing about its label.

What always attends an object gives the object away, and a classifier learns it instead.
Pieces of photos *without* the object that are laid on photos with and without it, as
often on the one as on the other, take that away, and no label becomes wrong by it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform

from mmwsss.errors import InputError, tool
from mmwsss.registry import TRANSFORMS

from .image_label_dataset import find_photos
from .image_labels import load_image_labels
from .transforms import read_photo


@TRANSFORMS.register_module()
class PasteRegions(BaseTransform):
    """Lays pieces of other photos on a photo, at random places, flipped or not.

    A photo takes pieces alone whose classes it has itself: those of photos without any
    object go on every photo. A piece may cover an object, so it should be small. Stands
    directly behind ``LoadPhoto``. Masks, where there are any, are void below a piece.

    Args:
        data_root: folder of pieces, of ``tools/find_shortcuts.py --regions``, say: with
            ``JPEGImages`` and ``image_labels.json``, which names the classes of the
            photo that a piece comes from. With ``box`` a data set's own folder.
        ann_file: text file with one id a line, relative to ``data_root``; '' takes all.
        box: cut random pieces out of the photos there that show no object, with sides
            between these shares of theirs; None takes all of them, and whole.
        prob: share of the photos that something is laid on.
        max_regions: up to so many pieces, each number equally often.

    Raises:
        ValueError: if a number is outside its range.
        InputError: if the folder holds no pieces, or they are of other classes.
    """

    def __init__(
        self,
        *,
        data_root: str,
        ann_file: str = '',
        box: Sequence[float] | None = None,
        prob: float = 0.5,
        max_regions: int = 1,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must lie in [0, 1], got {prob}')
        if max_regions < 1:
            raise ValueError(f'max_regions must be at least 1, got {max_regions}')
        if box is not None and not (len(box) == 2 and 0 < box[0] <= box[1] <= 1):
            raise ValueError(f'box must be two ascending shares in (0, 1], got {box}')
        self.box = box
        self.prob = prob
        self.max_regions = max_regions
        self.paths, self.labels = _read_pieces(
            Path(data_root), ann_file, empty_only=box is not None
        )

    def transform(self, results: dict) -> dict:
        """Changes ``img``; masks become 255 where a piece lies."""
        if np.random.rand() >= self.prob:
            return results
        fitting = self._fitting(results)
        results['img'] = results['img'].copy()
        for _ in range(
            np.random.randint(1, self.max_regions + 1) if len(fitting) else 0
        ):
            piece = read_photo(str(self.paths[np.random.choice(fitting)]))
            self._paste(results, self._cut(piece))
        return results

    def _fitting(self, results: dict) -> np.ndarray:
        """Numbers of the pieces whose classes the photo has."""
        image_label = results['image_label']
        if len(image_label) != self.labels.shape[1]:
            raise InputError(
                f'the pieces of PasteRegions are of {self.labels.shape[1]} classes, '
                f'the data set has {len(image_label)}; cut them out of its own photos'
            )
        return np.flatnonzero((self.labels <= (image_label > 0)).all(1))

    def _cut(self, piece: np.ndarray) -> np.ndarray:
        if self.box is not None:
            sides = [
                max(1, round(np.random.uniform(*self.box) * side))
                for side in piece.shape[:2]
            ]
            piece = _random_part(piece, *sides)
        return piece[:, ::-1] if np.random.rand() < 0.5 else piece

    def _paste(self, results: dict, piece: np.ndarray) -> None:
        image = results['img']
        piece = _random_part(piece, *image.shape[:2])
        rows, columns = (
            _random_span(side, length)
            for side, length in zip(image.shape[:2], piece.shape[:2], strict=True)
        )
        image[rows, columns] = piece
        for key in results.get('seg_fields', []):
            results[key] = results[key].copy()
            results[key][rows, columns] = 255


def _read_pieces(
    root: Path, ann_file: str, *, empty_only: bool
) -> tuple[list[Path], np.ndarray]:
    """Files and image labels (M, K) bool of the pieces."""
    folder = root / 'JPEGImages'
    if not folder.is_dir():
        raise InputError(
            f'the folder of pieces {folder} does not exist; make it with: python '
            f'{tool("find_shortcuts")} CONFIG CAMS --regions DIR'
        )
    known = load_image_labels(root / 'image_labels.json')
    files = dict(find_photos(folder))
    ids = _listed(root / ann_file, files) if ann_file else list(files)
    lost = [name for name in ids if name not in known.labels]
    if lost:
        raise InputError(f'{root / "image_labels.json"} has no entry for {lost[0]}')
    if empty_only:
        ids = [name for name in ids if not known.labels[name]]
    if not ids:
        which = ' of a photo without objects' if empty_only else ''
        raise InputError(f'{root} holds no piece{which} that could be pasted')
    labels = np.stack([known.multi_hot(name) > 0 for name in ids])
    return [folder / files[name] for name in ids], labels


def _listed(path: Path, files: dict[str, str]) -> list[str]:
    try:
        ids = path.read_text(encoding='utf-8').split()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f'the list {path} cannot be read; it should hold one image id a line'
        ) from None
    lost = [name for name in ids if name not in files]
    if lost:
        raise InputError(
            f'{len(lost)} of {len(ids)} photos of {path} are missing, the first is '
            f'{lost[0]}'
        )
    return ids


def _random_part(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A part of at most that size, anywhere in the image."""
    rows, columns = (
        _random_span(side, min(side, length))
        for side, length in zip(image.shape[:2], (height, width), strict=True)
    )
    return image[rows, columns]


def _random_span(side: int, length: int) -> slice:
    start = np.random.randint(0, side - length + 1)
    return slice(start, start + length)
