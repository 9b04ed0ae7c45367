"""Faults that are no kill: signals, disks, worker processes, ranks, two at once.

A scenario plays one fault with one work, raises AssertionError where it does not end in
one sentence or loses something, and returns what it saw, for the table.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults.children import Child, Ended, run
from faults.mounts import read_only, small_disk, with_own_mounts
from faults.works import (
    CAMs,
    Labels,
    Masks,
    RunRecipe,
    Segmentor,
    Validated,
    Work,
    leftovers,
)

from mmwsss.apis import outputs

Row = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """One fault: what happens, how it is brought about, to which work."""

    fault: str
    how: str
    play: Callable[[Path], Row]


def begun(work: Work, out: Path) -> bool:
    """Whether something is finished; what is just being changed does not count."""
    try:
        return out.exists() and bool(work.saved(out))
    except Exception:
        return False


def whole(work: Work, out: Path) -> dict[str, str]:
    """The outcome of a start that nothing disturbs."""
    ended = run(lambda: work.start(out))
    assert ended.code == 0, ended.output
    return work.outcome(out)


def goes_on(work: Work, out: Path, expected: dict[str, str], before: set[str]) -> str:
    """Start it again after a fault: nothing may be lost or differ."""
    assert before <= work.saved(out), before - work.saved(out)
    assert whole(work, out) == expected
    assert not leftovers(out), leftovers(out)
    return f'{len(before)} finished before and kept, the same end'


def shown(ended: Ended, folder: Path) -> str:
    return f'exit code 1: "{ended.sentence().replace(str(folder), "...")}"'


# ---------------------------------------------------------------------------- SIGTERM
def terminated(kind: type[Work], folder: Path, *, group: bool = False) -> Row:
    """SIGTERM in the middle, to the process or to its group."""
    work, out = kind(folder / 'inputs'), folder / 'out'
    expected = whole(work, folder / 'whole')
    child = Child(lambda: work.start(out)).when(lambda: begun(work, out))
    if group:
        os.killpg(child.pid, signal.SIGTERM)
    else:
        child.send(signal.SIGTERM)
    ended = child.wait()
    assert ended.code == 143, (ended.code, ended.output)
    assert 'Traceback' not in ended.output, ended.output
    if kind is not RunRecipe:
        assert not leftovers(out), leftovers(out)
    return {
        'ended': 'exit code 143',
        'afterwards': goes_on(work, out, expected, work.saved(out)),
    }


class LoadedByWorkers(Segmentor):
    """The training with two worker processes that load photos."""

    num_workers = 2


# ------------------------------------------------------------------------------ disks
def disk_full(kind: type[Work], folder: Path, *, share: float = 0.6) -> Row:
    """The disk is full in the middle: it holds a share of what comes out."""
    row: Row = {}
    work = kind(folder / 'inputs')
    expected = whole(work, folder / 'whole')
    size = sum(p.stat().st_size for p in (folder / 'whole').rglob('*') if p.is_file())

    def play() -> None:
        disk = folder / 'disk'
        small_disk(disk, max(32 << 10, int(size * share) // 4096 * 4096))
        out = disk / 'out'
        ended = run(lambda: work.start(out))
        text = shown(ended, disk)
        assert 'No space left' in text, text
        before = work.saved(out) if out.exists() else set()
        small_disk(disk, 1 << 28, there=True)
        print(text, goes_on(work, out, expected, before), sep='\n')

    row['ended'], row['afterwards'] = _told(play)
    return row


def folder_read_only(kind: type[Work], folder: Path) -> Row:
    """After a kill the folder can no longer be written to."""
    work, out = kind(folder / 'inputs'), folder / 'out'
    expected = whole(work, folder / 'whole')
    child = Child(lambda: work.start(out)).when(lambda: begun(work, out))
    child.send(signal.SIGKILL).wait()

    def play() -> None:
        before = work.saved(out)
        read_only(out)
        ended = run(lambda: work.start(out))
        text = shown(ended, out)
        assert 'Read-only' in text, text
        assert work.saved(out) == before
        read_only(out, yes=False)
        print(text, goes_on(work, out, expected, before), sep='\n')

    ended, afterwards = _told(play)
    return {'ended': ended, 'afterwards': afterwards}


def _told(play: Callable[[], None]) -> Sequence[str]:
    """The last two lines that a function prints in a child with its own mounts."""
    return with_own_mounts(play).splitlines()[-2:]


# ------------------------------------------------------------------ workers and ranks
def worker_killed(folder: Path) -> Row:
    """A process that loads photos is killed, as by a system without memory."""
    work, out = LoadedByWorkers(folder / 'inputs'), folder / 'out'
    expected = whole(work, folder / 'whole')
    child = Child(lambda: work.start(out))
    child.when(lambda: begun(work, out) and _children_of(child.pid))
    os.kill(_children_of(child.pid)[0], signal.SIGKILL)
    ended = child.wait()
    text = shown(ended, folder)
    assert 'a process that loads photos' in text, text
    return {'ended': text, 'afterwards': goes_on(work, out, expected, work.saved(out))}


def _children_of(pid: int) -> list[int]:
    return list(map(int, Path(f'/proc/{pid}/task/{pid}/children').read_text().split()))


def ranks(work: Segmentor, out: Path) -> list[Child]:
    """Two processes of one training, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        work.start(out, '--launcher', 'pytorch')

    return [Child(partial(start, rank)) for rank in range(2)]


