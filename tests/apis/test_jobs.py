import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import distributed_jobs
import fake_jobs
import pytest
import torch.multiprocessing as mp

from mmwsss.apis.jobs import device_of, my_share, run_jobs, stream_jobs
from mmwsss.errors import InputError, UnreadablePhoto

ROOT = Path(__file__).resolve().parents[2]


def items_done(folder):
    return sorted(int(p.name.removeprefix('item_')) for p in folder.glob('item_*'))


@pytest.mark.parametrize('jobs', [1, 2])
def test_every_item_is_done_once(tmp_path, jobs):
    seen = []

    def progress(done, total):
        assert total == 7
        for item in done:
            seen.append(item)
            yield item

    run_jobs(partial(fake_jobs.build, tmp_path), range(7), jobs=jobs, progress=progress)
    assert sorted(seen) == list(range(7))
    assert items_done(tmp_path) == list(range(7))
    built = [p.name.split('_') for p in tmp_path.glob('built_*')]
    # A process may find nothing left to do; none is built for it then.
    assert 1 <= len(built) <= jobs
    assert len({number for _, number, _ in built}) == len(built)
    own = {int(pid) for _, _, pid in built} == {os.getpid()}
    assert own == (jobs == 1)


def test_nothing_to_do_builds_nothing(tmp_path):
    # Building would raise.
    run_jobs(partial(fake_jobs.build_defect, tmp_path), [], jobs=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('jobs', [1, 2])
def test_items_without_pixels_are_left_out(tmp_path, jobs):
    build, done, left_out = partial(fake_jobs.build_unreadable, tmp_path), [], []

    def progress(finished, total):
        for item in finished:
            done.append(item)
            yield item

    def leave_out(item, error):
        left_out.append((item, str(error)))

    run_jobs(build, range(9), jobs=jobs, progress=progress, left_out=leave_out)
    assert sorted(done) == [0, 1, 2, 4, 6, 7, 8]
    assert sorted(left_out) == [
        (i, f'item {i} has no pixels; replace it') for i in (3, 5)
    ]
    assert len(list(tmp_path.glob('item_*'))) == 7
    with pytest.raises(UnreadablePhoto, match=r'^item 3 has no pixels; replace it$'):
        run_jobs(build, range(5), jobs=jobs)


@pytest.mark.parametrize('jobs', [1, 2])
def test_bad_input_arrives_as_one_sentence(tmp_path, jobs):
    with pytest.raises(InputError, match=r'^item 3 is bad; take it out$'):
        run_jobs(partial(fake_jobs.build_refusing, tmp_path), range(9), jobs=jobs)
    assert 3 not in items_done(tmp_path)


def test_what_fails_while_a_worker_is_built_arrives_too(tmp_path):
    with pytest.raises(InputError, match=r'^the network cannot be built; correct it$'):
        run_jobs(partial(fake_jobs.build_nothing, tmp_path), range(4), jobs=2)
    with pytest.raises(ZeroDivisionError, match='a defect'):
        run_jobs(partial(fake_jobs.build_defect, tmp_path), range(4), jobs=2)


def test_a_killed_worker_is_a_sentence():
    with pytest.raises(InputError, match='a worker process was killed'):
        run_jobs(partial(fake_jobs.build_suicide, ''), range(4), jobs=2)


def test_jobs_must_be_positive():
    with pytest.raises(InputError, match='--jobs must be 1 or more, got 0'):
        run_jobs(partial(fake_jobs.build, ''), range(3), jobs=0)


DRIVER = """
import sys
from functools import partial
import fake_jobs
from mmwsss.apis.cli import run_tool
from mmwsss.apis.jobs import run_jobs

def main():
    run_jobs(partial(fake_jobs.build_slow, sys.argv[1]), range(400), jobs=2)

if __name__ == '__main__':
    run_tool(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, signum):
    driver = tmp_path / 'driver.py'
    driver.write_text(DRIVER)
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    process = subprocess.Popen(
        [sys.executable, str(driver), str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    workers = wait_for(lambda: workers_of(tmp_path), count=2)
    # A terminal sends Ctrl-C to the whole group, an operator SIGTERM to one process.
    send = os.killpg if signum == signal.SIGINT else os.kill
    send(process.pid, signum)
    _, message = process.communicate(timeout=600)
    if signum != signal.SIGKILL:
        assert process.returncode == {signal.SIGTERM: 143}.get(signum, 130)
        assert message.strip().splitlines()[-1] == 'stopped'
        assert 'Traceback' not in message
    wait_for(lambda: [1 for pid in workers if not alive(pid)], count=2)
    assert len(items_done(tmp_path)) < 400


def workers_of(folder):
    texts = [p.read_text().split() for p in folder.glob('item_*')]
    return {int(text[1]) for text in texts if len(text) == 3}


def wait_for(find, *, count):
    deadline = time.monotonic() + 600
    while len(found := find()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        # A child that nobody waited for is dead, but still listed.
        return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except OSError:
        return False


def test_shares_and_devices(monkeypatch):
    assert my_share([1, 2, 3]) == [1, 2, 3]
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert my_share(range(8)) == range(1, 8, 3)
    assert device_of(0, 'cuda:7') == 'cuda:7'
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert device_of(2, None) == 'cpu'
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert [device_of(i, None) for i in range(3)] == ['cuda:0', 'cuda:1', 'cuda:0']


@pytest.mark.parametrize('refused', [False, True])
def test_ranks_do_what_the_first_one_decides(tmp_path, refused):
    mp.spawn(distributed_jobs.run_rank, (2, str(tmp_path), refused), nprocs=2)
    found = [json.loads((tmp_path / f'rank_{r}.json').read_text()) for r in (0, 1)]
    assert [p.name for p in tmp_path.glob('decided_*')] == ['decided_0']
    if refused:
        # Also the rank that never looked into the folder.
        assert found == 2 * [{'refused': 'the folder is full; make room'}]
        return
    first, second = ['a0', 'c0', 'e0', 'g0'], ['b1', 'd1', 'f1']
    assert [rank['mine'] for rank in found] == [first, second]
    assert [rank['all'] for rank in found] == 2 * [first + second]


def test_a_stream_is_never_far_ahead(tmp_path):
    drawn = []

    def endless():
        for item in range(1000):
            drawn.append(item)
            yield [item]

    stream = stream_jobs(partial(fake_jobs.build_doubling, tmp_path), endless(), jobs=2)
    # In order, as the function left them, and few are on their way.
    assert [next(stream) for _ in range(6)] == [[item, 2 * item] for item in range(6)]
    assert len(drawn) < 20
    stream.close()


def test_a_stream_in_this_process(tmp_path):
    build = partial(fake_jobs.build_doubling, tmp_path)
    stream = stream_jobs(build, iter([[1], [2]]))
    assert not list(tmp_path.iterdir())
    assert list(stream) == [[1, 2], [2, 4]]
    assert list(stream_jobs(build, [])) == []
    with pytest.raises(InputError, match='--jobs'):
        next(stream_jobs(build, [[1]], jobs=0))
