"""Label Studio: the export "JSON" (a list of tasks) with the results of Choices.

The structure is that of "Label Studio JSON format of annotated tasks": data, and
annotations with a list of results. JSON-MIN drops which control a value is from.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from mmwsss.errors import InputError
from mmwsss.files import read_json

from .entries import Entry, Reading, ReadOptions, has_photo_suffix

# An upload's name gets a few hexadecimal digits in front.
_UPLOAD = re.compile(r'^[0-9a-f]{8}-')
_LABELS = re.compile(
    r'^(rectangle|polygon|brush|ellipse|keypoint|vector|bitmask)labels$'
)


def read(source: Path, options: ReadOptions) -> Reading:
    """The choices of all tasks; a task without an annotation is left out.

    Of several annotations the ground truth counts, or all of them together.
    """
    tasks = read_json(source)
    if not isinstance(tasks, list):
        raise InputError(
            f'{source} is no export of Label Studio, which is a list of tasks; export '
            'as JSON'
        )
    entries, untagged, joined = [], 0, []
    controls = Counter()
    for position, task in enumerate(tasks, start=1):
        where = task_place(task, position, source)
        annotations = valid_annotations(task, where)
        if not annotations:
            untagged += 1
            continue
        found = [
            dict.fromkeys(_tags(annotation, options, where, controls))
            for annotation in annotations
        ]
        if any(set(tags) != set(found[0]) for tags in found):
            joined.append(where.partition(' of ')[0])
        tags = dict.fromkeys(name for tags in found for name in tags)
        entries.append(
            Entry(names=photo_names(task['data'], where), tags=tuple(tags), where=where)
        )
    _check_controls(controls, options, source)
    notes = ()
    if joined:
        notes = (
            f'{len(joined)} tasks have several annotations that disagree, whose tags '
            f'were joined (the first: {joined[0]}); mark the right one as ground truth',
        )
    return Reading(source=source, entries=entries, untagged=untagged, notes=notes)


def is_task(item: object) -> bool:
    """Whether an item of a JSON list is a task of Label Studio."""
    return isinstance(item, dict) and isinstance(item.get('data'), dict)


def task_place(task: object, position: int, source: Path) -> str:
    """The task, for a sentence; raises InputError for anything else."""
    if not is_task(task):
        minimal = isinstance(task, dict) and 'annotator' in task
        raise InputError(
            f'task {position} of {source} has no "data"; '
            + ('JSON-MIN leaves it out, ' if minimal else '')
            + 'export as JSON'
        )
    return f'task {task.get("id", position)} of {source}'


def valid_annotations(task: Mapping, where: str) -> list[dict]:
    """Those that count: not skipped ones, the ground truth alone if there is one."""
    annotations = task.get('annotations') or []
    if not isinstance(annotations, list) or not all(
        isinstance(one, dict) and isinstance(one.get('result'), list)
        for one in annotations
    ):
        raise InputError(
            f'the annotations of {where} have no lists of results; export as JSON'
        )
    valid = [one for one in annotations if not one.get('was_cancelled')]
    return [one for one in valid if one.get('ground_truth')] or valid


def _tags(
    annotation: Mapping, options: ReadOptions, where: str, controls: Counter
) -> Iterator[str]:
    for result in annotation['result']:
        kind = result.get('type') if isinstance(result, dict) else None
        shape = isinstance(kind, str) and _LABELS.match(kind)
        if kind != 'choices' and not (shape and options.shapes):
            continue
        if kind == 'choices':
            name = str(result.get('from_name'))
            controls[name] += 1
            if options.control is not None and name != options.control:
                continue
        value = result.get('value') or {}
        values = value.get(kind) if isinstance(value, dict) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise InputError(
                f'{where} has {kind} that are no list of names ({values!r}); use '
                'plain, not nested choices'
            )
        yield from values


def _check_controls(controls: Counter, options: ReadOptions, source: Path) -> None:
    names, control = ', '.join(controls), options.control
    if not controls and not options.shapes:
        raise InputError(
            f'{source} has no Choices; add --shapes to take the labels of boxes, '
            'polygons and brushes'
        )
    if control is not None and control not in controls:
        raise InputError(f'{source} has no Choices {control!r}; those are: {names}')
    if control is None and len(controls) > 1:
        raise InputError(
            f'{source} has several Choices ({names}); say by --control which ones are '
            'the classes'
        )


def photo_names(data: Mapping, where: str) -> tuple[str, ...]:
    """Names that the photo may have on disk."""
    paths = {
        key: path
        for key, value in data.items()
        if isinstance(value, str) and has_photo_suffix(path := _path(value))
    }
    if len(paths) > 1 and 'image' in paths:
        paths = {'image': paths['image']}
    if len(paths) != 1:
        raise InputError(
            f'the data of {where} names {len(paths)} photos, not one; export a project '
            'with one photo a task'
        )
    (path,) = paths.values()
    folder, _, name = path.rpartition('/')
    plain = _UPLOAD.sub('', name)
    return (path,) if plain == name else (path, f'{folder}/{plain}')


def _path(value: str) -> str:
    """The path of an URL, of ``/data/local-files/?d=path``, or of a file."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return value
    local = parse_qs(parts.query).get('d')
    if local:
        return local[0]
    # A '#' or '%' in a file's own name is no part of an URL.
    is_url = bool(parts.scheme and parts.netloc) or value.startswith('/data/')
    return unquote(parts.path) if is_url else value
