"""Stages: their order, what a change runs again and why, locks, time and memory."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mmwsss.apis import stages as stages_module
from mmwsss.apis.stages import (
    LOCK,
    Stage,
    dependents,
    in_order,
    plan_stages,
    run_stages,
)
from mmwsss.errors import InputError

ROOT = stages_module.__file__.rsplit('/mmwsss/', 1)[0]
# Appends to the first argument what its name is.
CODE = 'import sys; open(sys.argv[1], "a").write("once\\n")'


def stage(folder, name, **keywords):
    command = [sys.executable, '-c', CODE, str(folder / name)]
    return Stage(name=name, command=command, outputs=[folder / name], **keywords)


def diamond(folder):
    """A b needs a, c needs a, d needs both, and e needs nothing; c reads a file."""
    (folder / 'source').write_text('1')
    return [
        stage(folder, 'a', settings={'config': 'x = 1'}),
        stage(folder, 'b'),
        stage(folder, 'c', needs=['a'], inputs=[folder / 'source']),
        stage(folder, 'd', needs=['b', 'c']),
        stage(folder, 'e', needs=[]),
    ]


def changed(stages, name, **changes):
    """The same stages, one of them different."""
    return [
        Stage(**{**vars(each), **changes}) if each.name == name else each
        for each in stages
    ]


def ran(outcome):
    return {name for name, state in outcome.items() if state == 'done'}


# -------------------------------------------------------------------------- the order
def test_stages_keep_their_order_unless_they_need_another(tmp_path):
    assert in_order(diamond(tmp_path)) == {
        'a': (),
        'b': ('a',),
        'c': ('a',),
        'd': ('b', 'c'),
        'e': (),
    }
    late = [stage(tmp_path, 'z', needs=['y']), stage(tmp_path, 'y', needs=[])]
    assert list(in_order(late)) == ['y', 'z']
    assert in_order([]) == {}


def test_dependents_are_those_that_need_it_directly_or_not(tmp_path):
    stages = diamond(tmp_path)
    assert dependents(stages, 'a') == ['a', 'b', 'c', 'd']
    assert dependents(stages, 'c') == ['c', 'd']
    assert dependents(stages, 'e') == ['e']


@pytest.mark.parametrize(
    ('needs', 'message'),
    [
        ({'a': ['b'], 'b': ['a'], 'c': []}, 'the stages "a", "b" need each other'),
        ({'a': ['a']}, 'the stages "a" need each other'),
        ({'a': [], 'b': ['x']}, 'the stage "b" needs "x", but the stages are a, b'),
    ],
)
def test_impossible_needs_are_one_sentence(tmp_path, needs, message):
    stages = [stage(tmp_path, name, needs=given) for name, given in needs.items()]
    with pytest.raises(InputError, match=message):
        run_stages(stages, tmp_path / 'stages.json')
    assert not (tmp_path / 'stages.json').exists()


def test_two_stages_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match='two stages are called "a"'):
        in_order([stage(tmp_path, 'a'), stage(tmp_path, 'a')])


# ------------------------------------------------------------------ what a change does
def test_a_change_runs_what_depends_on_it_and_nothing_else(tmp_path):
    stages, record = diamond(tmp_path), tmp_path / 'stages.json'

    def check(stages, expected, **options):
        """The plan says what then happens, and changes nothing."""
        before = record.read_text() if record.exists() else None
        plan = plan_stages(stages, record, **options)
        assert before == (record.read_text() if record.exists() else None)
        assert {n: r for n, r in plan.items() if r is not None} == expected
        assert ran(run_stages(stages, record, **options)) == set(expected)

    check(stages, dict.fromkeys('abcde', 'never run'))
    check(stages, {})
    (tmp_path / 'source').write_text('2')
    check(stages, {'c': f'input {tmp_path / "source"} changed', 'd': 'after c'})
    check(stages, {})
    stages = changed(stages, 'a', settings={'config': 'x = 2'})
    check(
        stages,
        {'a': 'input config changed', 'b': 'after a', 'c': 'after a', 'd': 'after b'},
    )
    stages = changed(stages, 'b', command=[*stages[1].command, 'more'])
    check(stages, {'b': 'command changed', 'd': 'after b'})
    (tmp_path / 'b').unlink()
    # Made again from the same, so what needs it is not touched.
    check(stages, {'b': f'{tmp_path / "b"} is missing'})
    stages = changed(stages, 'e', needs=['b'])
    check(stages, {'e': 'after b'})
    check(stages, {'c': 'asked for', 'd': 'after c'}, redo='c')
    check(stages, {})
    counts = {name: (tmp_path / name).read_text().count('once') for name in 'acde'}
    assert counts == {'a': 2, 'c': 4, 'd': 5, 'e': 2}


def test_other_ways_of_resuming_change_nothing(tmp_path):
    stages, record = diamond(tmp_path), tmp_path / 'stages.json'
    run_stages(stages, record)
    assert ran(run_stages(changed(stages, 'a', resume=['--resume']), record)) == set()


def test_only_runs_one_stage_whose_needs_are_done(tmp_path):
    stages, record = diamond(tmp_path), tmp_path / 'stages.json'
    with pytest.raises(InputError, match=r'"b" needs "a", which is not done \(never'):
        run_stages(stages, record, only='b')
    assert run_stages(stages, record, only='a') == {'a': 'done'}
    assert run_stages(stages, record, only='b') == {'b': 'done'}
    assert run_stages(stages, record, only='b') == {'b': 'skipped'}
    # Again, and no other.
    assert run_stages(stages, record, only='a', redo='a') == {'a': 'done'}
    assert (tmp_path / 'a').read_text() == 'once\nonce\n'
    assert not (tmp_path / 'd').exists()
    for option in ('only', 'redo'):
        with pytest.raises(InputError, match='no stage "x"; the stages are a, b, c, d'):
            run_stages(stages, record, **{option: 'x'})


def test_what_was_to_be_redone_stays_to_be_redone_after_a_stop(tmp_path):
    stages, record = diamond(tmp_path), tmp_path / 'stages.json'
    run_stages(stages, record)
    broken = changed(stages, 'c', command=[sys.executable, '-c', 'raise SystemExit(3)'])
    with pytest.raises(InputError, match='"c" failed with exit code 3'):
        run_stages(broken, record, redo='b')
    assert ran(run_stages(stages, record)) == {'c', 'd'}


def test_a_start_from_scratch_removes_files_and_folders(tmp_path):
    remains = tmp_path / 'remains'
    (remains / 'deep').mkdir(parents=True)
    (remains / 'deep' / 'file').write_text('')
    target = tmp_path / 'elsewhere'
    target.mkdir()
    link = tmp_path / 'link'
    link.symlink_to(target)
    stale = [remains, link, tmp_path / 'absent']
    run_stages([stage(tmp_path, 'a', stale=stale)], tmp_path / 'stages.json')
    assert not remains.exists()
    assert not link.is_symlink()
    assert target.is_dir()


# ----------------------------------------------------------------------- the record
def entry(tmp_path, code, **keywords):
    """What is written about one stage of Python code, however it ends."""
    record = tmp_path / 'stages.json'
    stage = Stage(name='s', command=[sys.executable, '-c', code], **keywords)
    message = ''
    try:
        run_stages([stage], record)
    except InputError as error:
        message = str(error)
    return json.loads(record.read_text())['s'], message


@pytest.mark.parametrize(
    ('code', 'state', 'message'),
    [
        ('', 'done', ''),
        ('raise SystemExit(3)', 'exit code 3', '"s" failed with exit code 3'),
        (
            'import os; os.kill(os.getpid(), 9)',
            'killed by SIGKILL',
            '"s" was killed by SIGKILL, perhaps for lack of memory',
        ),
    ],
)
def test_the_record_says_how_it_ended(tmp_path, code, state, message):
    found, sentence = entry(tmp_path, code)
    assert found['state'] == state
    assert bool(found['finished']) == (state == 'done')
    assert message in sentence


def test_an_output_left_out_is_named(tmp_path):
    absent = tmp_path / 'absent'
    found, sentence = entry(tmp_path, '', outputs=[absent])
    assert found['state'] == f'left out {absent}'
    assert sentence == f'the step "s" did not leave {absent} behind'


PEAKS = """
import sys
from pathlib import Path
from mmwsss.apis.stages import Stage, read_record, run_stages
from mmwsss.errors import InputError
record = Path(sys.argv[1])
for code in sys.argv[2:]:
    stage = Stage(name='s', command=[sys.executable, '-c', code], resume=['again'])
    try:
        run_stages([stage], record)
    except InputError:
        pass
    print('peak', read_record(record)['s']['peak_memory_mib'])
