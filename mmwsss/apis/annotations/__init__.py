"""Masks to annotation tools and back: six formats, one way.

Each connected region of a class becomes a shape. Undecided pixels (255) become shapes
with the label ``ignore``, or are left out, and come back as 255. Runs and masks come
back exactly, and so do polygons, since they follow the edges of pixels; with a
tolerance they have fewer corners and move by no more than it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmwsss.apis.label_folders import MAP_SUFFIXES, find_map, read_mask
from mmwsss.apis.make_pseudo_labels import LABEL_FOLDER, write_map
from mmwsss.apis.tags.entries import PhotoIndex, has_photo_suffix
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.image_labels import save_image_labels
from mmwsss.datasets.transforms import DAMAGED
from mmwsss.errors import InputError
from mmwsss.files import write_text

from . import coco, cvat, label_studio, labelme, voc
from .shapes import IGNORE_LABEL, Drawn, Painted, label_of, regions_of

__all__ = [
    'FORMATS',
    'ExportOptions',
    'export_masks',
    'import_annotations',
    'masks_in',
]

# name -> what is written
FORMATS = {
    'voc': 'palette PNG, a list and labelmap.txt; 255 stays 255',
    'coco': 'instances.json, runs or polygons',
    'labelme': 'one JSON per photo, masks or polygons',
    'x-anylabeling': 'one JSON per photo, polygons with scores, tags, checked: false',
    'cvat': 'annotations.xml ("CVAT for images 1.1"), masks or polygons',
    'label-studio': 'tasks.json with predictions, brush or polygons, and the config',
}
_READERS: dict[str, Callable[[Path], Iterator[Painted]]] = {
    'coco': coco.read,
    'labelme': labelme.read,
    'x-anylabeling': labelme.read,
    'cvat': cvat.read,
    'label-studio': label_studio.read,
}
# X-AnyLabeling has no masks.
_POLYGONS_ALONE = ('x-anylabeling',)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How masks are written.

    Attributes:
        format_name: One of ``FORMATS``.
        classes: K names of the foreground classes.
        polygons: Polygons where the format has runs or masks as well.
        tolerance: Of polygons: pixels that an outline may move; 0 for none.
        min_area: Leave out regions of fewer pixels, which become background.
        ignore: Write 255 as shapes with the label ``ignore``; False leaves them out,
            and they come back as background.
        prefix: Label Studio: in front of the photos' paths.
    """

    format_name: str
    classes: Sequence[str]
    polygons: bool = False
    tolerance: float = 0.0
    min_area: int = 0
    ignore: bool = True
    prefix: str = ''


def export_masks(
    masks: Path,
    out: Path,
    options: ExportOptions,
    *,
    photos: Path | None = None,
    ids: Sequence[str] | None = None,
    reliability: Path | None = None,
) -> Iterator[str]:
    """Write label maps in the format of an annotation tool.

    Args:
        masks: Folder of ``ID.png``, or one with ``SegmentationClass``.
        out: Receives everything.
        options: How.
        photos: Folder of the photos, for their file names; None takes ``ID.jpg``.
        ids: Photos to write; None for all in ``masks``.
        reliability: Folder of ``ID.png`` with 255 = 1, for the scores of shapes.

    Yields:
        The photos' ids. Files of several photos are written after the last one.

    Raises:
        InputError: Masks are missing or damaged, or an option is unusable.
    """
    _check(options)
    folder = masks / LABEL_FOLDER if (masks / LABEL_FOLDER).is_dir() else masks
    names = masks_in(masks) if ids is None else list(ids)
    files = dict(find_photos(photos)) if photos is not None else {}
    writer = _writer(out, options, photos)
    for name in names:
        label = read_mask(find_map(folder, name), len(options.classes) + 1)
        if isinstance(writer, voc.Writer):
            writer.add_map(name, label)
        else:
            sure = None if reliability is None else _sure(reliability, name, label)
            writer.add(_drawn(name, label, options, files, photos, sure))
        yield name
    writer.close()


def _check(options: ExportOptions) -> None:
    if options.format_name not in FORMATS:
        raise InputError(
            f'{options.format_name!r} is no format of masks; those are '
            f'{", ".join(FORMATS)}'
        )
    if not options.tolerance >= 0:
        raise InputError(f'the tolerance must be 0 or more, got {options.tolerance}')
    if options.format_name == 'voc' and (options.tolerance or options.min_area):
        raise InputError('voc writes masks as they are; leave out tolerance and area')
    if IGNORE_LABEL in options.classes:
        raise InputError(
            f'a class is called {IGNORE_LABEL!r}, which stands for undecided pixels; '
            'call it something else'
        )


