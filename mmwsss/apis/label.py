"""A folder of photos and their tags to masks, with a manifest that runs go on from.

``OUT/manifest.jsonl`` holds one line per photo, in the order of the listing. A run
walks the folder and the manifest side by side, twice. First it labels the photos that
have no line, so that a run which was stopped goes on at once. Then it looks at those
that have one: a photo whose line still fits (size and time of the file, its tags) and
whose outputs exist is done, and nothing of it is opened. New lines go to a journal for
each walk, which are merged into the manifest at the end, or at the beginning of the
next run where one was stopped.
"""

import heapq
import io
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from mmengine.registry import init_default_scope
from PIL import Image

import mmwsss
from mmwsss.apis.inferencer import MAX_SIDE, Inference, WSSSInferencer, trained_classes
from mmwsss.apis.jobs import (
    decided_by_first_rank,
    device_of,
    rank_and_size,
    stream_jobs,
    wait_for_all,
)
from mmwsss.apis.label_rules import BackgroundRule
from mmwsss.apis.make_pseudo_labels import (
    LABEL_FOLDER,
    RELIABILITY_FOLDER,
    described_refiner,
    write_map,
)
from mmwsss.apis.outputs import MARKER, OutputFolder, file_hash, text_hash
from mmwsss.apis.train import load_config
from mmwsss.datasets.image_label_dataset import PHOTO_SUFFIXES
from mmwsss.datasets.image_labels import ImageLabels, load_image_labels
from mmwsss.datasets.transforms import read_photo
from mmwsss.errors import InputError
from mmwsss.files import find_checkpoint, read_json, whole_file, write_json

_T = TypeVar('_T')

MANIFEST = 'manifest.jsonl'
OVERLAY_FOLDER = 'Overlay'
LABELLED_LIST = 'labelled.txt'
CLASS_LIST = 'classes.txt'
WORST_LIST = 'look_first.txt'
THRESHOLD_FILE = 'threshold.json'
OVERLAY_SIDE_PX = 1024
# Chosen on so many photos, a threshold hardly moves with more.
THRESHOLD_PHOTOS = 200


@dataclass(frozen=True, kw_only=True)
class PhotoRecord:
    """A line of the manifest.

    Attributes:
        id: The photo's path below the folder, without suffix.
        photo: The same with suffix.
        state: ``'ok'``, ``'unreadable'``, ``'untagged'`` (there are tags, but none for
            this photo) or ``'gone'`` (labelled once, no longer in the folder).
        reason: Why it is unreadable.
        size: Height and width of photo and mask.
        tags: Names given, None without tags.
        classes: Names in the mask -> share of the photo's pixels.
        reliability: Mean over the decided pixels, None where there are none.
        object_reliability: Mean over the pixels of objects, None where there are none.
        undecided: Share of the pixels that are 255.
        missing: Tags without a pixel in the mask.
        unexpected: Classes without a tag that the network sees all the same; None
            where it cannot say.
        flagged: The mask contradicts the tags: something is missing or unexpected.
        bytes: Size of the photo's file.
        mtime_ns: Its time of change.
        sha256: Of its content, the first 16 digits.
        outputs: Kind of output -> bytes of its file.
    """

    id: str
    photo: str
    state: str
    reason: str | None = None
    size: tuple[int, int] | None = None
    tags: Sequence[str] | None = None
    classes: dict[str, float] | None = None
    reliability: float | None = None
    object_reliability: float | None = None
    undecided: float | None = None
    missing: Sequence[str] = ()
    unexpected: Sequence[str] | None = ()
    flagged: bool = False
    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ''
    outputs: dict[str, int] | None = None

    @classmethod
    def from_line(cls, line: str) -> 'PhotoRecord':
        """Read a line of the manifest; unknown names are left out."""
        content, known = json.loads(line), {field.name for field in fields(cls)}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in content.items()
                if name in known
            }
        )

    def line(self) -> str:
        """The line, with its end."""
        return json.dumps(asdict(self), ensure_ascii=False) + '\n'


