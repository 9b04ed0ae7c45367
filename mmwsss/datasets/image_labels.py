"""The one file of image labels: {"classes": [...], "labels": {image_id: [names]}}."""

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmwsss.errors import InputError

HOW_TO_MAKE = 'make it with: mmwsss convert tags (see --help)'
# A mask has one byte a pixel: 0 is background and 255 void.
MAX_CLASSES = 254


@dataclass(frozen=True)
class ImageLabels:
    """Image labels of a data set.

    Attributes:
        classes: names of the K foreground classes; mask value k is classes[k - 1].
        labels: image id -> indices into classes, without doubles, ascending.
    """

    classes: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]

    def multi_hot(self, image_id: str) -> np.ndarray:
        """image_label (K,) float32 of one image."""
        vector = np.zeros(len(self.classes), dtype=np.float32)
        vector[list(self.labels[image_id])] = 1
        return vector


def load_image_labels(path: str | os.PathLike) -> ImageLabels:
    """Read ``.json`` or ``.json.gz``; anything malformed raises InputError."""
    path = Path(path)
    try:
        opener = gzip.open if path.suffix == '.gz' else open
        with opener(path, 'rt', encoding='utf-8-sig') as stream:
            content = json.load(stream, object_pairs_hook=_without_doubles)
    except FileNotFoundError:
        raise InputError(
            f'the image labels {path} do not exist; {HOW_TO_MAKE}'
        ) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f'the image labels {path} cannot be read as JSON ({error}); {HOW_TO_MAKE}'
        ) from None
    return _parse(content, path)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f'{twice!r} is in it twice')
    return content


def _parse(content: object, path: Path) -> ImageLabels:
    if not isinstance(content, dict) or not {'classes', 'labels'} <= content.keys():
        raise InputError(
            f'{path} must hold {{"classes": [...], "labels": {{...}}}}; {HOW_TO_MAKE}'
        )
    classes, labels = content['classes'], content['labels']
    check_classes(classes, path)
    if not isinstance(labels, dict):
        raise InputError(f'"labels" in {path} must map image ids to lists of names')
    index = {name: number for number, name in enumerate(classes)}
    parsed = {}
    for image_id, names in labels.items():
        parsed[image_id] = class_indices(names, index, f'image {image_id!r} in {path}')
    return ImageLabels(tuple(classes), parsed)


def class_indices(
    names: object, index: Mapping[str, int], what: str
) -> tuple[int, ...]:
    """Ascending indices of a list of class names; anything else raises InputError."""
    if not isinstance(names, list):
        raise InputError(
            f'the label of {what} must be a list of class names, got {names!r}'
        )
    unknown = [n for n in names if not isinstance(n, str) or n not in index]
    if unknown:
        raise InputError(
            f'{what} has the unknown class {unknown[0]!r}; correct it or add it to '
            f'"classes" ({", ".join(index)})'
        )
    return tuple(sorted({index[name] for name in names}))


def check_classes(classes: object, path: Path) -> None:
    """Refuse class names that are no list of different names."""
    if (
        not isinstance(classes, list)
        or not classes
        or not all(isinstance(name, str) and name.strip() for name in classes)
        or len(set(classes)) != len(classes)
    ):
        raise InputError(
            f'"classes" in {path} must be a list of different names; correct it there'
        )
    if 'background' in classes:
        raise InputError(
            f'"classes" in {path} names background, which is always there as index 0; '
            'take it out (a photo without objects has an empty list)'
        )
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f'"classes" in {path} has {len(classes)} names, but a mask can hold no '
            f'more than {MAX_CLASSES}; leave some out'
        )


def save_image_labels(
    path: str | os.PathLike, classes: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> None:
    """Write the file, packed for ``.gz``, under a temporary name and rename it."""
    path = Path(path)
    content = {
        'classes': list(classes),
        'labels': {image_id: list(labels[image_id]) for image_id in sorted(labels)},
    }
    data = json.dumps(content, ensure_ascii=False, indent=0).encode()
    if path.suffix == '.gz':
        data = gzip.compress(data, mtime=0)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f'the image labels {path} cannot be written ({error}); give another --out '
            'or make room there'
        ) from None
