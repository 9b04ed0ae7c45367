"""Entries of any source to image labels: one photo, one spelling, no surprise."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mmwsss.datasets.image_labels import check_classes
from mmwsss.errors import InputError

from .entries import Entry, PhotoIndex, Reading

NO_OBJECT = ('background',)


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Image labels and what there is to say about them.

    Attributes:
        classes: K foreground classes.
        labels: Image id -> class names, an empty list for a photo without objects.
        skipped: Photos of the source or the folder that have no entry.
        notes: Sentences for the user.
    """

    classes: tuple[str, ...]
    labels: dict[str, list[str]]
    skipped: int
    notes: tuple[str, ...]


class ClassNames:
    """One way to write each class.

    Spaces around and double spaces inside a name do not count. Case does: without a
    list two spellings are refused, with one they become the listed one.

    Args:
        source: Named in sentences.
        listed: The classes by the user's own list, or None.
        declared: Those that the source lists, which may be none.
        no_object: Names that mean that there is no object, in any case.
        drop_others: Leave names out that are not listed.
    """

    def __init__(
        self,
        source: Path,
        *,
        listed: Sequence[str] | None,
        declared: Sequence[str],
        no_object: Sequence[str],
        drop_others: bool,
    ) -> None:
        if drop_others and listed is None:
            raise InputError(
                '--drop-other-classes needs the list of those that stay; add --classes'
            )
        self.source, self.drop_others = source, drop_others
        self.listed = None if listed is None else [_tidy(name) for name in listed]
        self._nothing = {_tidy(name).casefold() for name in no_object}
        self.declared = tuple(
            dict.fromkeys(
                name for name in map(_tidy, declared) if not self._is_nothing(name)
            )
        )
        self.dropped: Counter[str] = Counter()
        self._spelling: dict[str, tuple[str, str]] = {}
        if self.listed is None:
            for name in self.declared:
                self._one(name, f'the list of classes in {source}')
            return
        check_classes(self.listed, Path('the class list'))
        for name in self.listed:
            # Classes that differ in nothing but case must be written exactly.
            known = self._spelling.setdefault(name.casefold(), (name, ''))
            if known[0] != name:
                self._spelling[name.casefold()] = ('', '')

    def of(self, entry: Entry) -> list[str]:
        """The classes of an entry, each once."""
        found = {}
        for written in entry.tags:
            name = self._one(_tidy(written), entry.where)
            if name is not None:
                found[name] = None
        return list(found)

    def _is_nothing(self, name: str) -> bool:
        return not name or name.casefold() in self._nothing

    def _one(self, name: str, where: str) -> str | None:
        if self._is_nothing(name):
            return None
        if self.listed is not None:
            return self._listed_one(name, where)
        known, place = self._spelling.setdefault(name.casefold(), (name, where))
        if known != name:
            raise InputError(
                f'{where} writes the class {name!r}, but {place} writes {known!r}; '
                'write it one way, or give --classes with the right one'
            )
        return name

    def _listed_one(self, name: str, where: str) -> str | None:
        known = self._spelling.get(name.casefold(), ('', ''))[0]
        if name in self.listed or known:
            return name if name in self.listed else known
        if self.drop_others:
            self.dropped[name] += 1
            return None
        near = get_close_matches(name, self.listed, n=1)
        guess = f' (did you mean {near[0]!r}?)' if near else ''
        raise InputError(
            f'{where} has the unknown class {name!r}{guess}; correct it there, add it '
            'to the class list, or leave such tags out by --drop-other-classes'
        )

    def final(self, labels: dict[str, list[str]]) -> tuple[str, ...]:
        """All K classes.

        Raises:
            InputError: There is none, or they cannot be classes.
        """
        used = {name for names in labels.values() for name in names}
        if self.listed is not None:
            classes = self.listed
        else:
            classes = [*self.declared, *sorted(used - set(self.declared))]
        if not used:
            raise InputError(
                f'no photo of {self.source} has a class; at least one is needed'
            )
        check_classes(classes, self.source)
        return tuple(classes)


def collect(
    reading: Reading, index: PhotoIndex, names: ClassNames, *, skip_missing: bool
) -> Tags:
    """Image labels of all entries.

    Raises:
        InputError: An entry without photo, a photo with two entries, or what
            :class:`ClassNames` refuses.
    """
    labels: dict[str, list[str]] = {}
    first: dict[str, tuple[Entry, bool]] = {}
    missing = []
    for entry in reading.entries:
        image_id, exact = index.find(entry.names, entry.where)
        if image_id is None:
            if not skip_missing:
                raise InputError(
                    f'{entry.where} names the photo {entry.names[0]!r}, which is not '
                    f'in {index.folder}; correct the name, add the photo, or leave '
                    'such entries out by --skip-missing'
                )
            missing.append(entry.names[0])
            continue
        before, before_exact = first.setdefault(image_id, (entry, exact))
        if before is not entry and not (reading.repeats and exact and before_exact):
            _refuse_repeat(image_id, before, entry)
        known = labels.setdefault(image_id, [])
        known += [name for name in names.of(entry) if name not in known]
    if not labels:
        raise InputError(
            f'{reading.source} has no tagged photo of {index.folder}; check that both '
            'belong together'
        )
    classes = names.final(labels)
    without = [i for i in index.files if i not in labels]
    notes = [*reading.notes, *_notes(reading, labels, classes, names, missing)]
    if without:
        notes.append(_no_entry(without, reading.source))
    return Tags(
        classes=classes,
        labels=labels,
        skipped=len(without) + len(missing),
        notes=tuple(notes),
    )


def _refuse_repeat(image_id: str, before: Entry, entry: Entry) -> None:
    if before.names == entry.names:
        raise InputError(
            f'{entry.where} names the photo {entry.names[0]!r} again, as does '
            f'{before.where}; take one of them out'
        )
    raise InputError(
        f'{entry.where} names the photo {entry.names[0]!r}, which would be {image_id} '
        f'like {before.names[0]!r} of {before.where}; keep the folders of both, so '
        'that their names differ'
    )


def _notes(
    reading: Reading,
    labels: dict[str, list[str]],
    classes: Sequence[str],
    names: ClassNames,
    missing: Sequence[str],
) -> list[str]:
    notes = []
    empty = [image_id for image_id, found in labels.items() if not found]
    if empty:
        notes.append(
            f'{len(empty)} of {len(labels)} photos have no tag and count as photos '
            f'without any object ({_first(empty)})'
        )
    used = {name for found in labels.values() for name in found}
    unused = [name for name in classes if name not in used]
    if unused:
        notes.append(
            f'{len(unused)} of {len(classes)} classes are in no photo '
            f'({_first(unused)}); give --classes without them, or nothing is learned '
            'about them'
        )
    if names.dropped:
        shown = _first([f'{name} {n}x' for name, n in names.dropped.most_common()])
        notes.append(f'tags of {len(names.dropped)} other classes left out ({shown})')
    if reading.untagged:
        notes.append(
            f'{reading.untagged} entries of {reading.source} are not annotated yet and '
            'were left out'
        )
    if missing:
        notes.append(
            f'{len(missing)} entries left out, whose photo is not there '
            f'({_first(missing)})'
        )
    return notes


def _no_entry(without: Sequence[str], source: Path) -> str:
    return (
        f'{len(without)} photos have no entry in {source} ({_first(without)}); add '
        'them (with no class for a photo without objects), or leave these photos out '
        'of training by skip_unlabelled=True in the data set of the config'
    )


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _tidy(name: str) -> str:
    return ' '.join(unicodedata.normalize('NFC', name).split())