@dataclass(frozen=True, kw_only=True)
class LabellingOptions:
    """What makes the masks; sent to every worker process, hence without the tags.

    Attributes:
        photos: Folder of photos, subfolders included; nothing is written into it.
        out: Receives everything.
        config: See ``WSSSInferencer``, as for the following.
        checkpoint: See there.
        cfg_options: See there.
        kind: See there.
        background: See there.
        choose_threshold: Choose the threshold of the CAMs without masks, on
            ``THRESHOLD_PHOTOS`` photos; kept for all later runs.
        refiners: See there.
        low: See there.
        high: See there.
        max_side: See there.
        device: See there.
        overlays: Write pictures of the masks over the photos.
    """

    photos: Path
    out: Path
    config: Path
    checkpoint: Path
    cfg_options: dict | None = None
    kind: str | None = None
    background: BackgroundRule | None = None
    choose_threshold: bool = False
    refiners: Sequence[dict] = ()
    low: float | None = None
    high: float | None = None
    max_side: int | None = MAX_SIDE
    device: str | None = None
    overlays: bool = True

    def inferencer(self, number: int = 0) -> WSSSInferencer:
        """The network of a worker process."""
        return WSSSInferencer(
            self.config,
            self.checkpoint,
            kind=self.kind,
            background=self.background,
            refiners=self.refiners,
            low=self.low,
            high=self.high,
            max_side=self.max_side,
            device=device_of(number, self.device),
            cfg_options=self.cfg_options,
        )

    def files(self, image_id: str) -> dict[str, Path]:
        """All that is written for a photo."""
        files = {
            'reliability': self.out / RELIABILITY_FOLDER / f'{image_id}.png',
            'mask': self.out / LABEL_FOLDER / f'{image_id}.png',
        }
        if self.overlays:
            files['overlay'] = self.out / OVERLAY_FOLDER / f'{image_id}.jpg'
        return files


