"""Runs a list of commands one after the other and remembers what is done.

``stages.json`` keeps for each stage the command, a key made from everything that went
in, the seconds it took and when it ended. A stage whose key is unchanged and whose
outputs exist is skipped; a stage that was interrupted is told to resume.
"""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmwsss.errors import InputError
from mmwsss.files import hash_files, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command with what it reads and what it leaves behind.

    Attributes:
        name: Short, unique; shown to the user.
        command: Program and arguments.
        inputs: Files and folders whose content decides whether it must run again.
        outputs: Paths that exist when it is done.
        resume: Arguments added when the same stage was begun and not finished.
        stale: Files removed before a start from scratch, so that nothing resumes
            from the remains of another configuration.
    """

    name: str
    command: Sequence[str]
    inputs: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    resume: Sequence[str] = ()
    stale: Sequence[Path] = ()


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


def run_stages(stages: Sequence[Stage], record: Path) -> dict[str, str]:
    """Run what is not done yet.

    Args:
        stages: In order; a stage runs again when an earlier one has a new key.
        record: Path of ``stages.json``.

    Returns:
        For each stage ``'skipped'`` or ``'done'``.

    Raises:
        InputError: A command failed or left an output out; names the stage.
        KeyboardInterrupt: After the running command has ended.
    """
    done = _read_record(record)
    outcome = {}
    previous_key = ''
    for number, stage in enumerate(stages, start=1):
        key = _stage_key(stage, previous_key)
        head = f'[{number}/{len(stages)}] {stage.name}'
        entry = done.get(stage.name, {})
        same = entry.get('key') == key
        if same and entry.get('finished') and all(p.exists() for p in stage.outputs):
            took = format_seconds(entry['seconds'])
            print(f'{head}: already done ({took})', flush=True)
            outcome[stage.name] = 'skipped'
        else:
            resuming = same and not entry.get('finished')
            print(f'{head}{": going on" if resuming else ""}', flush=True)
            spent = entry.get('seconds', 0.0) if resuming else 0.0
            seconds = _run(stage, key, done, record, resuming=resuming, spent=spent)
            print(f'{head}: done in {format_seconds(seconds)}', flush=True)
            outcome[stage.name] = 'done'
        previous_key = key
    return outcome


def _run(
    stage: Stage,
    key: str,
    done: dict,
    record: Path,
    *,
    resuming: bool,
    spent: float,
) -> float:
    if not resuming:
        for path in stage.stale:
            path.unlink(missing_ok=True)
    command = [*map(str, stage.command), *(stage.resume if resuming else ())]
    entry = {'command': command, 'key': key, 'finished': None, 'seconds': spent}
    done[stage.name] = entry
    write_json(record, done)
    begin = time.monotonic()
    try:
        code = _call(command)
    finally:
        entry['seconds'] = round(spent + time.monotonic() - begin, 1)
        write_json(record, done)
    if code:
        raise InputError(
            f'the step "{stage.name}" failed with exit code {code} (its messages are '
            'above); run the same command again to go on from there'
        )
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if missing:
        raise InputError(f'the step "{stage.name}" did not leave {missing[0]} behind')
    entry['finished'] = time.strftime('%Y-%m-%dT%H:%M:%S%z')
    write_json(record, done)
    return entry['seconds']


def _call(command: list[str]) -> int:
    """Run a command; on Ctrl-C or SIGTERM let it end by itself, then stop."""
    environment = {**os.environ}
    environment.setdefault('OMP_NUM_THREADS', str(available_cores()))
    process = subprocess.Popen(command, env=environment)

    def pass_on(signum: int, frame: object) -> None:
        process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the command too; killing it could cut off
        # a checkpoint that it is just writing.
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stage_key(stage: Stage, previous_key: str) -> str:
    parts = [previous_key, hash_files(stage.inputs), *map(str, stage.command)]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def _read_record(record: Path) -> dict:
    if not record.exists():
        return {}
    content = read_json(record)
    if not isinstance(content, dict):
        raise InputError(f'{record} is not a record of stages; delete it to start over')
    return content
