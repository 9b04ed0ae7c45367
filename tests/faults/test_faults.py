"""The campaign in short: a few kills inside saves, and each kind of fault once.

The whole of it is ``python tests/faults/campaign.py``, see docs/faults.md.
"""

import random
import signal
import time
from functools import partial

import pytest
from faults import campaign, scenarios
from faults.children import Child, run
from faults.mounts import Refused
from faults.works import CAMs, Masks, RunRecipe, Validated, file_digests, leftovers

pytestmark = pytest.mark.mm


def test_steps_inside_saves_are_counted_and_killed_in(tmp_path):
    from mmwsss.files import whole_file

    def work():
        with whole_file(tmp_path / 'a', synced=True) as stream:
            stream.write(b'x' * 100)

    ended = run(work, saves_in=tmp_path)
    # It is flushed where it is synced.
    assert (ended.code, ended.steps) == (0, 4)
    assert ended.last_step == 'rename a'
    (tmp_path / 'a').write_text('old')
    for step, kind in enumerate(('open', 'write', 'sync', 'rename'), start=1):
        ended = run(work, saves_in=tmp_path, die_at=step)
        assert ended.killed
        assert ended.last_step.startswith(kind)
        assert (tmp_path / 'a').read_text() == 'old'
    assert len(leftovers(tmp_path)) == 3
    # What kills itself in the middle of a write has written some of it.
    sizes = set()
    for seed in range(4):
        folder = tmp_path / str(seed)

        def write(folder=folder):
            with whole_file(folder / 'a') as stream:
                stream.write(b'x' * 100)

        assert run(write, saves_in=folder, die_at=2, seed=seed).killed
        sizes |= {p.stat().st_size for p in folder.iterdir()}
    assert len(sizes) > 1
    assert max(sizes) <= 100


@pytest.mark.parametrize('kind', [Validated, CAMs, Masks, RunRecipe])
def test_killed_inside_saves_it_ends_as_undisturbed(kind, tmp_path):
    work = kind(tmp_path / 'inputs')
    expected = campaign.undisturbed(work, tmp_path / 'whole')
    assert expected.steps > 20
    trial = campaign.one_trial(
        expected, tmp_path / 'out', random.Random(1), kind='inside'
    )
    assert trial.kills
    assert all(kill.hit for kill in trial.kills)
    assert (trial.lost, trial.differences) == ([], [])


def test_a_deaf_tool_is_found(tmp_path):
    """The campaign itself: a tool that SIGTERM does not stop."""

    class Deaf(CAMs):
        def start(self, out):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            out.mkdir(exist_ok=True)
            for number in range(10):
                time.sleep(0.05)
                (out / str(number)).touch()

        def outcome(self, out):
            return {}

        def saved(self, out):
            return {path.name for path in out.iterdir()}

    work = Deaf(tmp_path / 'in')
    expected = campaign.undisturbed(work, tmp_path / 'whole')
    expected.seconds /= 2
    found = campaign.one_trial(
        expected, tmp_path / 'out', random.Random(0), kind='sigterm'
    )
    assert any('did nothing' in text for text in found.lost)


def test_stopped_at_random_moments_it_ends_as_undisturbed(tmp_path):
    expected = campaign.undisturbed(CAMs(tmp_path / 'inputs'), tmp_path / 'whole')
    trial = campaign.one_trial(
        expected, tmp_path / 'out', random.Random(1), kind='sigterm'
    )
    assert {kill.code for kill in trial.kills} <= {143, -signal.SIGTERM}
    assert (trial.lost, trial.differences) == ([], [])


def test_a_loss_is_found(tmp_path):
    """The campaign itself: a tool that writes in place and forgets."""

    class Careless(CAMs):
        def start(self, out):
            out.mkdir(exist_ok=True)
            text = 'a' * 200 if not (out / '.begun').exists() else 'b' * 200
            with open(out / '.begun', 'w') as stream:
                stream.write(text)

        def outcome(self, out):
            return {'text': (out / '.begun').read_text()}

        def saved(self, out):
            text = (out / '.begun').read_text()
            assert len(text) in (0, 200), f'torn: {len(text)}'
            return {text[:1]} - {''}

    expected = campaign.undisturbed(Careless(tmp_path / 'in'), tmp_path / 'whole')
    found = [
        campaign.one_trial(expected, tmp_path / f'{n}', random.Random(n), kind='inside')
        for n in range(5)
    ]
    assert any('torn' in text for trial in found for text in trial.lost)
    assert any(trial.differences for trial in found)
    told = campaign.table(found, [])
    assert '| make_cams |' in told


@pytest.mark.parametrize(
    'play',
    [
        pytest.param(partial(scenarios.terminated, Validated), id='training'),
        pytest.param(partial(scenarios.terminated, CAMs), id='tool'),
        pytest.param(partial(scenarios.terminated, RunRecipe), id='recipe'),
        pytest.param(scenarios.worker_killed, id='loading process'),
        pytest.param(partial(scenarios.rank_fault, signal.SIGKILL), id='rank'),
        pytest.param(partial(scenarios.rank_fault, signal.SIGTERM), id='all ranks'),
    ],
)
def test_ends_of_processes(play, tmp_path):
    row = play(tmp_path)
    assert 'exit code' in row['ended']


@pytest.mark.parametrize(
    'play',
    [
        partial(scenarios.disk_full, CAMs),
        partial(scenarios.disk_full, Validated),
        partial(scenarios.folder_read_only, Masks),
    ],
    ids=['full, tool', 'full, training', 'read-only, label'],
)
def test_disks(play, tmp_path):
    try:
        row = play(tmp_path)
    except Refused as refused:
        pytest.skip(f'needs mounts of its own: {refused}')
    assert row['ended'].startswith('exit code 1')


def test_two_labels_at_once_do_not_write_over_each_other(tmp_path):
    row = scenarios.two_at_once(scenarios.SlowMasks, tmp_path, refused=True)
    assert 'makes masks in' in row['ended']


def test_a_store_in_the_making_is_not_changed(tmp_path):
    assert 'makes CAMs in' in scenarios.other_settings(tmp_path)['ended']


@pytest.mark.parametrize('kind', [Validated, CAMs, Masks, RunRecipe])
def test_what_is_read_is_never_written_to(kind, tmp_path):
    """Neither by a whole run, nor by one that is killed and goes on."""
    work, out = kind(tmp_path / 'inputs'), tmp_path / 'out'
    (work.inputs / f'{out.name}.py').touch()

    def state():
        times = {
            path.relative_to(work.inputs): path.stat().st_mtime_ns
            for path in work.inputs.rglob('*')
            # The recipe that this test itself writes.
            if path.is_file() and path.name != f'{out.name}.py'
        }
        digests = file_digests(work.inputs)
        digests.pop(f'{out.name}.py')
        return times, digests

    before = state()
    child = Child(lambda: work.start(out)).when(lambda: scenarios.begun(work, out))
    child.send(signal.SIGKILL).wait()
    assert run(lambda: work.start(out)).code == 0
    assert state() == before