class Labelling:
    """A folder of photos on its way to masks.

    Attributes:
        there: Photos that were done before, known once ``run`` or ``plan`` is through.
        background: The rule in use, known with the first record of ``run``; a chosen
            threshold's source says how sure it is.

    Args:
        options: What makes the masks.
        tags: What the photos show, by id; None puts no limit on the classes. A photo
            without an entry is left out.
    """

    def __init__(
        self, options: LabellingOptions, tags: ImageLabels | None = None
    ) -> None:
        self.options, self.tags, self.there = options, tags, 0
        self.background = options.background

    def run(self, *, jobs: int = 1, overwrite: bool = False) -> Iterator[PhotoRecord]:
        """Label the photos that are new or have changed.

        Memory does not grow with the number of photos but for their names and tags.
        Under torchrun the ranks share the photos; the first one hands out all records.

        Args:
            jobs: Processes.
            overwrite: Replace masks of other settings instead of refusing them.

        Yields:
            The new lines of the manifest: of new photos in order, then of those that
            have changed.

        Raises:
            InputError: Bad input; what is done stays done.
        """
        with ExitStack() as held:
            yield from self._run(held, jobs=jobs, overwrite=overwrite)

    def _run(
        self, held: ExitStack, *, jobs: int, overwrite: bool
    ) -> Iterator[PhotoRecord]:
        out = self.options.out
        classes, rule = decided_by_first_rank(
            lambda: self._open(held, overwrite=overwrite)
        )
        self.background, options = rule, replace(self.options, background=rule)
        rank, size = rank_and_size()
        new, changed = (_Journal(path) for path in _journal_files(out, rank))
        with new, changed:
            todo = (w for i, w in enumerate(self._todo()) if i % size == rank)
            for work in stream_jobs(partial(_Labeller, options), todo, jobs=jobs):
                (changed if work.had_line else new).add(work.record)
                if work.fresh:
                    yield work.record
                else:
                    self.there += 1
        wait_for_all()
        if rank == 0:
            for other in range(1, size):
                for path in _journal_files(out, other):
                    yield from _read_lines(path)
            _merge(out)
            _write_lists(out, classes)
        wait_for_all()

    def plan(self) -> int:
        """Number of photos that ``run`` would label; changes nothing."""
        self._check()
        return sum(work.record is None for work in self._todo())

    # ------------------------------------------------------------------ the beginning
    def _check(self) -> list[str]:
        """Refuse what cannot be right; returns the names of the classes."""
        options = self.options
        photos, out = options.photos.resolve(), options.out.resolve()
        if not photos.is_dir():
            raise InputError(f'the folder {options.photos} does not exist')
        if out == photos or photos in out.parents:
            raise InputError(
                f'{options.out} lies in the folder of the photos, which nothing is '
                'written into; give another --out'
            )
        config = load_config(str(options.config), options.cfg_options, None)
        init_default_scope(config.get('default_scope', 'mmseg'))
        classes = trained_classes(config, find_checkpoint(options.checkpoint))
        unknown = (
            [n for n in self.tags.classes if n not in classes] if self.tags else []
        )
        if unknown:
            raise InputError(
                f'the tags name the class {unknown[0]!r}, which {options.checkpoint} '
                f'was not trained for; it knows {", ".join(classes)}'
            )
        if next(listing(photos), None) is None:
            raise InputError(f'the folder {options.photos} holds no photo')
        return classes

    def _open(self, held: ExitStack, *, overwrite: bool) -> list:
        """The names of the classes and the rule of the background.

        Two processes would write over each other's lines of the manifest, so the folder
        is this one's alone as long as ``held`` is.
        """
        classes = self._check()
        if not overwrite:
            self._refuse_strangers()
        options, out = self.options, self.options.out
        journals = _all_journals(out)
        folder = OutputFolder(
            out,
            what='masks',
            settings=_settings(options, classes),
            inputs={MANIFEST: 'all photos'},
            files=lambda _: [out / MANIFEST, *journals, out / THRESHOLD_FILE],
            notes={'checkpoint': str(options.checkpoint)},
        )
        held.enter_context(folder.held())
        try:
            folder.open()
        except InputError:
            if not overwrite:
                raise
            self._remove_all()
            folder.open(overwrite=True)
        _merge(out)
        return [classes, self._background()]

    def _refuse_strangers(self) -> None:
        """Refuse a folder with files that no run has made, such as masks by hand."""
        out = self.options.out
        # The record is written before anything else.
        if not out.exists() or (out / MARKER).exists():
            return
        lists = (out / name for name in (CLASS_LIST, LABELLED_LIST, WORST_LIST))
        of_photos = (
            path
            for image_id, _ in listing(self.options.photos)
            for path in self.options.files(image_id).values()
        )
        for path in chain(lists, of_photos):
            if path.exists():
                raise InputError(
                    f'{path} is there, but no {MARKER} says that it was made here; '
                    'give another --out, or add --overwrite to replace it'
                )

    def _remove_all(self) -> None:
        """Remove the outputs of other settings, whatever there was of them."""
        _merge(self.options.out)
        everything = replace(self.options, overlays=True)
        for record in _read_lines(self.options.out / MANIFEST):
            for path in everything.files(record.id).values():
                path.unlink(missing_ok=True)

    def _background(self) -> BackgroundRule | None:
        options = self.options
        if not options.choose_threshold:
            return options.background
        path = options.out / THRESHOLD_FILE
        if not path.is_file():
            choice = options.inferencer().choose_threshold(*self._sample())
            write_json(path, {'said': choice.described, **asdict(choice)})
        content = read_json(path)
        try:
            return BackgroundRule('threshold', content['threshold'], content['said'])
        except (KeyError, TypeError):
            raise InputError(
                f'{path} holds no threshold; delete it, and the same command chooses '
                'one'
            ) from None

    def _sample(self) -> tuple[list[Path], list[list[str]]]:
        """Photos with an entry, drawn from all of them, and their tags."""
        if self.tags is None:
            raise InputError('a threshold is chosen on photos with tags; give them')
        kept: list[tuple[Path, list[str]]] = []
        generator = random.Random(0)
        for number, (image_id, file) in enumerate(self._with_entry()):
            # Each of the photos so far has been kept with the same probability.
            place = (
                number if number < THRESHOLD_PHOTOS else generator.randint(0, number)
            )
            if place < THRESHOLD_PHOTOS:
                names = [self.tags.classes[k] for k in self.tags.labels[image_id]]
                kept[place : place + 1] = [(self.options.photos / file, names)]
        generator.shuffle(kept)
        kept = [(path, names) for path, names in kept if _readable(path)]
        return [path for path, _ in kept], [names for _, names in kept]

    def _with_entry(self) -> Iterator[tuple[str, str]]:
        for image_id, file in listing(self.options.photos):
            if image_id in self.tags.labels:
                yield image_id, file

    # ----------------------------------------------------------------------- the walk
    def _todo(self) -> Iterator['_Work']:
        """What is not done; of other photos nothing is opened."""
        self.there = 0
        yield from self._without_line()
        yield from self._with_line()

    def _without_line(self) -> Iterator['_Work']:
        """New photos, and lines whose photo is no longer there, in order."""
        known = _read_ids(self.options.out / MANIFEST)
        last = next(known, None)
        for image_id, file in listing(self.options.photos):
            while last is not None and _order(last[0]) < _order(image_id):
                yield from _if_gone(last[1])
                last = next(known, None)
            if last is not None and last[0] == image_id:
                last = next(known, None)
            else:
                yield from self._of_photo(image_id, file, None)
        for _, line in (*([last] if last else []), *known):
            yield from _if_gone(line)

    def _with_line(self) -> Iterator['_Work']:
        """Photos that have changed since they were labelled, in order."""
        photos = listing(self.options.photos)
        image_id, file = next(photos, (None, None))
        for known in _read_lines(self.options.out / MANIFEST):
            while image_id is not None and _order(image_id) < _order(known.id):
                image_id, file = next(photos, (None, None))
            if image_id == known.id:
                for work in self._of_photo(image_id, file, known):
                    yield replace(work, had_line=True)

    def _of_photo(
        self, image_id: str, file: str, known: PhotoRecord | None
    ) -> Iterator['_Work']:
        tags, status = None, (self.options.photos / file).stat()
        if self.tags is not None:
            indices = self.tags.labels.get(image_id)
            if indices is None:
                if known is None or known.state != 'untagged':
                    yield _Work(PhotoRecord(id=image_id, photo=file, state='untagged'))
                else:
                    self.there += 1
                return
            tags = tuple(self.tags.classes[k] for k in indices)
        same = (
            known is not None
            and known.photo == file
            and known.tags == tags
            and (known.bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns)
        )
        if same and (
            known.state == 'unreadable'
            or (known.state == 'ok' and _written(self.options, known))
        ):
            self.there += 1
            return
        yield _Work(
            photo=PhotoRecord(
                id=image_id,
                photo=file,
                state='ok',
                tags=tags,
                bytes=status.st_size,
                mtime_ns=status.st_mtime_ns,
            ),
            known=known,
        )


