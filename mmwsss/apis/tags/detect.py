"""Which format a source of tags is in."""

import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmwsss.errors import InputError
from mmwsss.files import read_json

from .cvat import INSIDE
from .entries import has_photo_suffix, xml_root_tag
from .label_studio import is_task
from .x_anylabeling import is_label_file

_LOOKED_AT = 20  # files of a folder
_XML = {'annotation': 'voc', 'annotations': 'cvat'}


def detect_format(source: Path) -> str:
    """One of the names in ``FORMATS``.

    Raises:
        InputError: None fits, or several do.
    """
    found = set(_in_folder(source)) if source.is_dir() else {_of_file(source)}
    if len(found) > 1:
        # Annotations that lie beside photos, whatever their folders are called.
        found.discard('folders')
    if len(found) > 1:
        raise InputError(
            f'{source} may be {" or ".join(sorted(found))}; say which by --format'
        )
    if not found or None in found:
        raise InputError(
            f'{source} is in no known format of tags; say by --format what it is, or '
            'write a CSV with lines of: photo,class,class'
        )
    return found.pop()


def _of_file(file: Path) -> str | None:
    suffix = file.suffix.lower()
    if suffix in ('.csv', '.txt', '.tsv'):
        return 'csv'
    if suffix == '.xml':
        return _XML.get(xml_root_tag(file))
    if suffix == '.zip' and zipfile.is_zipfile(file):
        return 'cvat'
    return _of_json(file) if suffix == '.json' else None


def _of_json(file: Path) -> str | None:
    content = read_json(file)
    if is_label_file(content):
        return 'x-anylabeling'
    if isinstance(content, list):
        return 'label-studio' if all(map(is_task, content[:1])) and content else None
    if not isinstance(content, dict):
        return None
    if {'classes', 'labels'} <= content.keys():
        raise InputError(f'{file} holds image labels already; use it as it is')
    return 'coco' if {'images', 'categories'} <= content.keys() else None


def _in_folder(folder: Path) -> Iterator[str]:
    if (folder / INSIDE).is_file():
        yield 'cvat'
        return
    for pattern in ('*.xml', '*.json'):
        for file in islice(folder.rglob(pattern), _LOOKED_AT):
            if pattern == '*.xml' and xml_root_tag(file) == 'annotation':
                yield 'voc'
            elif pattern == '*.json' and is_label_file(read_json(file)):
                yield 'x-anylabeling'
    if any(
        has_photo_suffix(file.name)
        for place in folder.iterdir()
        if place.is_dir()
        for file in islice(place.iterdir(), _LOOKED_AT)
    ):
        yield 'folders'
