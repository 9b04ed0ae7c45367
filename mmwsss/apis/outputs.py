"""A folder with one output per photo, and the record of what they were made from.

``made_from.json`` holds the settings that all files share and, photo by photo, what
only its own files depend on. Other settings are refused in one sentence; where only a
photo's own input has changed, its files are removed and made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from mmwsss.apis.cli import Counts
from mmwsss.apis.jobs import (
    decided_by_first_rank,
    joined,
    my_share,
    rank_and_size,
    run_jobs,
    wait_for_all,
)
from mmwsss.errors import InputError, UnreadablePhoto
from mmwsss.files import (
    TEMPORARY_SUFFIX,
    is_whole,
    lock_owner,
    open_lock,
    read_json,
    remove_abandoned,
    take_lock,
    write_json,
    write_text,
)

MARKER = 'made_from.json'
# Ids of the photos that nothing was made for, one a line, as lists of photos are.
UNREADABLE = 'unreadable.txt'
# Held by all that write into the folder, alone by those that change what it holds.
USE_LOCK = '.in_use.lock'
# Held for as long as the record is read and written.
_RECORD_LOCK = '.made_from.lock'
# Workers of a killed process end within a second.
_PATIENCE_S = 5
# Photos that a sentence names.
_NAMED = 10


class OutputFolder:
    """Outputs of one tool in one folder.

    Args:
        root: The folder.
        what: Plural noun for messages, for example ``'CAMs'``.
        settings: Name -> value that all outputs depend on, ready for JSON; the names
            are read by users.
        inputs: Photo id -> text that only its outputs depend on.
        files: Photo id -> its output files.
        notes: Name of a setting -> how to show it in a message, for values that say
            nothing, such as hashes.
    """

    def __init__(
        self,
        root: Path,
        *,
        what: str,
        settings: Mapping[str, object],
        inputs: Mapping[str, str],
        files: Callable[[str], Sequence[Path]],
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.what = what
        # As it will be read back.
        self.settings = json.loads(json.dumps(dict(settings)))
        self.inputs = dict(inputs)
        self.files = files
        self.notes = dict(notes or {})

    @property
    def marker(self) -> Path:
        """The record's file."""
        return self.root / MARKER

    @contextmanager
    def opened(self, *, overwrite: bool = False) -> Iterator[list[str]]:
        """The folder while outputs are made in it, see ``open``.

        Several processes may fill a folder at once, as long as all want the same. What
        others work on is never removed and its settings are not changed.

        Raises:
            InputError: As ``open``, or another process works on something else here.
        """
        with open_lock(self.root / USE_LOCK) as use:
            with open_lock(self.root / _RECORD_LOCK) as record:
                take_lock(record, patience=None)
                if not take_lock(use) and self._wants_something_else(overwrite):
                    self._wait_for_others(use)
                missing = self.open(overwrite=overwrite)
                take_lock(use, shared=True, patience=None)
            yield missing

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for a tool that shares it with nobody.

        Raises:
            InputError: Another process works on it.
        """
        with open_lock(self.root / USE_LOCK) as use:
            self._wait_for_others(use)
            yield

    def _wants_something_else(self, overwrite: bool) -> bool:
        """Whether what others are just making here would not be right."""
        if self._existing(self._compare(overwrite=overwrite)[1]):
            return True
        record = self._read() or {'settings': self.settings, 'photos': {}}
        known = record['photos']
        return bool(self._changed(record['settings'])) or any(
            known[i] != text for i, text in self.inputs.items() if i in known
        )

    def _wait_for_others(self, use: int) -> None:
        if not take_lock(use, patience=_PATIENCE_S):
            raise InputError(
                f'process {lock_owner(self.root / USE_LOCK)} makes {self.what} in '
                f'{self.root}; wait for its end, or give another --out'
            )

    def open(self, *, overwrite: bool = False) -> list[str]:
        """Check the record, remove what is out of date, write the record.

        What is damaged counts as missing, and is told in a line.

        Args:
            overwrite: Remove all outputs of other settings instead of refusing them.

        Returns:
            Ids of the photos whose outputs are missing, in the order of ``inputs``.

        Raises:
            InputError: The folder holds outputs of other settings, or files that this
                tool did not make.
        """
        known, outdated = self._compare(overwrite=overwrite)
        # Removed before the record forgets why: a stop in between loses nothing.
        self._remove(outdated)
        remove_abandoned(self.root.rglob(f'.*{TEMPORARY_SUFFIX}'))
        write_json(
            self.marker,
            {
                'what': self.what,
                'settings': self.settings,
                'notes': self.notes,
                'photos': {**known, **self.inputs},
            },
        )
        missing = [i for i in self.inputs if not self._done(i)]
        torn = self._existing(missing, torn=True)
        if torn is not None:
            print(f'{torn} is damaged; it and its like are made again', flush=True)
        return missing

    def plan(self, *, overwrite: bool = False) -> list[str]:
        """What ``open`` would return; raises as it does and changes nothing."""
        outdated = set(self._compare(overwrite=overwrite)[1])
        return [i for i in self.inputs if i in outdated or not self._done(i)]

    def _compare(self, *, overwrite: bool) -> tuple[dict, list[str]]:
        """What of the record holds, and the photos whose files must go."""
        record = self._read()
        if record is None:
            self._refuse_strangers(overwrite)
            return {}, list(self.inputs)
        known = record['photos']
        changed = self._changed(record['settings'])
        if changed:
            # Settings that left nothing behind, a mistyped one say, bind nobody.
            if not overwrite and self._existing(known):
                raise InputError(self._refusal(record, changed))
            return {}, [*known, *self.inputs]
        return known, [i for i in self.inputs if known.get(i) != self.inputs[i]]

    def _read(self) -> dict | None:
        if not self.marker.exists():
            return None
        record = read_json(self.marker)
        if not isinstance(record, dict) or not {'settings', 'photos'} <= record.keys():
            raise InputError(
                f'{self.marker} is not a record of {self.what}; give another --out'
            )
        return record

    def _refuse_strangers(self, overwrite: bool) -> None:
        found = self._existing(self.inputs)
        if found and not overwrite:
            raise InputError(
                f'{found} is there, but no {MARKER} says what it was made from; '
                f'give another --out, or add --overwrite to make the {self.what} again'
            )

    def _changed(self, before: Mapping[str, object]) -> list[str]:
        names = [*self.settings, *(n for n in before if n not in self.settings)]
        return [n for n in names if before.get(n) != self.settings.get(n)]

    def _refusal(self, record: Mapping, changed: Sequence[str]) -> str:
        name = changed[0]
        before = _shown(record['settings'].get(name), record.get('notes', {}).get(name))
        now = _shown(self.settings.get(name), self.notes.get(name))
        more = f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''
        return (
            f'{self.root} holds {self.what} made with another {name}{more}: it was '
            f'{before} and is now {now}; give another --out, or add --overwrite to '
            'make all of them again'
        )

    def _existing(self, ids: Iterable[str], *, torn: bool = False) -> Path | None:
        """The first output that is there; or that is there and damaged."""
        for path in (path for image_id in ids for path in self.files(image_id)):
            if path.exists() and not (torn and is_whole(path)):
                return path
        return None

    def _done(self, image_id: str) -> bool:
        return all(is_whole(path) for path in self.files(image_id))

    def _remove(self, ids: Iterable[str]) -> None:
        for image_id in ids:
            for path in self.files(image_id):
                path.unlink(missing_ok=True)


def make_missing(
    find_folder: Callable[[], OutputFolder],
    build: Callable[[int], Callable],
    items: Mapping[str, object],
    *,
    what: str,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the outputs that a folder lacks, shared by all ranks and their processes.

    A photo that cannot be read is told in a line, counted as failed and left out, and
    its id is in ``unreadable.txt`` in the folder until its outputs are made.

    Args:
        find_folder: Makes the folder's description; called on the first rank alone,
            since hashing its inputs takes time.
        build: As for ``run_jobs``; the function makes one item's outputs.
        items: Photo id -> what the function is called on.
        what: Plural noun beside the progress bar.
        jobs: Processes of this rank.
        overwrite: Replace outputs of other settings.
        show: Show a progress bar.
        counts: Counts what was there and, as it is made, what is made.
        dry_run: Count only; nothing is written.
        max_unreadable: Number of photos that may be left out; with 0 the first one
            that cannot be read stops the run.

    Returns:
        Number of photos that something was made for, by all ranks together.

    Raises:
        InputError: Bad input, or more photos that cannot be read; what is done stays
            done.
    """
    if max_unreadable < 0:
        raise InputError(f'--max-unreadable must not be negative, got {max_unreadable}')
    counts = counts or Counts()
    names = {id(item): image_id for image_id, item in items.items()}
    left_out = _LeftOut(names, max_unreadable)
    roots: list[Path] = []
    with ExitStack() as held:

        def find() -> list[str]:
            folder = find_folder()
            roots.append(folder.root)
            if dry_run:
                return folder.plan(overwrite=overwrite)
            return held.enter_context(folder.opened(overwrite=overwrite))

        missing = decided_by_first_rank(find)
        counts.skipped = len(items) - len(missing)
        if not dry_run:
            quiet = not show or rank_and_size()[0] > 0
            run_jobs(
                build,
                [items[image_id] for image_id in my_share(missing)],
                jobs=jobs,
                progress=lambda done, total: tqdm(
                    _counted(done, counts),
                    total=total,
                    desc=what,
                    unit='photo',
                    disable=quiet or None,
                ),
                left_out=left_out if max_unreadable else None,
            )
            found = left_out.of_all_ranks()
            counts.failed = len(found)
            if roots:
                _write_unreadable(roots[0], found, items)
            wait_for_all()
    counts.ok = len(missing) - counts.failed
    return counts.ok