@dataclass
class _Work:
    """A photo on its way through a process.

    Attributes:
        record: Its line; None if the photo is to be labelled.
        photo: What is known of that photo beforehand.
        known: Its line in the manifest.
        had_line: It had one.
        fresh: The line tells something new, not a new time of an old file alone.
    """

    record: PhotoRecord | None = None
    photo: PhotoRecord | None = None
    known: PhotoRecord | None = None
    had_line: bool = False
    fresh: bool = True


def _if_gone(line: str) -> Iterator[_Work]:
    record = PhotoRecord.from_line(line)
    # Its files stay: a folder that is not mounted must not cost what was made of it.
    if record.state != 'gone':
        yield _Work(replace(record, state='gone'))


def tags_from(source: Path, photos: Path) -> ImageLabels:
    """What the photos of a folder show, from image labels or any format of tags.

    Raises:
        InputError: Anything malformed, see ``mmwsss.apis.tags.read_tags``.
    """
    from mmwsss.apis.tags import read_tags

    if source.name.endswith('.json.gz') or _holds_image_labels(source):
        return load_image_labels(source)
    tags = read_tags(source, photos=photos)
    index = {name: k for k, name in enumerate(tags.classes)}
    return ImageLabels(
        tags.classes,
        {i: tuple(sorted(index[n] for n in names)) for i, names in tags.labels.items()},
    )


def _holds_image_labels(source: Path) -> bool:
    if source.suffix != '.json' or not source.is_file():
        return False
    content = read_json(source)
    return isinstance(content, dict) and {'classes', 'labels'} <= content.keys()


def listing(folder: Path) -> Iterator[tuple[str, str]]:
    """(id, file) of the photos below a folder, subfolder by subfolder, in order.

    Only the names of one folder and those above it are held at a time.

    Raises:
        InputError: Two photos have the same id.
    """
    yield from _listing(Path(folder), '')


def _listing(folder: Path, above: str) -> Iterator[tuple[str, str]]:
    entries: list[tuple[str, int, str]] = []
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            continue
        stem, suffix = os.path.splitext(entry.name)
        # A photo comes before a folder of the same name: 'a' before 'a/b'.
        if entry.is_dir():
            entries.append((entry.name, 1, entry.name))
        elif suffix.lower() in PHOTO_SUFFIXES:
            entries.append((stem, 0, entry.name))
    entries.sort()
    before = None
    for name, is_folder, file in entries:
        if is_folder:
            yield from _listing(folder / file, f'{above}{file}/')
            continue
        if name == before:
            raise InputError(
                f'two photos in {folder} have the same id, {above}{name}; rename one '
                'of them'
            )
        before = name
        yield f'{above}{name}', f'{above}{file}'


