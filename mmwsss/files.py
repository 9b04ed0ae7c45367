"""Files that are either whole or not there, locks, and content hashes."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from mmwsss.errors import InputError, tool

TEMPORARY_SUFFIX = '.tmp'
# What a damaged zip file makes zipfile raise.
DAMAGED_ZIP = (
    *(EOFError, ValueError, KeyError, NotImplementedError, RuntimeError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
_PNG = b'\x89PNG\r\n\x1a\n'


def write_text(path: Path, text: str) -> None:
    """Write a text file that is the old one or the new one at any moment.

    It is on the disk afterwards and not only on its way there: records and summaries
    are written this way, and what they tell of must not be forgotten.

    Raises:
        InputError: It cannot be written, for example on a full disk.
    """
    path = Path(path)
    remove_abandoned(path.parent.glob(f'.{escape(path.name)}.*{TEMPORARY_SUFFIX}'))
    with whole_file(path, synced=True) as stream:
        stream.write(text.encode('utf-8'))


@contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that stands under its name once it is whole, or not at all.

    Args:
        path: The file; its folder is made.
        synced: Wait until it is on the disk, so that a power cut cannot undo it. Not
            for one of many outputs, which are looked at before they count as made.

    Raises:
        InputError: It cannot be written, for example on a full disk.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_temporary(path) as stream:
            temporary = Path(stream.name)
            yield stream
            stream.flush()
            if synced:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise InputError(
            f'{path} cannot be written ({error}); make room there or give another '
            'folder, and run the same command again to go on'
        ) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_temporary(path: Path) -> BinaryIO:
    """An empty file, locked as long as its process lives."""
    while True:
        # Processes of other machines may have the same number.
        name = f'.{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}'
        stream = path.with_name(name).open('xb')
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        # Somebody may have taken it for an abandoned one just before.
        if os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()


def remove_abandoned(temporaries: Iterable[Path]) -> None:
    """Remove what processes that were killed had begun to write.

    Args:
        temporaries: Files of ``whole_file``; those of living processes stay.
    """
    for path in temporaries:
        # It is gone, or locked by the process that writes it.
        with suppress(OSError), path.open('r+b') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


# ---------------------------------------------------------------------- whole or torn
def is_whole(path: Path) -> bool:
    """Whether an output is there as it was written, by its format's own check sums.

    Looked at are ``.png`` and ``.npz``; of others it is known that they are there and
    not empty.
    """
    if path.suffix == '.npz':
        return zip_is_whole(path)
    try:
        if path.suffix == '.png':
            return png_damage(path.read_bytes()) is None
        return path.stat().st_size > 0
    except OSError:
        return False


def zip_is_whole(path: Path) -> bool:
    """Whether a zip file's content fits its check sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (*DAMAGED_ZIP, OSError):
        return False


def png_damage(content: bytes) -> str | None:
    """What is wrong with a PNG, None if its check sums fit; others are not PNGs.

    Decoders show damaged pixels without a word: the check sums of pixels are what they
    leave out.
    """
    if not content.startswith(_PNG):
        return 'it is no PNG'
    place = len(_PNG)
    while len(content) >= place + 12:
        (length,) = struct.unpack_from('>I', content, place)
        end = place + 8 + length
        if len(content) < end + 4:
            break
        (expected,) = struct.unpack_from('>I', content, end)
        if zlib.crc32(content[place + 4 : end]) != expected:
            return 'its content and its check sums differ'
        if content[place + 4 : place + 8] == b'IEND':
            return None
        place = end + 4
    return 'it is cut off'


# ------------------------------------------------------------------------------ locks
@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """Open a lock file; it is free again when this process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f'{path.parent} cannot be written to ({error.strerror}); give another '
            'folder'
        ) from None
    try:
        yield handle
    finally:
        os.close(handle)


def take_lock(
    handle: int, *, shared: bool = False, patience: float | None = 0.0
) -> bool:
    """Take an open lock file, alone or together with others that share it.

    Args:
        handle: Of ``open_lock``; may hold it already the other way.
        shared: Others may share it.
        patience: Seconds to wait for others, None for ever.

    Returns:
        Whether it is held. True as well on file systems without locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if patience is not None and time.monotonic() - begin >= patience:
                return False
            time.sleep(0.1)
            continue
        except OSError as error:
            return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
        os.truncate(handle, 0)
        os.pwrite(handle, f'{os.getpid()}\n'.encode(), 0)
        return True


def lock_owner(path: Path) -> str:
    """Number of the process that took a lock last."""
    return path.read_text().strip() or 'unknown'


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, readable by eye."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + '\n')


def read_json(path: Path) -> object:
    """Read JSON; a missing or broken file raises InputError."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise InputError(f'{path} does not exist') from None
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read as JSON: {error}') from None


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents; folders are walked, missing ones noted."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        inside = path.rglob('*') if path.is_dir() else [path]
        files = sorted(p for p in inside if '__pycache__' not in p.parts)
        for file in files:
            if file.is_dir():
                continue
            digest.update(f'{file.name}\0'.encode())
            digest.update(file_digest(file) if file.is_file() else b'missing')
    return digest.hexdigest()


def find_checkpoint(path: str | Path) -> Path:
    """Resolve a checkpoint, or the last checkpoint of a work directory."""
    path = Path(path)
    if path.is_file():
        return path
    pointer = path / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        # A moved work directory still holds the file under its own name.
        for candidate in (named, path / named.name):
            if candidate.is_file():
                return candidate
        raise InputError(f'{pointer} names {named}, which does not exist')
    if path.is_dir():
        raise InputError(
            f'{path} holds no last_checkpoint; train first: {tool("train")}'
        )
    raise InputError(f'the checkpoint {path} does not exist')


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()
