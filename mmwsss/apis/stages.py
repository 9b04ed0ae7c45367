"""Runs commands that need each other and remembers what is done.

``stages.json`` keeps for each stage what went in (the command, the content of its
inputs, the keys of the stages that it needs), a key made of that, and how it went. A
stage whose key is unchanged and whose outputs exist is skipped, so a changed input
runs again what depends on it and nothing else. A stage that was interrupted is told to
resume.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmwsss.errors import InputError, Terminated
from mmwsss.files import (
    hash_files,
    lock_owner,
    open_lock,
    read_json,
    take_lock,
    write_json,
)

LOCK = '.stages.lock'
# How long the stage of a killed runner may take to end.
_PATIENCE_S = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command with what it reads and what it leaves behind.

    Attributes:
        name: Short, unique; shown to the user.
        command: Program and arguments.
        needs: Stages that must be done before; None for the one listed before.
        inputs: Files and folders whose content decides whether it must run again.
        settings: Name -> text that decides as well, a config with its bases say.
        outputs: Paths that exist when it is done.
        resume: Arguments added when the same stage was begun and not finished.
        stale: Files and folders removed before a start from scratch, so that nothing
            resumes from the remains of another configuration.
        lock: File that stages hold while they run, for those that share an output;
            None for a stage that shares nothing.
    """

    name: str
    command: Sequence[str]
    needs: Sequence[str] | None = None
    inputs: Sequence[Path] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[Path] = ()
    resume: Sequence[str] = ()
    stale: Sequence[Path] = ()
    lock: Path | None = None


def available_cores() -> int:
    """Cores this process may use: its affinity, capped by the container's quota."""
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path('/sys/fs/cgroup/cpu.max').read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no quota, or 'max'
    return max(cores, 1)


def format_seconds(seconds: float) -> str:
    """Write a duration as 8 s, 4 min 05 s or 2 h 03 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    if seconds < 3600:
        return f'{seconds // 60} min {seconds % 60:02d} s'
    return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'


# ------------------------------------------------------------------------- the order
def in_order(stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """Stages in an order in which each follows all that it needs.

    They stay as listed where that is such an order.

    Returns:
        Stage name -> names of the stages that it needs, in the order to run.

    Raises:
        InputError: A name stands twice, a need is unknown, or stages need each other.
    """
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'two stages are called "{name}"; each needs its own name')
    needs = {}
    for stage, before in zip(stages, [None, *names], strict=False):
        given = stage.needs
        if given is None:
            given = [] if before is None else [before]
        for name in given:
            if name not in names:
                raise InputError(
                    f'the stage "{stage.name}" needs "{name}", but the stages are '
                    f'{", ".join(names)}'
                )
        needs[stage.name] = tuple(given)
    ordered = {}
    while len(ordered) < len(needs):
        ready = [n for n in needs if n not in ordered and set(needs[n]) <= set(ordered)]
        if not ready:
            rest = [f'"{name}"' for name in needs if name not in ordered]
            raise InputError(f'the stages {", ".join(rest)} need each other')
        ordered[ready[0]] = needs[ready[0]]
    return ordered


def dependents(stages: Sequence[Stage], name: str) -> list[str]:
    """The stage of that name and all that need it, directly or not."""
    found = [name]
    for other, needs in in_order(stages).items():
        if other != name and set(needs) & set(found):
            found.append(other)
    return found


# -------------------------------------------------------------------------- the plan
def plan_stages(
    stages: Sequence[Stage], record: Path, *, redo: str | None = None
) -> dict[str, str | None]:
    """Say which stages would run, and why; changes nothing.

    Args:
        stages: See ``run_stages``.
        record: See ``run_stages``.
        redo: See ``run_stages``.

    Returns:
        For each stage, in the order to run, the reason or None where it is done.
    """
    done = read_record(record)
    again = dependents(stages, redo) if redo else []
    by_name = {stage.name: stage for stage in stages}
    plan, keys = {}, {}
    for name, needs in in_order(stages).items():
        stage = by_name[name]
        given = _given(stage, {need: keys[need] for need in needs})
        keys[name] = _key(given)
        if name in again:
            after = [need for need in needs if need in again]
            plan[name] = f'after {after[0]}' if after else 'asked for'
        else:
            plan[name] = _reason(stage, given, done.get(name))
    return plan


def _given(stage: Stage, needs: Mapping[str, str]) -> dict:
    """All that decides whether a stage must run again."""
    inputs = {str(path): hash_files([path]) for path in stage.inputs}
    texts = {
        name: hashlib.sha256(text.encode()).hexdigest()
        for name, text in stage.settings.items()
    }
    return {
        'command': [str(word) for word in stage.command],
        'inputs': inputs | texts,
        'needs': dict(needs),
    }


def _key(given: Mapping) -> str:
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _reason(stage: Stage, given: Mapping, entry: Mapping | None) -> str | None:
    """Why a stage must run, None if it need not."""
    if entry is None:
        return 'never run'
    if entry.get('key') != _key(given):
        return _change(given, entry)
    if not entry.get('finished'):
        return 'going on'
    missing = [path for path in stage.outputs if not path.exists()]
    return f'{missing[0]} is missing' if missing else None


def _change(given: Mapping, entry: Mapping) -> str:
    if entry.get('command') != given['command']:
        return 'command changed'
    for what, sentence in (('needs', 'after {}'), ('inputs', 'input {} changed')):
        before, now = entry.get(what, {}), given[what]
        for name in {**now, **before}:
            if before.get(name) != now.get(name):
                return sentence.format(name)
    return 'record of an older version'


# --------------------------------------------------------------------------- the runs
def run_stages(
    stages: Sequence[Stage],
    record: Path,
    *,
    redo: str | None = None,
    only: str | None = None,
    begin: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Run what is not done yet.

    Only one process at a time works on a record. Where this one is killed, the running
    command is killed with it (on Linux), and whoever starts again waits for its end.

    ``stages.json`` says of each stage: ``command``, ``inputs`` and ``needs`` (name ->
    hash), ``key``; ``seconds`` (of all its starts since the last from scratch; those
    that ended with a killed runner are not known); ``peak_memory_mib``; ``finished``
    (when, or None); ``state`` ('running', 'done', 'stopped', 'exit code 1', 'killed by
    SIGKILL', 'left out PATH').

    The peak memory is the operating system's figure: the largest resident set of a
    single process among the command and those of its children that it has waited for.
    The memory of workers beside it is not added, and Linux counts in what this process
    held when it started the command.

    Args:
        stages: A stage runs again when one that it needs has a new key.
        record: Path of ``stages.json``.
        redo: A stage that starts from scratch, with all that need it.
        only: The only stage to run; what it needs must be done.
        begin: Called once no other process works on the record.

    Returns:
        For each stage ``'skipped'`` or ``'done'``.

    Raises:
        InputError: A command failed or left an output out; names the stage. Or
            another process works on the same record.
        KeyboardInterrupt: After the running command has ended.
    """
    order = in_order(stages)
    for name in (redo, only):
        if name is not None and name not in order:
            raise InputError(
                f'there is no stage "{name}"; the stages are {", ".join(order)}'
            )
    with _held(record.with_name(LOCK), patience=_PATIENCE_S):
        if begin is not None:
            begin()
        return _Runs(stages, record, redo=redo, only=only).all()