def _order(image_id: str) -> tuple[str, ...]:
    """The place of a photo in the listing."""
    return tuple(image_id.split('/'))


# ----------------------------------------------------------------- manifest and journal
def _journal_files(out: Path, rank: int) -> list[Path]:
    """Of the new photos and of those that have changed, each in order."""
    return [out / f'.journal.{rank}.{what}.jsonl' for what in ('new', 'changed')]


def _all_journals(out: Path) -> list[Path]:
    return sorted(out.glob('.journal.*.jsonl'))


class _Journal:
    """Lines that are on disk once they are added; the file is made with the first."""

    def __init__(self, path: Path) -> None:
        self.path, self._stream = path, None

    def add(self, record: PhotoRecord) -> None:
        try:
            if self._stream is None:
                self._stream = self.path.open('w', encoding='utf-8')
            self._stream.write(record.line())
            self._stream.flush()
        except OSError as error:
            raise InputError(
                f'{self.path} cannot be written ({error}); make room there and run '
                'the same command again to go on'
            ) from None

    def __enter__(self) -> '_Journal':
        return self

    def __exit__(self, *_) -> None:
        if self._stream is not None:
            self._stream.close()


def read_manifest(out: Path) -> Iterator[PhotoRecord]:
    """The lines of a folder's manifest, one after the other.

    Raises:
        InputError: There is none, or a line is damaged.
    """
    path = Path(out) / MANIFEST
    if not path.is_file():
        raise InputError(f'{path} does not exist; label photos first: mmwsss label')
    yield from _read_lines(path)


def _read_lines(path: Path) -> Iterator[PhotoRecord]:
    """Records of a file that may not be there, but for a last line cut off."""
    return _read(path, PhotoRecord.from_line)


def _read_ids(path: Path) -> Iterator[tuple[str, str]]:
    """The same as id and line, which is many times faster."""
    return _read(path, lambda line: (_id_of(line), line))


def _read(path: Path, parse: Callable[[str], _T]) -> Iterator[_T]:
    if not path.is_file():
        return
    with path.open(encoding='utf-8') as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith('\n'):
                return
            try:
                yield parse(line)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f'line {number} of {path} is damaged ({error}); delete the file '
                    'to make all masks again'
                ) from None


def _id_of(line: str) -> str:
    if line.startswith(_BEFORE_ID):
        found = _DECODER.raw_decode(line, len(_BEFORE_ID))[0]
    else:
        found = json.loads(line)['id']
    if not isinstance(found, str):
        raise ValueError(f'the id is {found!r}')
    return found


_BEFORE_ID, _DECODER = '{"id": ', json.JSONDecoder()


def _merge(out: Path) -> None:
    """Journals into the manifest; stopped at any moment it can be done again."""
    journals = _all_journals(out)
    if not journals:
        return
    # For equal ids the later file comes later: the manifest first.
    sources = [_read_ids(path) for path in (out / MANIFEST, *journals)]
    merged = heapq.merge(*sources, key=lambda found: _order(found[0]))
    with whole_file(out / MANIFEST) as stream:
        for _, same in groupby(merged, key=lambda found: found[0]):
            *_, (_, latest) = same
            stream.write(latest.encode())
    for path in journals:
        path.unlink()


def _write_lists(out: Path, classes: Sequence[str]) -> None:
    """The ids that have a mask, the same worst first, and the names of the classes."""
    ranked = []
    with whole_file(out / LABELLED_LIST) as stream:
        for record in _read_lines(out / MANIFEST):
            if record.state == 'ok':
                stream.write(f'{record.id}\n'.encode())
                sure = record.object_reliability
                # A mask without objects that contradicts nothing is the least work.
                ranked.append(
                    (not record.flagged, 1.0 if sure is None else sure, record.id)
                )
    with whole_file(out / WORST_LIST) as stream:
        stream.write(
            ''.join(f'{image_id}\n' for *_, image_id in sorted(ranked)).encode()
        )
    with whole_file(out / CLASS_LIST) as stream:
        stream.write(''.join(f'{name}\n' for name in classes).encode())


