"""CVAT: "CVAT for images 1.1", annotations.xml or the ZIP around it.

The version is that of the XML annotation format 1.1, where <tag label="..."/> stands
inside <image> beside the shapes.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element

from mmwsss.errors import InputError

from .entries import Entry, Reading, ReadOptions, xml_elements

INSIDE = 'annotations.xml'
_SHAPES = {
    'box', 'polygon', 'polyline', 'points', 'ellipse', 'cuboid', 'mask', 'skeleton',
}  # fmt: skip


def read(source: Path, options: ReadOptions) -> Reading:
    """The tags of all images; an image without one counts as without any object.

    CVAT does not say whether somebody looked at an image.
    """
    kinds = {'tag', *(_SHAPES if options.shapes else ())}
    entries, declared, shapes_alone, tagged = [], [], 0, 0
    with opened(source) as stream:
        for element in xml_elements(stream, source, ['image', 'labels', 'track']):
            if element.tag == 'track':
                raise InputError(
                    f'{source} is "CVAT for video", which has no image tags; export '
                    'as "CVAT for images 1.1"'
                )
            if element.tag == 'labels':
                declared += _declared(element, options.shapes)
                continue
            entry = _entry(element, kinds, source, len(entries) + 1)
            entries.append(entry)
            tagged += bool(entry.tags)
            shapes_alone += any(child.tag in _SHAPES for child in element)
    if not entries:
        raise InputError(f'{source} names no image; export as "CVAT for images 1.1"')
    if not tagged and shapes_alone:
        raise InputError(
            f'{source} has no image tags, but {shapes_alone} images with shapes; add '
            '--shapes to take the classes of the shapes'
        )
    return Reading(source=source, entries=entries, declared=tuple(declared))


def _entry(image: Element, kinds: set[str], source: Path, number: int) -> Entry:
    name = (image.get('name') or '').strip()
    if not name:
        raise InputError(f'image {number} of {source} has no name; export it again')
    where = f'image {name!r} of {source}'
    tags = []
    for child in image:
        if child.tag not in kinds:
            continue
        label = child.get('label')
        if not label:
            raise InputError(f'a {child.tag} of {where} has no label')
        tags.append(label)
    return Entry(names=(name,), tags=tuple(tags), where=where)


def _declared(labels: Element, shapes: bool) -> Iterator[str]:
    """The project's labels that can be tags, or shapes if those count."""
    for label in labels.iterfind('label'):
        name = (label.findtext('name') or '').strip()
        # Older servers write no type.
        kind = (label.findtext('type') or 'any').strip()
        if name and (shapes or kind in ('any', 'tag')):
            yield name


@contextmanager
def opened(source: Path) -> Iterator[BinaryIO]:
    """The XML of a file, of a ZIP or of a folder."""
    if source.is_dir():
        source = source / INSIDE
    try:
        if not zipfile.is_zipfile(source):
            with source.open('rb') as stream:
                yield stream
            return
        with zipfile.ZipFile(source) as archive:
            names = [n for n in archive.namelist() if n.split('/')[-1] == INSIDE]
            if len(names) != 1:
                raise InputError(
                    f'{source} holds {len(names)} files {INSIDE}, not one; unpack it '
                    'and give one of them'
                )
            with archive.open(names[0]) as stream:
                yield stream
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise InputError(
            f'{source} cannot be read ({error}); download it again'
        ) from None
