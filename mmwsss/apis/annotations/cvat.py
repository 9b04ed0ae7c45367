"""CVAT: "CVAT for images 1.1", masks or polygons, one element per connected region."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from mmwsss.apis.tags.cvat import INSIDE, opened
from mmwsss.apis.tags.entries import xml_elements
from mmwsss.errors import InputError
from mmwsss.files import whole_file
from mmwsss.visualization.colors import voc_palette

from .runs import from_run_lengths, run_lengths
from .shapes import IGNORE_LABEL, Drawn, Painted, Region, checked_size, polygon_pixels

# Shapes without an area, which a photo may have beside others.
_NO_AREA = ('points', 'polyline', 'cuboid', 'skeleton')


class Writer:
    """Collects photos and writes ``annotations.xml``.

    Args:
        out: Folder.
        classes: Names of all labels; a project in CVAT must have the same.
        polygons: Polygons instead of masks.
        tolerance: Of polygons, in pixels.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], *, polygons: bool, tolerance: float
    ) -> None:
        self.path = out / INSIDE
        self.polygons, self.tolerance = polygons, tolerance
        self.count = 0
        self.lines = [
            '<?xml version="1.0" encoding="utf-8"?>',
            '<annotations>',
            '  <version>1.1</version>',
            '  <meta><task><labels>',
        ]
        for name, color in label_colors(classes).items():
            self.lines.append(
                f'    <label><name>{escape(name)}</name><color>{color}</color>'
                '<type>any</type><attributes></attributes></label>'
            )
        self.lines.append('  </labels></task></meta>')

    def add(self, drawn: Drawn) -> None:
        """Add a photo, also one with no region."""
        height, width = drawn.size
        self.lines.append(
            f'  <image id="{self.count}" name={quoteattr(drawn.file)} '
            f'width="{width}" height="{height}">'
        )
        self.count += 1
        self.lines += [f'    {self._element(region)}' for region in drawn.regions]
        self.lines.append('  </image>')

    def _element(self, region: Region) -> str:
        common = f'label={quoteattr(region.label)} source="auto" occluded="0"'
        if self.polygons:
            corners = region.polygon(self.tolerance)
            points = ';'.join(f'{x:.2f},{y:.2f}' for x, y in corners)
            return f'<polygon {common} points="{points}" z_order="0"></polygon>'
        left, top, width, height = region.box
        lengths = ', '.join(map(str, run_lengths(region.mask.ravel())))
        return (
            f'<mask {common} rle="{lengths}" left="{left}" top="{top}" '
            f'width="{width}" height="{height}" z_order="0"></mask>'
        )

    def close(self) -> None:
        """Write the file."""
        with whole_file(self.path) as stream:
            stream.write('\n'.join([*self.lines, '</annotations>', '']).encode())


def label_colors(classes: Sequence[str]) -> dict[str, str]:
    """Name -> colour as #rrggbb, VOC's."""
    palette = voc_palette()
    colors = {name: palette[k] for k, name in enumerate(classes, 1)}
    if IGNORE_LABEL in colors:
        colors[IGNORE_LABEL] = palette[255]
    return {name: f'#{r:02x}{g:02x}{b:02x}' for name, (r, g, b) in colors.items()}


def read(source: Path) -> Iterator[Painted]:
    """What the XML, or the ZIP around it, says about each image.

    Shapes with a higher ``z_order`` lie above, among equals the later ones.

    Raises:
        InputError: Anything malformed.
    """
    with opened(source) as stream:
        for image in xml_elements(stream, source, ['image', 'track']):
            if image.tag == 'track':
                raise InputError(
                    f'{source} is "CVAT for video"; export as "CVAT for images 1.1"'
                )
            name = (image.get('name') or '').strip()
            if not name:
                raise InputError(f'an image of {source} has no name; export it again')
            where = f'image {name!r} of {source}'
            size = checked_size(image.get('height'), image.get('width'), where)
            shapes = [s for s in image if s.tag not in ('tag', *_NO_AREA)]
            shapes.sort(key=lambda shape: _height(shape, where))
            layers = [
                (shape.get('label') or '', _pixels(shape, size, where))
                for shape in shapes
            ]
            yield Painted(names=(name,), size=size, layers=layers, where=where)


def _height(shape: Element, where: str) -> int:
    text = shape.get('z_order') or '0'
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f'a {shape.tag} of {where} has the z_order {text!r}, which is no number; '
            'export it again'
        ) from None


def _pixels(shape: Element, size: tuple[int, int], where: str) -> np.ndarray:
    try:
        if shape.tag == 'mask':
            return _of_mask(shape, size)
        if shape.tag == 'polygon':
            pairs = [pair.split(',') for pair in shape.get('points', '').split(';')]
            points = [[float(x), float(y)] for x, y in pairs]
        elif shape.tag == 'box':
            left, top, right, bottom = (
                float(shape.get(side)) for side in ('xtl', 'ytl', 'xbr', 'ybr')
            )
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            points = _turned(corners, shape)
        elif shape.tag == 'ellipse':
            outline = _ellipse(*(float(shape.get(k)) for k in ('cx', 'cy', 'rx', 'ry')))
            points = _turned(outline, shape)
        else:
            raise ValueError('draw masks, polygons, boxes or ellipses')
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f'a {shape.tag} of {where} cannot be read: {error}') from None
    return polygon_pixels([points], size, where)


def _ellipse(x: float, y: float, across: float, down: float) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return np.stack(
        [x + across * np.cos(angles), y + down * np.sin(angles)], 1
    ).tolist()


def _turned(points: list[list[float]], shape: Element) -> list[list[float]]:
    """Points about their middle, clockwise by ``rotation`` in degrees."""
    angle = np.deg2rad(float(shape.get('rotation') or 0))
    if not angle:
        return points
    corners = np.array(points)
    middle = (corners.min(0) + corners.max(0)) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((corners - middle) @ turn + middle).tolist()


def _of_mask(shape: Element, size: tuple[int, int]) -> np.ndarray:
    lengths = [int(number) for number in shape.get('rle', '').split(',')]
    left, top, width, height = (
        int(float(shape.get(side))) for side in ('left', 'top', 'width', 'height')
    )
    # Looked at first: numbers that are far too large need no memory then.
    if min(left, top) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError('it reaches beyond the photo')
    mask = from_run_lengths(lengths, width * height).reshape(height, width)
    found = np.zeros(size, bool)
    found[top : top + height, left : left + width] = mask
    return found