def _writer(out: Path, options: ExportOptions, photos: Path | None):
    labels = [*options.classes, *([IGNORE_LABEL] if options.ignore else [])]
    drawing = dict(polygons=options.polygons, tolerance=options.tolerance)
    match options.format_name:
        case 'voc':
            return voc.Writer(out, options.classes, ignore=options.ignore)
        case 'coco':
            return coco.Writer(out, labels, **drawing)
        case 'cvat':
            return cvat.Writer(out, labels, **drawing)
        case 'label-studio':
            return label_studio.Writer(out, labels, prefix=options.prefix, **drawing)
        case 'labelme':
            return labelme.LabelMeWriter(out, photos, **drawing)
    return labelme.XAnyLabelingWriter(out, photos, **drawing)


def _drawn(
    name: str,
    label: np.ndarray,
    options: ExportOptions,
    files: dict[str, str],
    photos: Path | None,
    sure: np.ndarray | None,
) -> Drawn:
    if photos is not None and name not in files:
        raise InputError(f'{photos} holds no photo {name}; leave its mask out')
    found = regions_of(label, options.classes, ignore=options.ignore, reliability=sure)
    regions = [region for region in found if region.area >= options.min_area]
    shown = {region.label for region in regions}
    return Drawn(
        id=name,
        file=files.get(name, f'{name}.jpg'),
        size=label.shape,
        regions=regions,
        tags=[one for one in options.classes if one in shown],
    )


def _sure(folder: Path, name: str, label: np.ndarray) -> np.ndarray:
    values = read_mask(find_map(folder, name), 256) / 255
    if values.shape != label.shape:
        raise InputError(
            f'the reliability of {name} has the size {values.shape}, its mask '
            f'{label.shape}; make them again'
        )
    return values


def masks_in(masks: Path) -> list[str]:
    """Ids of the masks in a folder, or in its ``SegmentationClass``.

    Raises:
        InputError: There is none.
    """
    folder = masks / LABEL_FOLDER if (masks / LABEL_FOLDER).is_dir() else masks
    if not folder.is_dir():
        raise InputError(f'the folder {folder} does not exist')
    found = sorted(
        path.relative_to(folder).with_suffix('').as_posix()
        for path in folder.rglob('*')
        if path.suffix.lower() in MAP_SUFFIXES and not path.name.startswith('.')
    )
    if not found:
        raise InputError(f'{folder} holds no mask (.png or .webp)')
    return found


def import_annotations(
    source: Path,
    out: Path,
    *,
    format_name: str,
    classes: Sequence[str],
    photos: Path | None = None,
) -> Iterator[str]:
    """Read what annotators corrected back into label maps.

    ``OUT/SegmentationClass/ID.png`` are strong labels for the next round, with
    ``OUT/list.txt`` and ``OUT/image_labels.json`` made from them. A photo that a file
    names without any shape has background alone. The label ``ignore`` becomes 255.

    Args:
        source: File or folder that the tool exported.
        out: Receives everything.
        format_name: One of ``FORMATS``.
        classes: K names in the order of the masks.
        photos: Folder of the photos: ids are theirs, and sizes must fit; None takes
            the names in the source.

    Yields:
        The ids of the photos.

    Raises:
        InputError: Anything malformed, an unknown label, a photo that is not there.
    """
    if format_name not in FORMATS:
        raise InputError(
            f'{format_name!r} is no format of masks; those are {", ".join(FORMATS)}'
        )
    if not source.exists():
        raise InputError(f'{source} does not exist; give what the tool exported')
    index = None if photos is None else PhotoIndex(photos, find_photos(photos))
    if format_name == 'voc':
        painted = voc.read(source, classes)
    else:
        painted = _READERS[format_name](source)
    labels: dict[str, list[str]] = {}
    for one in painted:
        name = _id_of(one, index)
        if name in labels:
            raise InputError(f'{source} names the photo {name} more than once')
        label = label_of(one, classes)
        write_map(out / LABEL_FOLDER / f'{name}.png', label, palette=True)
        labels[name] = [n for k, n in enumerate(classes, 1) if (label == k).any()]
        yield name
    if not labels:
        raise InputError(f'{source} holds no annotated photo; export it again')
    write_text(out / 'list.txt', ''.join(f'{name}\n' for name in sorted(labels)))
    save_image_labels(out / 'image_labels.json', classes, labels)


def _id_of(painted: Painted, index: PhotoIndex | None) -> str:
    """The photo's id, whose size must be that of the annotation."""
    if index is None:
        # No way out of the folder, whatever a file says.
        parts = painted.names[0].replace('\\', '/').split('/')
        path = '/'.join(part for part in parts if part not in ('', '.', '..'))
        return os.path.splitext(path)[0] if has_photo_suffix(path) else path
    found, _ = index.find(painted.names, painted.where)
    if found is None:
        raise InputError(
            f'{painted.where} is about the photo {painted.names[0]!r}, which is not in '
            f'{index.folder}; add it, or take the entry out'
        )
    path = index.folder / index.files[found]
    try:
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
    except DAMAGED as error:
        raise InputError(f'the photo {path} cannot be read ({error})') from None
    if (height, width) != tuple(painted.size):
        raise InputError(
            f'{painted.where} is of a photo of {painted.size[1]} x {painted.size[0]}, '
            f'but {path} has {width} x {height}; they must be the same photo'
        )
    return found
