"""VOC XML: one file per photo, as the PASCAL VOC devkit and labelImg write it."""

from pathlib import Path

from mmwsss.errors import InputError

from .entries import Entry, Reading, ReadOptions, xml_elements


def read(source: Path, options: ReadOptions) -> Reading:
    """The classes of all objects; those marked difficult or truncated count too."""
    files = sorted(source.rglob('*.xml')) if source.is_dir() else [source]
    if not files:
        raise InputError(f'{source} holds no XML file')
    entries = []
    for file in files:
        filename, names = read_file(file)
        # The name inside is often that of another machine, or of a renamed photo.
        place = file.relative_to(source) if source.is_dir() else Path(file.name)
        stem = place.with_suffix('').as_posix()
        entries.append(
            Entry(
                names=(stem, filename) if filename else (stem,),
                tags=tuple(names),
                where=str(file),
            )
        )
    return Reading(source=source, entries=entries)


def read_file(file: Path) -> tuple[str, list[str]]:
    """The photo's name and the class of each object.

    Raises:
        InputError: No XML of VOC, or an object without a name.
    """
    filename, names = '', []
    with file.open('rb') as stream:
        root = next(xml_elements(stream, file, ['annotation']), None)
    if root is None:
        raise InputError(
            f'{file} is no VOC annotation (it has no <annotation>); take it out or '
            'replace it'
        )
    filename = (root.findtext('filename') or '').strip()
    for number, element in enumerate(root.iterfind('object'), start=1):
        name = (element.findtext('name') or '').strip()
        if not name:
            raise InputError(f'object {number} of {file} has no name; correct it there')
        names.append(name)
    return filename, names
