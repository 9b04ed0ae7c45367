"""LabelMe and X-AnyLabeling: one JSON per photo, with the same shapes.

LabelMe knows masks (a PNG inside the JSON) and polygons; X-AnyLabeling polygons alone,
beside tags, a score for each shape and a mark for what was checked.
"""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmwsss.apis.tags.x_anylabeling import is_label_file
from mmwsss.datasets.transforms import DAMAGED
from mmwsss.errors import InputError
from mmwsss.files import read_json, write_json

from .shapes import Drawn, Painted, Region, checked_size, polygon_pixels

# Corners of the polygon that stands for a circle, at most.
_CIRCLE_STEPS = 1 << 16


class LabelMeWriter:
    """Writes ``ID.json`` as LabelMe 5 does.

    Args:
        out: Folder.
        photos: Folder of the photos, which the files point to; None names them alone.
        polygons: Polygons instead of masks.
        tolerance: Of polygons, in pixels.
    """

    def __init__(
        self, out: Path, photos: Path | None, *, polygons: bool, tolerance: float
    ) -> None:
        self.out, self.photos = out, photos
        self.polygons, self.tolerance = polygons, tolerance

    def add(self, drawn: Drawn) -> None:
        """Write a photo's file."""
        path = self.out / f'{drawn.id}.json'
        write_json(path, self.content(drawn, path))

    def content(self, drawn: Drawn, path: Path) -> dict:
        """What the file at a path holds."""
        return {
            'version': '5.4.1',
            'flags': {},
            'shapes': [self.shape(region) for region in drawn.regions],
            'imagePath': self._photo(drawn, path),
            'imageData': None,
            'imageHeight': drawn.size[0],
            'imageWidth': drawn.size[1],
        }

    def _photo(self, drawn: Drawn, path: Path) -> str:
        if self.photos is None:
            return Path(drawn.file).name
        # LabelMe looks for the photo from where its file lies.
        way = os.path.relpath(self.photos.resolve() / drawn.file, path.parent.resolve())
        return way.replace(os.sep, '/')

    def shape(self, region: Region) -> dict:
        """One shape."""
        shape = {
            'label': region.label,
            'points': None,
            'group_id': None,
            'description': '',
            'shape_type': 'polygon',
            'flags': {},
        }
        if self.polygons:
            points = region.polygon(self.tolerance)
            return {**shape, 'points': points.tolist(), 'mask': None}
        left, top, width, height = region.box
        buffer = io.BytesIO()
        Image.fromarray(region.mask).save(buffer, 'PNG')
        return {
            **shape,
            'shape_type': 'mask',
            # The last pixel belongs to the box.
            'points': [[left, top], [left + width - 1, top + height - 1]],
            'mask': base64.b64encode(buffer.getvalue()).decode(),
        }

    def close(self) -> None:
        """Nothing is left to write."""


class XAnyLabelingWriter(LabelMeWriter):
    """Writes ``ID.json`` as X-AnyLabeling 4 does: polygons, scores, tags."""

    def content(self, drawn: Drawn, path: Path) -> dict:
        """What the file at a path holds."""
        return {
            **super().content(drawn, path),
            'version': '4.0.0',
            'checked': False,
            'tags': list(drawn.tags),
            'imagePath': Path(drawn.file).name,
        }

    def shape(self, region: Region) -> dict:
        """One polygon."""
        return {
            'label': region.label,
            'score': region.score,
            'points': region.polygon(self.tolerance).tolist(),
            'group_id': None,
            'description': '',
            'difficult': False,
            'shape_type': 'polygon',
            'flags': {},
            'attributes': {},
        }


def read(source: Path) -> Iterator[Painted]:
    """What each file says; later shapes lie above earlier ones.

    Raises:
        InputError: Anything malformed, or a shape without an area.
    """
    files = sorted(source.rglob('*.json')) if source.is_dir() else [source]
    for file in files:
        content = read_json(file)
        if not is_label_file(content):
            continue
        where = str(file)
        size = checked_size(
            content.get('imageHeight'), content.get('imageWidth'), where
        )
        shapes = content['shapes'] or []
        if not isinstance(shapes, list):
            raise InputError(f'"shapes" of {where} must be a list, got {shapes!r}')
        place = file.relative_to(source) if source.is_dir() else Path(file.name)
        names = [place.with_suffix('').as_posix()]
        if isinstance(content['imagePath'], str):
            names.append(content['imagePath'])
        yield Painted(
            names=tuple(names),
            size=size,
            layers=[_layer(shape, size, where) for shape in shapes],
            where=where,
        )


def _layer(shape: object, size: tuple[int, int], where: str) -> tuple[str, np.ndarray]:
    label = shape.get('label') if isinstance(shape, dict) else None
    if not isinstance(label, str):
        raise InputError(f'a shape of {where} has no label')
    kind, points = shape.get('shape_type'), shape.get('points')
    if kind == 'mask':
        return label, _of_mask(shape, size, where)
    try:
        if kind == 'rectangle' and len(points) == 2:
            (left, top), (right, bottom) = points
            points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        elif kind == 'circle':
            points, kind = _circle(points), 'polygon'
    except (OverflowError, TypeError, ValueError):
        raise InputError(
            f'a {kind} of {where} has points that are none ({points!r:.200}); draw it '
            'again'
        ) from None
    if kind not in ('polygon', 'rectangle', 'rotation', 'quadrilateral'):
        raise InputError(
            f'a {kind} of {where} has no area; draw polygons, masks, boxes or circles'
        )
    return label, polygon_pixels([points], size, where)


def _circle(points: Sequence[Sequence[float]]) -> list[list[float]]:
    centre, edge = np.asarray(points, dtype=np.float64)
    radius = np.hypot(*(edge - centre))
    steps = 8 * np.clip(radius, 2, _CIRCLE_STEPS // 8)
    angles = np.linspace(0, 2 * np.pi, int(steps), endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], 1)
    return (centre + radius * around).tolist()


def _of_mask(shape: dict, size: tuple[int, int], where: str) -> np.ndarray:
    found = np.zeros(size, bool)
    try:
        corner, _ = np.asarray(shape['points'], dtype=np.float64).round()
        left, top = map(int, corner)
        with Image.open(io.BytesIO(base64.b64decode(shape['mask']))) as image:
            mask = np.asarray(image.convert('L')) > 0
    except (KeyError, OverflowError, TypeError, *DAMAGED) as error:
        raise InputError(f'a mask of {where} is damaged ({error!s:.200})') from None
    place = found[top : top + mask.shape[0], left : left + mask.shape[1]]
    if min(left, top) < 0 or place.shape != mask.shape:
        raise InputError(f'a mask of {where} reaches beyond the photo')
    place |= mask
    return found
