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
    my_share,
    rank_and_size,
    run_jobs,
    wait_for_all,
)
from mmwsss.errors import InputError
from mmwsss.files import (
    TEMPORARY_SUFFIX,
    is_whole,
    lock_owner,
    open_lock,
    read_json,
    remove_abandoned,
    take_lock,
    write_json,
)

MARKER = 'made_from.json'
# Held by all that write into the folder, alone by those that change what it holds.
USE_LOCK = '.in_use.lock'
# Held for as long as the record is read and written.
_RECORD_LOCK = '.made_from.lock'
# Workers of a killed process end within a second.
_PATIENCE_S = 5


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
) -> int:
    """Make the outputs that a folder lacks, shared by all ranks and their processes.

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

    Returns:
        Number of photos that something was made for, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    counts = counts or Counts()
    with ExitStack() as held:

        def find() -> list[str]:
            folder = find_folder()
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
            )
            wait_for_all()
    counts.ok = len(missing)
    return len(missing)


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
