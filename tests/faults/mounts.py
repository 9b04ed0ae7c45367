"""Small and read-only disks, seen by one process and its children alone."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from faults.children import run

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _PRIVATE = 1, 32, 4096, (1 << 14) | (1 << 18)


class Refused(Exception):
    """This machine does not let us try."""


def with_own_mounts(work: Callable[[], object]) -> str:
    """What a function prints in a child that may mount; mounts go with the child."""

    def begin() -> None:
        _own_mounts()
        work()

    ended = run(begin)
    if ended.code == 77:
        raise Refused(ended.output.strip())
    assert ended.code == 0, ended.output
    return ended.output


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    try:
        try:
            _call('unshare', _NEW_MOUNTS)
        except PermissionError:
            _call('unshare', _NEW_MOUNTS | _NEW_USER)
            Path('/proc/self/setgroups').write_text('deny')
            Path('/proc/self/uid_map').write_text(f'0 {user} 1')
            Path('/proc/self/gid_map').write_text(f'0 {group} 1')
        _mount(None, '/', None, _PRIVATE)
    except OSError as error:
        print(f'no mounts of our own here ({error})')
        raise SystemExit(77) from None


def small_disk(folder: Path, size: int, *, there: bool = False) -> None:
    """A disk of so many bytes, or another size for the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount('none', folder, 'tmpfs', _REMOUNT if there else 0, f'size={size}')


def read_only(folder: Path, *, yes: bool = True) -> None:
    """Let nobody write below a folder, root included; or let them again."""
    if yes:
        _mount(folder, folder, None, _BIND)
        _mount(folder, folder, None, _REMOUNT | _BIND | _READ_ONLY)
    else:
        _call('umount2', os.fsencode(folder), 0)


def _mount(source, target, kind, flags: int, options: str = '') -> None:
    words = (source, target, kind)
    given = [None if word is None else os.fsencode(word) for word in words]
    _call('mount', *given, ctypes.c_ulong(flags), options.encode() or None)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
