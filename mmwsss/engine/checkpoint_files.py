"""Files of a training that a crash or a full disk leaves whole or not there at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmwsss.checkpoints import DIGEST_SUFFIX, digest_line, digest_path
from mmwsss.errors import InputError
from mmwsss.files import file_digest

# Of the files that are being written; a killed process leaves them behind.
TEMPORARY_PREFIX = '.saving-'
BACKEND = 'mmwsss.whole'


@register_backend(BACKEND, force=True)
class WholeFileBackend(LocalBackend):
    """MMEngine's files on disk, each with a digest and never half written."""

    def __init__(self) -> None:
        super().__init__()
        self._removed: dict[Path, int] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file and the digest beside it."""
        path = Path(filepath)
        digest = digest_path(path)
        line = digest_line(path.name, hashlib.sha256(obj).hexdigest())
        with _written(path, obj) as file, _written(digest, line.encode()) as beside:
            # The file that goes out must not be judged by the digest of another one;
            # between these steps there is one without a digest.
            digest.unlink(missing_ok=True)
            os.replace(file, path)
            os.replace(beside, digest)
            _sync_folder(path.parent)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file and its digest, inside ``removing_last`` at its end."""
        path = Path(filepath)
        if self._removed is not None:
            self._removed[path] = path.stat().st_ino
            return
        # In this order: what is left after the first step is still found and removed.
        digest_path(path).unlink(missing_ok=True)
        path.unlink()

    @property
    def to_be_removed(self) -> list[str]:
        """What goes at the end of ``removing_last``."""
        return list(map(str, self._removed or ()))

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Remove nothing before what replaces it is written."""
        self._removed = {}
        try:
            yield
        except BaseException:
            self._removed = None
            raise
        removed, self._removed = self._removed, None
        for path, inode in removed.items():
            # Written anew under the old name, it is another file.
            if path.exists() and path.stat().st_ino == inode:
                self.remove(path)


def write_pointer(path: Path, named: str) -> None:
    """Write a short text that is the old one or the new one at any moment."""
    with _written(path, named.encode()) as temporary:
        os.replace(temporary, path)
        _sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder.

    A digest whose file was renamed just before is put in its place.
    """
    for path in folder.glob(f'{TEMPORARY_PREFIX}*'):
        digest = folder / path.name.removeprefix(TEMPORARY_PREFIX)
        file = digest.with_name(digest.name.removesuffix(DIGEST_SUFFIX))
        if file != digest and file.is_file() and not digest.exists():
            words = path.read_bytes().split()
            if words and words[0] == file_digest(file).hex().encode():
                os.replace(path, digest)
        path.unlink(missing_ok=True)


@contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """A temporary file with the content, on the disk and not only on its way there."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    except OSError as error:
        raise InputError(
            f'{path} cannot be written ({error}); what was saved before is whole: make '
            'room there and run the same command with --resume to go on'
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring new names to the disk; some file systems cannot and need not."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