"""


def test_peak_memory_is_that_of_the_largest_process(tmp_path):
    """Also of a child, and the larger one of two starts."""
    # From a process of its own, since Linux counts in what the runner holds.
    fill = 'x = bytearray(%d * 2**20)'
    child = f'import subprocess, sys; subprocess.run([sys.executable, "-c", "{fill}"])'
    twice = f'import sys\nif "again" not in sys.argv:\n {fill % 301}\n sys.exit(1)'
    codes = [fill % 1, fill % 301, child % 201, twice, twice]
    out = subprocess.run(
        [sys.executable, '-c', PEAKS, str(tmp_path / 'stages.json'), *codes],
        env={**os.environ, 'PYTHONPATH': ROOT},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    peaks = [float(x.split()[1]) for x in out.splitlines() if x.startswith('peak')]
    small, large, inside, failed, done = peaks
    assert large - small == pytest.approx(300, abs=20)
    assert inside - small == pytest.approx(200, abs=20)
    assert failed == done == pytest.approx(large, abs=5)


def test_seconds_of_several_starts_add_up(tmp_path):
    code = 'import sys, time; time.sleep(0.6); sys.exit("again" not in sys.argv)'
    first, _ = entry(tmp_path, code, resume=['again'])
    both, _ = entry(tmp_path, code, resume=['again'])
    assert both['seconds'] >= first['seconds'] + 0.5 >= 1.0


# ------------------------------------------------------------------------- the locks
def test_a_record_that_another_process_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, '_PATIENCE_S', 0.3)
    with (tmp_path / LOCK).open('w') as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write('12345')
        stream.flush()
        with pytest.raises(InputError, match=r'process 12345 .* still works on'):
            run_stages([stage(tmp_path, 'a')], tmp_path / 'stages.json')
    assert not (tmp_path / 'a').exists()
    run_stages([stage(tmp_path, 'a')], tmp_path / 'stages.json')
    # The lock is free again.
    run_stages([stage(tmp_path, 'a')], tmp_path / 'stages.json')


KEEPS_WRITING = """
import pathlib, sys, time
while True:
    with pathlib.Path(sys.argv[1]).open('a') as stream:
        stream.write('x')
    time.sleep(0.02)
