"""X-AnyLabeling, one JSON per photo: ``tags`` (since 4.0), else true ``flags``.

The image classifier of X-AnyLabeling 3 writes flags {class: true or false}; version 4
has a list of tags beside them. LabelMe's files have the same flags and shapes.
"""

from collections.abc import Iterable
from pathlib import Path

from mmwsss.errors import InputError
from mmwsss.files import read_json

from .entries import Entry, Reading, ReadOptions


def read(source: Path, options: ReadOptions) -> Reading:
    """Tags of all JSON files below a folder; a file with none is not annotated yet.

    A file with flags that are all false, with an empty list of tags or with the mark
    ``checked`` was looked at: its photo has no object.
    """
    files = sorted(source.rglob('*.json')) if source.is_dir() else [source]
    entries, declared, untagged, with_shapes = [], {}, 0, 0
    for file in files:
        content = _content(file)
        if content is None:
            continue
        flags = content['flags']
        tags = [*content['tags'], *(name for name, there in flags.items() if there)]
        declared.update(dict.fromkeys(flags))
        with_shapes += bool(content['shapes'])
        if options.shapes:
            tags += content['shapes']
        elif not content['looked_at']:
            untagged += 1
            continue
        place = file.relative_to(source) if source.is_dir() else Path(file.name)
        names = (place.with_suffix('').as_posix(), content['photo'])
        entries.append(
            Entry(names=tuple(filter(None, names)), tags=tuple(tags), where=str(file))
        )
    if not any(entry.tags for entry in entries):
        raise InputError(_nothing(source, files, with_shapes))
    return Reading(
        source=source, entries=entries, declared=tuple(declared), untagged=untagged
    )


def is_label_file(content: object) -> bool:
    """Whether a JSON is one of X-AnyLabeling or LabelMe."""
    return isinstance(content, dict) and {'shapes', 'imagePath'} <= content.keys()


def _content(file: Path) -> dict | None:
    """The parts of a file that matter, checked; None for another kind of JSON."""
    content = read_json(file)
    if not is_label_file(content):
        return None
    tags, flags = content.get('tags') or [], content.get('flags') or {}
    shapes = content['shapes'] or []
    if not isinstance(tags, list) or not all(isinstance(name, str) for name in tags):
        raise InputError(f'"tags" of {file} must be a list of names, got {tags!r}')
    if not isinstance(flags, dict) or not all(
        isinstance(there, bool) for there in flags.values()
    ):
        raise InputError(
            f'"flags" of {file} must say true or false for each class, got {flags!r}'
        )
    return {
        'tags': tags,
        'flags': flags,
        'shapes': list(_shape_labels(shapes, file)),
        'looked_at': bool(flags) or 'tags' in content or content.get('checked') is True,
        'photo': content['imagePath'] if isinstance(content['imagePath'], str) else '',
    }


def _shape_labels(shapes: object, file: Path) -> Iterable[str]:
    if not isinstance(shapes, list):
        raise InputError(f'"shapes" of {file} must be a list, got {shapes!r}')
    for number, shape in enumerate(shapes, start=1):
        label = shape.get('label') if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise InputError(f'shape {number} of {file} has no label')
        yield label


def _nothing(source: Path, files: list[Path], with_shapes: int) -> str:
    if with_shapes:
        return (
            f'{source} has no image tags, but {with_shapes} files with shapes; add '
            '--shapes to take the classes of the shapes'
        )
    return (
        f'none of the {len(files)} JSON files in {source} has tags or flags; tag the '
        'photos first'
    )