def _readable(path: Path) -> bool:
    try:
        read_photo(str(path))
    except InputError:
        return False
    return True


def _settings(options: LabellingOptions, classes: Sequence[str]) -> dict:
    config = load_config(str(options.config), options.cfg_options, None)
    return {
        'checkpoint': file_hash(find_checkpoint(options.checkpoint)),
        'network (model in the config)': text_hash(config.model.to_dict()),
        'kind': options.kind,
        'background': _described_background(options),
        'chain of refiners': ' '.join(map(described_refiner, options.refiners)),
        'low and high': [options.low, options.high],
        'longest side': options.max_side,
        'class list': list(classes),
        'version of mmwsss': mmwsss.__version__,
    }


def _described_background(options: LabellingOptions) -> str | None:
    if options.choose_threshold:
        return 'auto'
    return None if options.background is None else str(options.background)


# ----------------------------------------------------------------------- in a process
class _Labeller:
    """Labels photos; loads the network with the first one that needs it."""

    def __init__(self, options: LabellingOptions, number: int) -> None:
        self.options, self.number = options, number
        self._inferencer: WSSSInferencer | None = None

    def __call__(self, work: _Work) -> None:
        if work.record is not None:
            return
        photo = work.photo
        path = self.options.photos / photo.photo
        try:
            photo = replace(photo, sha256=file_hash(path))
            if self._unchanged(photo, work.known):
                work.record, work.fresh = _renewed(work.known, photo), False
                return
            pixels = np.ascontiguousarray(read_photo(str(path))[..., ::-1])
        except (OSError, InputError) as error:
            # A mask of what the file was before must not stand for it.
            for written in self.options.files(photo.id).values():
                written.unlink(missing_ok=True)
            work.record = replace(photo, state='unreadable', reason=str(error))
            return
        if self._inferencer is None:
            self._inferencer = self.options.inferencer(self.number)
        found = self._inferencer.infer(pixels, image_id=photo.id, tags=photo.tags)
        self._write(found)
        files = self.options.files(photo.id)
        photo = replace(photo, outputs={k: f.stat().st_size for k, f in files.items()})
        work.record = _described(photo, found)

    def _unchanged(self, photo: PhotoRecord, known: PhotoRecord | None) -> bool:
        return (
            known is not None
            and known.classes is not None
            and (known.photo, known.sha256) == (photo.photo, photo.sha256)
            and known.tags == photo.tags
            and _written(self.options, known)
        )

    def _write(self, found: Inference) -> None:
        files = self.options.files(found.id)
        sure = (found.reliability * 255).round().astype(np.uint8)
        write_map(files['reliability'], sure)
        if 'overlay' in files:
            buffer = io.BytesIO()
            picture = Image.fromarray(found.overlay(max_side=OVERLAY_SIDE_PX))
            picture.save(buffer, 'JPEG', quality=88)
            with whole_file(files['overlay']) as stream:
                stream.write(buffer.getvalue())
        # Last, so that the mask, which a reader looks for, is never without the rest.
        write_map(files['mask'], found.mask, palette=True)


def _written(options: LabellingOptions, known: PhotoRecord) -> bool:
    """Whether the outputs are there, as long as they were written."""
    for kind, path in options.files(known.id).items():
        try:
            size = path.stat().st_size
        except OSError:
            return False
        # Not known of lines of earlier versions, nor of a kind that was left out.
        if size != (known.outputs or {}).get(kind, size):
            return False
    return True


def _renewed(known: PhotoRecord, photo: PhotoRecord) -> PhotoRecord:
    return replace(known, state='ok', bytes=photo.bytes, mtime_ns=photo.mtime_ns)


def _described(photo: PhotoRecord, found: Inference) -> PhotoRecord:
    counts = np.bincount(found.mask.ravel(), minlength=256) / found.mask.size
    decided, objects = found.mask != 255, (found.mask != 255) & (found.mask != 0)
    return replace(
        photo,
        size=found.mask.shape,
        classes={n: round(float(counts[k]), 5) for k, n in found.numbered_classes},
        reliability=_mean(found.reliability[decided]),
        object_reliability=_mean(found.reliability[objects]),
        undecided=round(float(counts[255]), 5),
        missing=found.missing,
        unexpected=found.unexpected,
        flagged=bool(found.missing or found.unexpected),
    )


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean(dtype=np.float64)), 5) if values.size else None