"""


@pytest.mark.parametrize('die_together', [True, False])
def test_a_killed_runner_leaves_nothing_that_writes(tmp_path, die_together):
    """Where the system cannot kill the command, its lock keeps others out."""
    written, record = tmp_path / 'written', tmp_path / 'stages.json'
    driver = (
        'import sys\n'
        'from pathlib import Path\n'
        'from mmwsss.apis import stages\n'
        f'{"" if die_together else "stages._LIBC = None"}\n'
        f'command = [sys.executable, "-c", {KEEPS_WRITING!r}, {str(written)!r}]\n'
        'stage = stages.Stage(name="s", command=command)\n'
        f'stages.run_stages([stage], Path({str(record)!r}))\n'
    )
    runner = subprocess.Popen(
        [sys.executable, '-c', driver], env={**os.environ, 'PYTHONPATH': ROOT}
    )
    wait_for(lambda: written.exists() and written.stat().st_size > 3)
    children = subprocess.run(
        ['ps', '-o', 'pid=', '--ppid', str(runner.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    (child,) = map(int, children.stdout.split())
    runner.kill()
    runner.wait()
    if die_together and sys.platform == 'linux':
        wait_for(lambda: not running(child))
        size = written.stat().st_size
        time.sleep(0.2)
        assert written.stat().st_size == size
    else:
        assert running(child)
        with (tmp_path / LOCK).open() as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(child, signal.SIGKILL)
    assert json.loads(record.read_text())['s']['state'] == 'running'
    assert ran(run_stages([stage(tmp_path, 's')], record)) == {'s'}


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has waited for still has its number.
    with open(f'/proc/{pid}/stat') as stream:
        return stream.read().rpartition(')')[2].split()[0] != 'Z'


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError('waited in vain')


def test_stages_that_share_an_output_wait_for_each_other(tmp_path):
    """Two records, one lock: the second command begins when the first has ended."""
    log, lock = tmp_path / 'log', tmp_path / 'lock'
    code = (
        'import time\n'
        'def note(word):\n'
        f' with open({str(log)!r}, "a") as stream: stream.write(word)\n'
        'note("("); time.sleep(2); note(")")\n'
    )
    driver = (
        'import sys\n'
        'from pathlib import Path\n'
        'from mmwsss.apis.stages import Stage, run_stages\n'
        f'command = [sys.executable, "-c", {code!r}]\n'
        f'stage = Stage(name="s", command=command, lock=Path({str(lock)!r}))\n'
        'run_stages([stage], Path(sys.argv[1]) / "stages.json")\n'
    )
    runners = [
        subprocess.Popen(
            [sys.executable, '-c', driver, str(tmp_path / name)],
            env={**os.environ, 'PYTHONPATH': ROOT},
        )
        for name in 'ab'
    ]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert log.read_text() == '()()'
