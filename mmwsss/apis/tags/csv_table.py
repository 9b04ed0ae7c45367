"""CSV: lines of photo,class,class,... or a table with a column of 0 and 1 per class.

The table is what Roboflow calls "Multi-Label Classification" and Kaggle hands out: a
header with the class names, behind the photo's name a 1 where the class is there.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from mmwsss.errors import InputError

from .entries import Entry, Reading, ReadOptions, has_photo_suffix

_DIGITS = {'0', '1'}


def read(source: Path, options: ReadOptions) -> Reading:
    """Entries by line; a line may name a photo again with further classes.

    A first line whose first cell is no photo is a header. Photos may be named from
    their folder, from the CSV's place or from here.
    """
    rows = _rows(source)
    for number, (name, *cells) in rows:
        _check_separators(name, cells, f'line {number} of {source}')
    header = bool(rows) and _is_header(rows[0][1], source, options)
    classes = rows[0][1][1:] if header else []
    body = rows[header:]
    table = bool(classes) and all(
        len(cells) == len(classes) + 1 and set(cells[1:]) <= _DIGITS
        for _, cells in body
    )
    entries = []
    for number, (name, *cells) in body:
        where = f'line {number} of {source}'
        if table:
            cells = [c for c, there in zip(classes, cells, strict=True) if there == '1']
        entries.append(
            Entry(names=_names(name, source, options), tags=tuple(cells), where=where)
        )
    return Reading(
        source=source,
        entries=entries,
        declared=tuple(classes) if table else (),
        repeats=True,
    )


def _rows(source: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not empty."""
    try:
        with open(source, newline='', encoding='utf-8-sig') as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, [c.strip() for c in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f'{source} cannot be read as CSV ({error}); save it as UTF-8 text with '
            'commas'
        ) from None
    return [(number, cells) for number, cells in rows if any(cells)]


def _is_header(cells: Sequence[str], source: Path, options: ReadOptions) -> bool:
    if has_photo_suffix(cells[0]):
        return False
    names = _names(cells[0], source, options)
    return options.index.find(names, f'line 1 of {source}')[0] is None


def _names(name: str, source: Path, options: ReadOptions) -> tuple[str, ...]:
    """A name seen from the photos, wherever it was written from."""
    folder = options.index.folder
    bases = (folder, source.parent, Path())
    inside = (os.path.relpath(base / name, folder) for base in bases)
    return (name, *dict.fromkeys(p for p in inside if p != name and p[:2] != '..'))


def _check_separators(name: str, cells: Sequence[str], where: str) -> None:
    for separator in (';', '\t', '|'):
        bad = next((cell for cell in cells if separator in cell), None)
        if bad is None and not cells and separator in name:
            bad = name
        if bad is not None:
            raise InputError(
                f'{where} has {separator!r} instead of commas ({bad!r}); write: '
                'photo,class,class'
            )
