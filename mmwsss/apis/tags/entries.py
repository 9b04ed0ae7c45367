"""What readers hand over, and which photo an entry means."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from mmwsss.datasets.image_label_dataset import PHOTO_SUFFIXES
from mmwsss.errors import InputError

# A document type stands before the first element, and nothing else of that length.
_PROLOG = 1 << 16
# LookupError: an encoding that nobody knows.
_NO_XML = (ElementTree.ParseError, LookupError, OSError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    r"""What a source says about one photo.

    Attributes:
        names: How the photo may be called, the likeliest first; '/' or ``\``.
        tags: Class names as written, none for a photo without any object.
        where: The entry, for a sentence, such as 'line 3 of tags.csv'.
    """

    names: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader found.

    Attributes:
        source: What was read.
        entries: One per photo.
        declared: Classes that the source itself lists, in its order.
        repeats: Several entries may be about one photo; their tags are joined.
        untagged: Photos that the source lists and nobody has looked at yet.
        notes: Sentences for the user.
    """

    source: Path
    entries: Sequence[Entry]
    declared: tuple[str, ...] = ()
    repeats: bool = False
    untagged: int = 0
    notes: tuple[str, ...] = field(default=())


class PhotoIndex:
    """Finds the photo that a name from another place or another machine means.

    A name counts as it is, with or without its suffix; then without the folders in
    front, one after the other; then as the name of a single photo in a subfolder.

    Args:
        folder: Of the photos.
        photos: (id, file) of all photos, the path below the folder without and with
            its suffix.
    """

    def __init__(self, folder: Path, photos: Iterable[tuple[str, str]]) -> None:
        self.folder = folder
        self.files = dict(photos)
        # macOS writes names with separate accents, other systems with joined ones.
        self._ids = {unicodedata.normalize('NFC', one): one for one in self.files}
        self._by_name = defaultdict(list)
        for known in self._ids:
            self._by_name[known.rpartition('/')[2]].append(known)

    def find(self, names: Sequence[str], where: str) -> tuple[str | None, bool]:
        """The id of a photo, and whether a name fits it with all its folders.

        Raises:
            InputError: Several photos fit equally well.
        """
        forms = [form for name in names for form in _without_suffix(name)]
        for form in forms:
            if form in self._ids:
                return self._ids[form], True
        for form in forms:
            parts = form.split('/')
            for first in range(1, len(parts)):
                tail = '/'.join(parts[first:])
                if tail in self._ids:
                    return self._ids[tail], False
        for form in forms:
            fitting = self._by_name.get(form.rpartition('/')[2], [])
            if len(fitting) > 1:
                raise InputError(
                    f'{where} names the photo {names[0]!r}, which may be {fitting[0]} '
                    f'or {fitting[1]} in {self.folder}; put its folder in front there, '
                    'or rename one of them'
                )
            if fitting:
                return self._ids[fitting[0]], False
        return None, False


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader may need to know, see :func:`mmwsss.apis.tags.read_tags`."""

    index: PhotoIndex
    shapes: bool = False
    control: str | None = None


def has_photo_suffix(name: str) -> bool:
    """Whether a name ends like a photo's."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES


def _without_suffix(name: str) -> Iterator[str]:
    """A name with '/' alone, without its suffix and, for 'c.v2', as it is."""
    name = unicodedata.normalize('NFC', name).replace('\\', '/').strip()
    parts = [part for part in name.split('/') if part not in ('', '.', '..')]
    path = '/'.join(parts)
    if has_photo_suffix(path):
        yield os.path.splitext(path)[0]
    yield path


# ------------------------------------------------------------------------------- XML
def xml_elements(
    stream: BinaryIO, path: Path, tags: Iterable[str]
) -> Iterator[ElementTree.Element]:
    """Complete elements of the named kinds in a row; the rest is forgotten.

    Raises:
        InputError: No XML, or one that defines entities (which may be a billion).
    """
    tags = set(tags)
    start = stream.read(_PROLOG)
    if b'<!DOCTYPE' in start or b'<!ENTITY' in start:
        raise InputError(
            f'{path} has a document type, which no annotation tool writes; export it '
            'again'
        )
    parser = ElementTree.XMLPullParser(events=('start', 'end'))
    inside = 0
    try:
        while start:
            parser.feed(start)
            for event, element in parser.read_events():
                wanted = element.tag in tags
                inside += wanted if event == 'start' else 0
                if event == 'end' and wanted:
                    inside -= 1
                    yield element
                # Without this, the whole document is in memory at the end.
                if event == 'end' and not inside:
                    element.clear()
            start = stream.read(_PROLOG)
        parser.close()
    except (*_NO_XML, EOFError) as error:
        raise InputError(
            f'{path} is no XML ({error}); export or copy it again'
        ) from None


def xml_root_tag(path: Path) -> str:
    """The name of an XML file's first element, '' where it is none."""
    try:
        with path.open('rb') as stream:
            for _, element in ElementTree.iterparse(stream, events=('start',)):
                return element.tag
    except _NO_XML:
        pass
    return ''