def rank_fault(number: int, folder: Path) -> Row:
    """One of two processes is killed, or is sent SIGTERM."""
    work, out = Segmentor(folder / 'inputs'), folder / 'out'
    for child in ranks(work, folder / 'whole'):
        ended = child.wait()
        assert ended.code == 0, ended.output
    expected = work.outcome(folder / 'whole')
    first, second = ranks(work, out)
    first.when(lambda: begun(work, out))
    second.send(number)
    second, first = second.wait(), first.wait()
    if number == signal.SIGKILL:
        text = f'the other: {shown(first, folder)}'
        assert 'another process of this run ended' in text, text
    else:
        assert (first.code, second.code) == (143, 143), first.output + second.output
        text = 'both: exit code 143, after the same iteration'
    before = work.saved(out)
    for child in ranks(work, out):
        ended = child.wait()
        assert ended.code == 0, ended.output
    assert work.outcome(out) == expected
    return {
        'ended': text,
        'afterwards': f'{len(before)} finished before and kept, the same end',
    }


# -------------------------------------------------------------------------- two at once
def two_at_once(kind: type[Work], folder: Path, *, refused: bool) -> Row:
    """The same command twice at the same time."""
    work, out = kind(folder / 'inputs'), folder / 'out'
    expected = whole(work, folder / 'whole')
    first = Child(lambda: work.start(out)).when(lambda: begun(work, out))
    with impatient():
        second = run(lambda: work.start(out))
    first = first.wait()
    assert first.code == 0, first.output
    if refused:
        text = f'the second: {shown(second, folder)}'
    else:
        assert second.code == 0, second.output
        text = 'both end well'
    assert work.outcome(out) == expected
    assert not leftovers(out)
    return {'ended': text, 'afterwards': 'the same end'}


class SlowMasks(Masks):
    """Slow enough to be met by another one."""

    delay_s = 0.4


class SlowCAMs(CAMs):
    """The same."""

    delay_s = 0.4


@contextmanager
def impatient() -> Iterator[None]:
    """Children that give up soon where another process has the folder."""
    before, outputs._PATIENCE_S = outputs._PATIENCE_S, 0.3
    try:
        yield
    finally:
        outputs._PATIENCE_S = before


def other_settings(folder: Path) -> Row:
    """make_cams --overwrite with other settings, into a store that is being made."""
    work, out = SlowCAMs(folder / 'inputs'), folder / 'out'
    expected = whole(work, folder / 'whole')
    first = Child(lambda: work.start(out)).when(lambda: begun(work, out))
    with impatient():
        second = run(lambda: work.start(out, '--kind', 'own', '--overwrite'))
    first = first.wait()
    assert first.code == 0, first.output
    assert work.outcome(out) == expected
    return {
        'ended': f'the second: {shown(second, folder)}',
        'afterwards': 'the same end of the first',
    }


# ---------------------------------------------------------------------------- the list
def _all() -> list[Scenario]:
    found = []
    to_process, to_group = 'SIGTERM to the process', 'SIGTERM to the process group'
    for kind in (Segmentor, Validated, CAMs, Labels, Masks, RunRecipe):
        found.append(
            Scenario(f'{kind.name}: SIGTERM', to_process, partial(terminated, kind))
        )
    found.append(
        Scenario(
            'train, 2 loading processes: SIGTERM',
            to_group,
            partial(terminated, LoadedByWorkers, group=True),
        )
    )
    for kind in (Segmentor, CAMs, Labels, Masks, RunRecipe):
        found.append(
            Scenario(
                f'{kind.name}: the disk is full',
                'a tmpfs of 60 % of the outputs',
                partial(disk_full, kind),
            )
        )
    for kind in (Segmentor, CAMs, Labels, Masks, RunRecipe):
        found.append(
            Scenario(
                f'{kind.name}: the folder is read-only',
                'a bind mount with MS_RDONLY',
                partial(folder_read_only, kind),
            )
        )
    found += [
        Scenario('train: a loading process dies', 'SIGKILL to it', worker_killed),
        Scenario(
            'train, 2 ranks: one dies',
            'SIGKILL to it',
            partial(rank_fault, signal.SIGKILL),
        ),
        Scenario(
            'train, 2 ranks: SIGTERM to one',
            to_process,
            partial(rank_fault, signal.SIGTERM),
        ),
        Scenario(
            'make_cams twice',
            'at the same time',
            partial(two_at_once, CAMs, refused=False),
        ),
        Scenario(
            'make_cams twice, other settings',
            'with --overwrite',
            other_settings,
        ),
        Scenario(
            'label twice',
            'at the same time',
            partial(two_at_once, SlowMasks, refused=True),
        ),
        Scenario(
            'run_recipe twice',
            'at the same time',
            partial(two_at_once, RunRecipe, refused=False),
        ),
    ]
    return found


SCENARIOS = _all()
