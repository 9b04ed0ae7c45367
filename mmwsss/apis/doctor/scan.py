"""Opens every photo and mask once, in several processes, and keeps little of them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
from PIL import Image

from mmwsss.apis.jobs import Progress, run_jobs
from mmwsss.datasets.transforms import DAMAGED, read_photo
from mmwsss.errors import InputError

THUMB = 16  # side of the grey thumbnail
_GRID = 8  # the hash has 2 * 8 * 8 bits
HASH_BYTES = 2 * _GRID * _GRID // 8
_DIGEST_BYTES = 16
_EXIF_ORIENTATION = 0x0112
# Grey levels that a photo's thumbnail varies by; under it there is nothing to see.
_FLAT_STD = 1.0
_SHARE = 32  # photos that a process takes at once
_INDEX_MODES = ('1', 'L', 'P')


@dataclass(frozen=True)
class MaskFacts:
    """What a mask is.

    Attributes:
        kind: 'index', 'colour' (several channels), 'deep' (over 8 bits), 'unreadable'
            or 'missing'.
        problem: A sentence for 'unreadable'.
        size: (height, width).
        values: Those in it, ascending.
        counts: Pixels of each.
    """

    kind: str
    problem: str = ''
    size: tuple[int, int] = (0, 0)
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass
class PhotoFacts:
    """What a photo is; all but ``problem`` is unset for one that cannot be read."""

    problem: str = ''
    mode: str = ''
    orientation: int = 1
    size: tuple[int, int] = (0, 0)
    digest: bytes = b''
    bits: bytes = b''
    thumb: np.ndarray | None = None
    mask: MaskFacts | None = None


@dataclass
class Scan:
    """Facts about N photos, in arrays where there is one for each.

    Attributes:
        paths: Files.
        readable: (N,) bool.
        sizes: (N, 2) height and width, upright.
        orientations: (N,) EXIF orientation, 1 without.
        modes: (N,) Pillow's modes.
        digests: (N, 16) of the pixels.
        hashes: (N, 16) bytes, 128 bits that similar photos share.
        thumbs: (N, 256) grey thumbnails.
        flat: (N,) bool, photos of one colour.
        problems: Index -> sentence.
        masks: Index -> facts.
    """

    paths: Sequence[str]
    readable: np.ndarray = field(init=False)
    sizes: np.ndarray = field(init=False)
    orientations: np.ndarray = field(init=False)
    modes: list[str] = field(init=False)
    digests: np.ndarray = field(init=False)
    hashes: np.ndarray = field(init=False)
    thumbs: np.ndarray = field(init=False)
    flat: np.ndarray = field(init=False)
    problems: dict[int, str] = field(default_factory=dict)
    masks: dict[int, MaskFacts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = len(self.paths)
        self.readable = np.zeros(number, bool)
        self.sizes = np.zeros((number, 2), np.int32)
        self.orientations = np.ones(number, np.uint8)
        self.modes = [''] * number
        self.digests = np.zeros((number, _DIGEST_BYTES), np.uint8)
        self.hashes = np.zeros((number, HASH_BYTES), np.uint8)
        self.thumbs = np.zeros((number, THUMB * THUMB), np.uint8)
        self.flat = np.zeros(number, bool)

    def put(self, index: int, facts: PhotoFacts) -> None:
        """Keep what was found out about a photo."""
        if facts.mask is not None:
            self.masks[index] = facts.mask
        if facts.problem:
            self.problems[index] = facts.problem
            return
        self.readable[index] = True
        self.sizes[index] = facts.size
        self.orientations[index] = facts.orientation
        self.modes[index] = facts.mode
        self.digests[index] = np.frombuffer(facts.digest, np.uint8)
        self.hashes[index] = np.frombuffer(facts.bits, np.uint8)
        self.thumbs[index] = facts.thumb
        self.flat[index] = facts.thumb.std() < _FLAT_STD


@dataclass
class _Share:
    items: list[tuple[int, str, str | None]]
    found: list[PhotoFacts] | None = None


def scan_photos(
    photos: Sequence[tuple[str, str | None]],
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
) -> Scan:
    """Look at photos and their masks.

    Args:
        photos: (photo, mask or None).
        jobs: Processes.
        progress: Wraps the stream of finished photos.
    """
    scan = Scan([photo for photo, _ in photos])
    items = [(i, photo, mask) for i, (photo, mask) in enumerate(photos)]
    shares = [_Share(items[i : i + _SHARE]) for i in range(0, len(items), _SHARE)]

    def kept(done: Iterable[_Share]) -> Iterable[int]:
        for share in done:
            for (index, _, _), facts in zip(share.items, share.found, strict=True):
                scan.put(index, facts)
                yield index
            share.found = None

    run_jobs(
        _new_worker,
        shares,
        jobs=jobs,
        progress=lambda done, _: progress(kept(done), len(items)),
    )
    return scan


def _new_worker(number: int) -> partial:
    # As many processes as cores are busy already.
    cv2.setNumThreads(1)
    return partial(_look_at)


def _look_at(share: _Share) -> None:
    share.found = []
    for _, photo, mask in share.items:
        facts = look_at_photo(photo)
        facts.mask = None if mask is None else look_at_mask(mask)
        share.found.append(facts)


def look_at_photo(path: str) -> PhotoFacts:
    """Open a photo to its last pixel."""
    try:
        mode, orientation = _header(path)
        image = read_photo(path)
    except Exception as error:
        # Whatever a decoder raises, the other photos shall be looked at too.
        reason = str(error).partition('; ')[0].removeprefix(f'the photo {path} ')
        return PhotoFacts(problem=reason or type(error).__name__)
    digest = hashlib.blake2b(image.data, digest_size=_DIGEST_BYTES)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return PhotoFacts(
        mode=mode,
        orientation=orientation,
        size=image.shape[:2],
        digest=digest.digest(),
        bits=perceptual_hash(grey),
        thumb=cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).ravel(),
    )


def perceptual_hash(grey: np.ndarray) -> bytes:
    """128 bits of a grey photo (H, W) uint8: is it brighter to the right, further down.

    The difference hash on 9 x 8 and 8 x 9 cells. Bits are dealt out to bytes so that
    each byte has some of the whole photo.
    """
    wide = cv2.resize(grey, (_GRID + 1, _GRID), interpolation=cv2.INTER_AREA)
    high = cv2.resize(grey, (_GRID, _GRID + 1), interpolation=cv2.INTER_AREA)
    right, down = wide[:, 1:] > wide[:, :-1], high[1:] > high[:-1]
    bits = np.concatenate([right.ravel(), down.ravel()])
    return np.packbits(bits.reshape(-1, HASH_BYTES).T).tobytes()


def _header(path: str) -> tuple[str, int]:
    with Image.open(path) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return image.mode, orientation if orientation in range(1, 9) else 1


def look_at_mask(path: str) -> MaskFacts:
    """Open a mask and count its values."""
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            if image.mode not in _INDEX_MODES:
                kind = 'colour' if len(image.getbands()) > 1 else 'deep'
                image.load()
                return MaskFacts(kind, size=size)
            values = np.asarray(image).astype(np.uint8)
    except FileNotFoundError:
        return MaskFacts('missing')
    except (InputError, *DAMAGED) as error:
        return MaskFacts('unreadable', problem=str(error))
    counts = np.bincount(values.ravel(), minlength=256)
    there = np.flatnonzero(counts)
    return MaskFacts(
        'index',
        size=size,
        values=tuple(there.tolist()),
        counts=tuple(counts[there].tolist()),
    )