class _LeftOut:
    """Photos that could not be read.

    Args:
        names: Identity of an item -> photo id.
        limit: How many there may be, of all ranks together.
    """

    def __init__(self, names: Mapping[int, str], limit: int) -> None:
        self.names, self.limit = names, limit
        self.found: list[tuple[str, str]] = []

    def __call__(self, item: object, error: UnreadablePhoto) -> None:
        self.found.append((self.names[id(item)], str(error)))
        if len(self.found) > self.limit:
            # In the place of what the last one said.
            raise self._too_many(self.found) from None
        tqdm.write(f'left out: {error}')

    def of_all_ranks(self) -> list[str]:
        """Their ids, sorted; raises InputError if they are too many together."""
        found = sorted(joined(self.found))
        if len(found) > self.limit:
            raise self._too_many(found)
        return [image_id for image_id, _ in found]

    def _too_many(self, found: Sequence[tuple[str, str]]) -> InputError:
        shown = ', '.join(image_id for image_id, _ in found[:_NAMED])
        more = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
        return InputError(
            f'{len(found)} photos cannot be read, more than --max-unreadable '
            f'{self.limit}: {shown}{more} (the first: {_reason(found[0][1])}); replace '
            'them, or let more be left out, and run the same command again to go on'
        )


def _reason(sentence: str) -> str:
    return sentence.partition('; ')[0]


def _write_unreadable(root: Path, found: list[str], items: Iterable[str]) -> None:
    """Keep the list of a folder; there is none where all photos could be read."""
    path = root / UNREADABLE
    before = path.read_text('utf-8').splitlines() if path.is_file() else []
    # Those that this run, of a part of the photos perhaps, did not look at.
    listed = sorted({*found, *(i for i in before if i not in items)})
    if listed:
        write_text(path, ''.join(f'{image_id}\n' for image_id in listed))
    else:
        path.unlink(missing_ok=True)


def _counted(done: Iterable, counts: Counts) -> Iterator:
    for item in done:
        counts.ok += 1
        yield item


def _shown(value: object, note: str | None) -> str:
    text = note or ('nothing' if value is None else str(value))
    return text if len(text) <= 200 else f'{text[:197]}...'


def text_hash(content: object) -> str:
    """A short hash of anything that prints the same in every process."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """A short hash of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
