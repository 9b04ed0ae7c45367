"""COCO: an instances file with images, annotations and categories."""

from collections import defaultdict
from pathlib import Path

from mmwsss.errors import InputError
from mmwsss.files import read_json

from .entries import Entry, Reading, ReadOptions

_PARTS = ('images', 'annotations', 'categories')


def read(source: Path, options: ReadOptions) -> Reading:
    """The categories of all annotations of an image, crowds too."""
    content = read_json(source)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) for part in _PARTS
    ):
        raise InputError(
            f'{source} is no COCO instances file; it needs the lists '
            f'{", ".join(_PARTS)}'
        )
    categories = _by_id(content['categories'], 'name', 'category', source)
    images = _by_id(content['images'], 'file_name', 'image', source)
    present = defaultdict(dict)
    for position, annotation in enumerate(content['annotations'], start=1):
        image, category = _ends(annotation, position, images, categories, source)
        present[image][categories[category]] = None
    entries = [
        Entry(
            names=(file_name,),
            tags=tuple(present[image]),
            where=f'image {image} of {source}',
        )
        for image, file_name in images.items()
    ]
    used = {name for names in present.values() for name in names}
    return Reading(
        source=source,
        entries=entries,
        declared=_declared(content['categories'], categories, used),
    )


def _by_id(items: list, key: str, what: str, source: Path) -> dict:
    """Id -> name, ascending."""
    found = {}
    for position, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            raise InputError(f'{what} {position} of {source} has no {key}')
        if not isinstance(item.get('id'), int):
            raise InputError(f'{what} {item[key]!r} of {source} has no number as id')
        if item['id'] in found:
            raise InputError(
                f'{source} gives the id {item["id"]} to {found[item["id"]]!r} and to '
                f'{item[key]!r}; export it again'
            )
        found[item['id']] = item[key]
    return dict(sorted(found.items()))


def _ends(
    annotation: object, position: int, images: dict, categories: dict, source: Path
) -> tuple[int, int]:
    what = f'annotation {position} of {source}'
    if not isinstance(annotation, dict):
        raise InputError(f'{what} is no object')
    for key, known in (('image_id', images), ('category_id', categories)):
        value = annotation.get(key)
        if not isinstance(value, int) or value not in known:
            raise InputError(
                f'{what} has the {key} {value!r:.200}, which '
                f'"{"images" if known is images else "categories"}" does not list; '
                'export it again'
            )
    return annotation['image_id'], annotation['category_id']


def _declared(items: list, categories: dict, used: set[str]) -> tuple[str, ...]:
    # Roboflow lists the whole project as category 0, above the real ones.
    above = [item.get('supercategory') for item in items]
    return tuple(n for n in categories.values() if n in used or n not in above)