class _Runs:
    def __init__(
        self,
        stages: Sequence[Stage],
        record: Path,
        *,
        redo: str | None,
        only: str | None,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.order = in_order(stages)
        self.record = record
        self.only = only
        self.done = read_record(record)
        self.keys: dict[str, str] = {}
        if redo:
            # Forgotten at once, so that a stop in between leaves nothing done.
            self._forget(dependents(stages, redo))

    def _forget(self, names: Collection[str]) -> None:
        self.done = {n: entry for n, entry in self.done.items() if n not in names}
        write_json(self.record, self.done)

    def all(self) -> dict[str, str]:
        outcome = {}
        for number, (name, needs) in enumerate(self.order.items(), start=1):
            stage = self.stages[name]
            given = _given(stage, {need: self.keys[need] for need in needs})
            self.keys[name] = _key(given)
            reason = _reason(stage, given, self.done.get(name))
            if self.only not in (None, name):
                self._check_needed(name, reason)
                continue
            head = f'[{number}/{len(self.order)}] {name}'
            if reason is None:
                took = format_seconds(self.done[name]['seconds'])
                print(f'{head}: already done ({took})', flush=True)
                outcome[name] = 'skipped'
                continue
            print(f'{head}: {reason}', flush=True)
            seconds = self._run(stage, given)
            print(f'{head}: done in {format_seconds(seconds)}', flush=True)
            outcome[name] = 'done'
        return outcome

    def _check_needed(self, name: str, reason: str | None) -> None:
        if reason is not None and name in self.order[self.only]:
            raise InputError(
                f'the stage "{self.only}" needs "{name}", which is not done '
                f'({reason}); run that first'
            )

    def _run(self, stage: Stage, given: Mapping) -> float:
        before = self.done.get(stage.name, {})
        same = before.get('key') == _key(given)
        resuming = same and not before.get('finished')
        if not resuming:
            _remove(stage.stale)
        entry = {
            **given,
            'key': _key(given),
            'seconds': before['seconds'] if resuming else 0.0,
            'peak_memory_mib': before.get('peak_memory_mib') if resuming else None,
            'finished': None,
            'state': 'running',
        }
        self.done[stage.name] = entry
        write_json(self.record, self.done)
        command = [*given['command'], *(stage.resume if resuming else ())]
        begin, spent, state = time.monotonic(), entry['seconds'], 'stopped'
        try:
            with _held(stage.lock, patience=None):
                code, peak = _call(command)
            entry['peak_memory_mib'] = max(peak, entry['peak_memory_mib'] or 0.0)
            state = _state(code, stage)
        finally:
            entry['seconds'] = round(spent + time.monotonic() - begin, 1)
            entry['state'] = state
            if state == 'done':
                entry['finished'] = time.strftime('%Y-%m-%dT%H:%M:%S%z')
            write_json(self.record, self.done)
        if code:
            raise InputError(
                f'the step "{stage.name}" {_failure(code)} (its messages are above); '
                'run the same command again to go on from there'
            )
        if state != 'done':
            raise InputError(f'the step "{stage.name}" {_missing(stage)}')
        return entry['seconds']


def _state(code: int, stage: Stage) -> str:
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    if code > 0:
        return f'exit code {code}'
    missing = [path for path in stage.outputs if not path.exists()]
    return f'left out {missing[0]}' if missing else 'done'


def _failure(code: int) -> str:
    if code > 0:
        return f'failed with exit code {code}'
    name = signal.Signals(-code).name
    return f'was killed by {name}' + (
        ', perhaps for lack of memory' if name == 'SIGKILL' else ''
    )


def _missing(stage: Stage) -> str:
    missing = next(path for path in stage.outputs if not path.exists())
    return f'did not leave {missing} behind'


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _call(command: Sequence[str]) -> tuple[int, float]:
    """Run a command; on Ctrl-C or SIGTERM let it end by itself, then stop.

    Returns:
        The exit code, negative for a signal, and the peak memory in MiB.
    """
    environment = {**os.environ}
    environment.setdefault('OMP_NUM_THREADS', str(available_cores()))
    process = start(command, environment=environment)

    def pass_on(signum: int, frame: object) -> None:
        # The same again must not cut the waiting off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.terminate()
        raise Terminated

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return _ended(process, timeout=None)
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the command too; killing it could cut off
        # a checkpoint that it is just writing.
        if _ended(process, timeout=60) is None:
            process.terminate()
            _ended(process, timeout=None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def start(
    command: Sequence[str], *, environment: Mapping[str, str], output=None
) -> subprocess.Popen:
    """Start a process that is killed where this one is (on Linux) and holds its locks.

    Call it from the main thread: to Linux the thread that starts it is its parent.

    Args:
        command: Program and arguments.
        environment: All its variables.
        output: Receives stdout and stderr; None for this process's own.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # too late to be told
            os._exit(1)

    return subprocess.Popen(
        [str(word) for word in command],
        env=dict(environment),
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=tuple(_LOCKS),
        preexec_fn=die_with_parent if _LIBC else None,
    )


def _ended(
    process: subprocess.Popen, *, timeout: float | None
) -> tuple[int, float] | None:
    """Exit code and peak memory in MiB of a process, None if it goes on."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:  # a signal came just when it had ended
            process.returncode = 1
            return 1, 0.0
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            unit = 1 if sys.platform == 'darwin' else 1024
            return process.returncode, round(usage.ru_maxrss * unit / 2**20, 1)
        if deadline is not None and time.monotonic() > deadline:
            return None
        time.sleep(0.05)


# --------------------------------------------------------------------------- the locks
# Open lock files of this process. Commands inherit them: a lock is free again when all
# of them have ended, however this process ended.
_LOCKS: list[int] = []


@contextmanager
def _held(path: Path | None, *, patience: float | None) -> Iterator[None]:
    """Hold a lock file, None is no lock; wait for ``patience`` seconds, or for ever."""
    if path is None:
        yield
        return
    with open_lock(path) as handle:
        if not take_lock(handle, patience=patience):
            raise InputError(
                f'process {lock_owner(path)} or a command that it started still works '
                f'on {path.parent}; wait for it or stop it, then run this again'
            )
        _LOCKS.append(handle)
        try:
            yield
        finally:
            _LOCKS.remove(handle)


def read_record(record: Path) -> dict:
    """What ``stages.json`` says: stage name -> entry; {} where there is none."""
    if not record.exists():
        return {}
    content = read_json(record)
    if not isinstance(content, dict):
        raise InputError(f'{record} is not a record of stages; delete it to start over')
    return content
