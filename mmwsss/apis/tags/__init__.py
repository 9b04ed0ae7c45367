"""Tags from where people have them: seven formats, one result.

Each format has a module with ``read(source, options) -> Reading``, which checks the
file; what all share (which photo is meant, how a class is written, what counts as no
object) is checked once, in :mod:`.collect`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mmwsss.apis.label_folders import read_class_names
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.errors import InputError

from . import class_folders, coco, csv_table, cvat, label_studio, voc_xml, x_anylabeling
from .collect import NO_OBJECT, ClassNames, Tags, collect
from .detect import detect_format
from .entries import PhotoIndex, Reading, ReadOptions

__all__ = ['FORMATS', 'Tags', 'detect_format', 'read_class_list', 'read_tags']

# name: (how it is read, what the source is)
FORMATS: dict[str, tuple[Callable[[Path, ReadOptions], Reading], str]] = {
    'folders': (class_folders.read, 'a folder per class; the photos stay there'),
    'csv': (csv_table.read, 'lines of photo,class,class,... or a table of 0 and 1'),
    'coco': (coco.read, 'a COCO instances JSON'),
    'voc': (voc_xml.read, 'a folder with one XML per photo, as labelImg writes'),
    'x-anylabeling': (
        x_anylabeling.read,
        'a folder with one JSON per photo (also of LabelMe)',
    ),
    'cvat': (cvat.read, '"CVAT for images 1.1", the XML or its ZIP'),
    'label-studio': (label_studio.read, 'the export "JSON" with Choices'),
}


def read_tags(
    source: Path,
    *,
    photos: Path | None = None,
    format_name: str | None = None,
    classes: Sequence[str] | None = None,
    shapes: bool = False,
    control: str | None = None,
    no_object: Sequence[str] = NO_OBJECT,
    drop_other_classes: bool = False,
    skip_missing: bool = False,
) -> Tags:
    """Image labels from an annotation tool's file or from a folder.

    Args:
        source: File or folder with the tags.
        photos: Folder of the photos; None where they lie in ``source`` itself.
        format_name: One of ``FORMATS``; None looks at the source.
        classes: Foreground classes in the order of the masks; None takes those that
            the source declares, else those it names, sorted.
        shapes: Also take the classes of boxes, polygons and masks (COCO and VOC have
            nothing else, so they always do).
        control: Label Studio: the name of the Choices that hold the tags.
        no_object: Tags that mean that there is no object.
        drop_other_classes: Leave tags out that are not in ``classes``.
        skip_missing: Leave entries out whose photo is not there.

    Raises:
        InputError: Anything malformed, with the file and the entry.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f'{source.absolute()} does not exist; give a file or a folder')
    if format_name is None:
        format_name = detect_format(source)
    elif format_name not in FORMATS:
        raise InputError(
            f'{format_name!r} is no format of tags; those are {", ".join(FORMATS)}'
        )
    photos = _photo_folder(source, photos, format_name)
    index = PhotoIndex(photos, find_photos(photos))
    options = ReadOptions(index=index, shapes=shapes, control=control)
    reading = FORMATS[format_name][0](source, options)
    names = ClassNames(
        source,
        listed=classes,
        declared=reading.declared,
        no_object=no_object,
        drop_others=drop_other_classes,
    )
    return collect(reading, index, names, skip_missing=skip_missing)


def read_class_list(path: Path) -> list[str]:
    """Foreground classes, one a line; a background in front is left out."""
    return read_class_names(path)[1:]


def _photo_folder(source: Path, photos: Path | None, format_name: str) -> Path:
    if photos is None:
        if not source.is_dir():
            raise InputError(
                f'{source} says nothing about where its photos lie; give their folder '
                'by --images'
            )
        return source
    if not photos.is_dir():
        raise InputError(f'the folder of photos {photos.absolute()} does not exist')
    if format_name == 'folders' and not photos.samefile(source):
        raise InputError(
            f'{source} is a folder per class, which holds the photos itself; leave '
            f'--images {photos} out'
        )
    return photos
