"""Processes that are killed: forked from a warm one, at a moment or inside a save.

A child of a process that has imported torch and MMSegmentation begins its work in
milliseconds. It counts its steps inside saves (opening, writing, syncing, renaming and
removing a file of state) in memory that its parent sees, and can be told to kill itself
in the middle of one of them: a write then leaves some of its bytes behind.
"""

import io
import mmap
import os
import pathlib
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct('<qq')
_TEXT_BYTES = 200


@dataclass
class Ended:
    """How a child ended.

    Attributes:
        code: Exit code, negative for a signal.
        output: What it printed.
        steps: Inside saves.
        last_step: Kind and file of the last of them, for example
            ``'write .saving-iter_4.pth'``.
        seconds: It ran.
    """

    code: int
    output: str
    steps: int
    last_step: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def sentence(self) -> str:
        """The one sentence that a tool ended with, and exit code 1."""
        assert self.code == 1, (self.code, self.output)
        assert 'Traceback' not in self.output, self.output
        # A stage of a recipe has said its own before; verbs end with their counts.
        _, said, last = f'\n{self.output}'.rpartition('\nerror: ')
        lines = [line for line in last.splitlines() if not line.endswith(' failed')]
        assert said, self.output
        assert len(lines) == 1, self.output
        return lines[0]


class Child:
    """A forked process at work.

    Args:
        work: What it does; its exit code is that of the SystemExit raised.
        saves_in: Folder whose saves are counted; None counts none.
        die_at: The step that it kills itself in, from 1; None lives on.
        seed: Of how many bytes such a write leaves behind.
    """

    def __init__(
        self,
        work: Callable[[], object],
        *,
        saves_in: Path | None = None,
        die_at: int | None = None,
        seed: int = 0,
    ) -> None:
        self._seen = mmap.mmap(-1, _HEAD.size + _TEXT_BYTES)
        self._out = os.memfd_create('output')
        self._begin = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work, saves_in, die_at, seed)

    def _live(self, work, saves_in, die_at, seed) -> None:
        code = 70
        try:
            # What its parent is sent is not for it, and other way round.
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for target in (1, 2):
                os.dup2(self._out, target)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(
                    io.FileIO(target, 'w', closefd=False), write_through=True
                )
                for target in (1, 2)
            )
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            if saves_in is not None:
                _Saves(Path(saves_in), self._seen, die_at, random.Random(seed)).watch()
            work()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(bool(left.code))
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @property
    def steps(self) -> int:
        return _HEAD.unpack_from(self._seen)[0]

    def wait(self, timeout_s: float = 300) -> Ended:
        """How it ends; killed where it hangs, which is told by TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (code := self._code()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f'no end after {timeout_s} s:\n{self.output()}')
            time.sleep(0.002)
        steps, length = _HEAD.unpack_from(self._seen)
        last = self._seen[_HEAD.size : _HEAD.size + length].decode(errors='replace')
        seconds = time.monotonic() - self._begin
        ended = Ended(code, self.output(), steps, last, seconds)
        os.close(self._out)
        self._seen.close()
        return ended

    def _code(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def output(self) -> str:
        """What it has printed so far."""
        size = os.fstat(self._out).st_size
        return os.pread(self._out, size, 0).decode(errors='replace')

    def kill_after(self, seconds: float) -> Ended:
        """Kill it so long after its start, wherever it is then."""
        self._send_after(seconds, signal.SIGKILL)
        return self.wait()

    def stop_after(self, seconds: float) -> bool:
        """Send SIGTERM so long after its start; False where it has ended before."""
        return self._send_after(seconds, signal.SIGTERM)

    def _send_after(self, seconds: float, number: int) -> bool:
        deadline = self._begin + seconds
        while time.monotonic() < deadline and self._running():
            time.sleep(0.001)
        running = self._running()
        self.send(number)
        return running

    def when(self, found: Callable[[], object], timeout_s: float = 120) -> 'Child':
        """Wait until something is so."""
        deadline = time.monotonic() + timeout_s
        while not found():
            assert self._running(), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)
        return self

    def _running(self) -> bool:
        # Asks without taking the status away.
        state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return state is None

    def send(self, number: int) -> 'Child':
        if self._running():
            os.kill(self.pid, number)
        return self


def run(work: Callable[[], object], **options) -> Ended:
    """A child from its start to its end."""
    return Child(work, **options).wait()


# --------------------------------------------------------------------- inside a save
class _Saves:
    """Counts the steps inside saves of this process, and ends it in one of them.

    Files of state are written under names that begin with a dot, and renamed or merged
    from there; logs are written otherwise and are not counted.
    """

    def __init__(self, root: Path, seen: mmap.mmap, die_at, random_: random.Random):
        self.root, self.seen, self.die_at = str(root.resolve()) + os.sep, seen, die_at
        self.count, self.random = 0, random_

    def watch(self) -> None:
        saves, plain_open = self, io.open
        replace, fsync, unlink = os.replace, os.fsync, os.unlink

        def watched_open(file, mode='r', buffering=-1, *rest, **options):
            if not saves._is_state(file, mode):
                return plain_open(file, mode, buffering, *rest, **options)
            saves.step('open', file)
            kind = next(letter for letter in 'wxa' if letter in mode)
            stream = io.BufferedWriter(_Torn(os.fspath(file), kind, saves))
            return stream if 'b' in mode else io.TextIOWrapper(stream, 'utf-8')

        def watched_replace(old, new, **options):
            if saves._inside(new):
                saves.step('rename', new)
            replace(old, new, **options)

        def watched_unlink(path, **options):
            if saves._inside(path):
                saves.step('remove', path)
            unlink(path, **options)

        def watched_fsync(handle):
            name = os.readlink(f'/proc/self/fd/{handle}')
            if saves._inside(name) or f'{name}/' == saves.root:
                saves.step('sync', name)
            fsync(handle)

        import builtins

        io.open = builtins.open = watched_open
        os.replace, os.fsync = watched_replace, watched_fsync
        os.unlink = os.remove = watched_unlink
        if accessor := getattr(pathlib, '_NormalAccessor', None):
            # Python 3.10 has looked them up already.
            accessor.open = staticmethod(watched_open)
            accessor.replace = staticmethod(watched_replace)
            accessor.unlink = staticmethod(watched_unlink)

    def _inside(self, path) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return os.path.abspath(os.fspath(path)).startswith(self.root)

    def _is_state(self, path, mode: str) -> bool:
        writes = any(letter in mode for letter in 'wxa') and '+' not in mode
        return writes and self._inside(path) and Path(path).name.startswith('.')

    def step(self, kind: str, path) -> bool:
        """Count a step; True where a write is to be the last one."""
        self.count += 1
        text = f'{kind} {Path(os.fspath(path)).name}'.encode()[:_TEXT_BYTES]
        self.seen[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(self.seen, 0, self.count, len(text))
        if self.count != self.die_at:
            return False
        if kind != 'write':
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class _Torn(io.FileIO):
    """A file that only some bytes reach before the process is killed."""

    def __init__(self, path: str, mode: str, saves: _Saves) -> None:
        super().__init__(path, mode)
        self.saves = saves

    def write(self, data) -> int:
        if self.saves.step('write', self.name):
            some = self.saves.random.randrange(len(data) + 1)
            super().write(bytes(data)[:some])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)
