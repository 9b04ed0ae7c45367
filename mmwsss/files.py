"""Files that are either whole or not there, and content hashes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mmwsss.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so no half file is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(text, encoding='utf-8')
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that stands under its name once it is whole, or not at all.

    Raises:
        InputError: it cannot be written, for example on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as stream:
            yield stream
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f'{path} cannot be written ({error}); make room there or give another '
            'folder, and run the same command again to go on'
        ) from None
    finally:
        # It cannot be there if its folder could not be made.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
            f'{path} holds no last_checkpoint; train first: tools/train.py'
        )
    raise InputError(f'the checkpoint {path} does not exist')


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()
