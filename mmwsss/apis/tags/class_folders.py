"""A folder per class; ``background`` holds photos without any object."""

from pathlib import Path

from mmwsss.errors import InputError

from .entries import Entry, Reading, ReadOptions


def read(source: Path, options: ReadOptions) -> Reading:
    """The class of a photo is the name of its folder."""
    entries = []
    for image_id, file in options.index.files.items():
        folder, _, name = image_id.partition('/')
        if not name or '/' in name:
            raise InputError(
                f'the photo {source / file} does not lie directly in a class folder of '
                f'{source}; move it into one ("background" for photos without objects)'
            )
        entries.append(
            Entry(names=(file,), tags=(folder,), where=f'the folder {folder}')
        )
    if not entries:
        raise InputError(f'{source} holds no folder with photos; make one per class')
    return Reading(source=source, entries=entries)
