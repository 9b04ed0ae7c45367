"""Trainings that are killed, and go on as if nothing had happened."""

import hashlib
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import resumable_run
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from torch.utils.data import BatchSampler, DataLoader

from mmwsss.apis.resumable import find_resumed, resume_newest
from mmwsss.apis.train import build_training
from mmwsss.checkpoints import (
    fits_digest,
    newest_whole_checkpoint,
    read_checkpoint,
)
from mmwsss.datasets import ResumableSampler, SeededDataset
from mmwsss.engine import ResumableTrainLoop
from mmwsss.engine.checkpoint_files import WholeFileBackend, write_pointer
from mmwsss.engine.random_state import random_state, set_random_state
from mmwsss.engine.train_loop import move_sampler
from mmwsss.errors import InputError, Terminated

pytestmark = pytest.mark.mm

# What is not the training's: the clock, and where the files lie.
OTHER = {'time', 'data_time', 'experiment_name', 'cfg', 'last_ckpt', 'best_ckpt'}
OTHER |= {'replaced_ckpts'}


def assert_same(found, expected, name=''):
    """Bit for bit, whatever it is made of."""
    assert type(found) is type(expected), name
    if isinstance(expected, dict):
        assert list(found) == list(expected), name
        for key in expected:
            if str(key).rpartition('/')[2] not in OTHER:
                assert_same(found[key], expected[key], f'{name}.{key}')
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f'{name}.{number}')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), name
    elif isinstance(expected, HistoryBuffer):
        for one, other in zip(found.data, expected.data, strict=True):
            assert one.dtype == other.dtype, name
            assert np.array_equal(one, other), name
    else:
        assert found == expected, name


def assert_same_end(found, expected):
    one, other = (read_checkpoint(Path(d, 'iter_10.pth')) for d in (found, expected))
    assert_same(one, other)
    assert {'random_states', 'position', 'ema_state_dict', 'optimizer'} <= set(one)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Ten iterations without interruption, with a drawn seed and validations."""
    folder = tmp_path_factory.mktemp('whole')
    resumable_run.train(folder)
    return folder


# ------------------------------------------------------------------------------ resume
def test_a_plain_config_resumes_bit_identical_and_loads_no_past_sample(whole, tmp_path):
    stopped = resumable_run.stopped_at(whole, 4, tmp_path / 'run')
    runner = resumable_run.train(stopped, resume=True)
    assert isinstance(runner.train_loop, ResumableTrainLoop)
    assert_same_end(stopped, whole)
    # Two samples in each of the six iterations that were left.
    assert resumable_run.calls(stopped) == resumable_run.calls(whole)[8:]
    assert len(resumable_run.calls(whole)) == 20


def test_workers_change_nothing_and_resume_alike(tmp_path):
    alone = tmp_path / 'alone'
    resumable_run.train(alone, seed=3)
    two = tmp_path / 'two'
    resumable_run.train(two, seed=3, num_workers=2)
    assert_same_end(two, alone)
    stopped = resumable_run.stopped_at(two, 4, tmp_path / 'run')
    resumable_run.train(stopped, seed=3, num_workers=2, resume=True)
    assert_same_end(stopped, alone)
    # Workers read ahead, but begin where the run does.
    done = Counter(resumable_run.calls(alone)[8:])
    assert done <= Counter(resumable_run.calls(stopped))
    assert len(resumable_run.calls(stopped)) <= 12 + 2 * 2 * 2


@pytest.mark.parametrize('drop_last', [False, True])
def test_a_finite_sampler_goes_on_in_its_epoch(drop_last, tmp_path):
    change = {
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_dataloader.drop_last': drop_last,
    }
    given = dict(change=change, batch_size=5)
    resumable_run.train(tmp_path / 'whole', **given)
    stopped = resumable_run.stopped_at(tmp_path / 'whole', 8, tmp_path / 'run')
    runner = resumable_run.train(stopped, **given, resume=True)
    assert isinstance(runner.train_dataloader.sampler, DefaultSampler)
    expected = resumable_run.calls(tmp_path / 'whole')
    # Of nine samples: two batches an epoch, the second of four or left out.
    left = 10 if drop_last else 9
    assert resumable_run.calls(stopped) == expected[-left:]
    assert_same_end(stopped, tmp_path / 'whole')


def test_a_custom_batch_sampler_is_replayed(tmp_path):
    class Pairs(BatchSampler):
        pass

    loader = DataLoader(range(9), batch_sampler=Pairs(range(9), 2, False))
    assert move_sampler(loader, 6, batch_size=2) == (0, 3)


@pytest.mark.parametrize('num_samples', [0, 1, 8, 9, 10, 31])
@pytest.mark.parametrize('drop_last', [False, True])
def test_moved_samplers_agree_with_drawing(num_samples, drop_last):
    def loader():
        sampler = DefaultSampler(range(9), shuffle=True, seed=2)
        return DataLoader(range(9), 2, sampler=sampler, drop_last=drop_last)

    def batches(loader, number, epoch=0):
        found = []
        while len(found) < number:
            found += [b.tolist() for b in loader]
            epoch += 1
            loader.sampler.set_epoch(epoch)
        return found[:number]

    past = num_samples // 2
    expected = batches(loader(), past + 12)[past:]
    moved = loader()
    epoch, to_drop = move_sampler(moved, num_samples, batch_size=2)
    assert to_drop == 0
    assert batches(moved, 12, epoch) == expected


def test_a_stream_begins_anywhere_at_once():
    def stream(skipped):
        sampler = ResumableSampler(SeededDataset(dataset=range(7)), seed=1)
        sampler.skip(skipped)
        numbers = iter(sampler)
        return [(int(i), i.seed) for i in (next(numbers) for _ in range(9))]

    assert stream(5)[:4] == stream(0)[5:]
    # Drawing what comes before would take hours.
    assert stream(10**12)[3:] == stream(10**12 + 3)[:6]


def test_a_bare_data_set_is_refused():
    with pytest.raises(InputError, match=r'mmwsss\.SeededDataset'):
        ResumableSampler(range(7))


def test_samples_here_leave_the_random_numbers_alone(tmp_path):
    data = SeededDataset(
        dataset=dict(type='NoisyNumbers', size=5, calls=str(tmp_path / 'calls'))
    )
    sampler = ResumableSampler(data, seed=4)
    first = next(iter(sampler))
    before = random_state()
    sample = data[first]
    assert_same(random_state(), before)
    random.random()
    assert torch.equal(data[first]['inputs'], sample['inputs'])
    assert data.metainfo['classes'] == ('background', 'disc')


def test_all_random_numbers_come_back():
    def draw():
        return random.gauss(0, 1), np.random.normal(), torch.rand(2).tolist()

    draw()
    state = random_state()
    expected = [draw() for _ in range(3)]
    set_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_other_batches_go_on_after_the_samples_seen(whole, tmp_path, caplog):
    stopped = resumable_run.stopped_at(whole, 4, tmp_path / 'run')
    change = {'train_cfg.max_iters': 6, 'log_level': 'WARNING'}
    with caplog.at_level('WARNING'):
        runner = resumable_run.train(stopped, resume=True, batch_size=3, change=change)
    assert resumable_run.calls(stopped) == resumable_run.calls(whole)[8:14]
    assert runner.train_loop.position(6)['samples'] == 14


@pytest.mark.slow
def test_two_processes_resume_bit_identical_and_one_goes_on(tmp_path):
    mp.spawn(resumable_run.run_rank, (2, str(tmp_path)), nprocs=2)
    assert_same_end(tmp_path / 'resumed', tmp_path / 'whole')
    saved = read_checkpoint(tmp_path / 'whole/iter_4.pth')
    assert saved['position'].items() >= dict(samples=16, world_size=2).items()
    first, second = saved['random_states']
    assert not torch.equal(first['torch'], second['torch'])
    stopped = resumable_run.stopped_at(tmp_path / 'whole', 4, tmp_path / 'one')
    runner = resumable_run.train(
        stopped, resume=True, change={'train_cfg.max_iters': 6}
    )
    past = resumable_run.calls(tmp_path / 'whole')[:16]
    # Both wrote into one file, so the order among the two is not known.
    whole_stream = Counter(resumable_run.calls(tmp_path / 'whole'))
    assert Counter(past) + Counter(resumable_run.calls(stopped)) <= whole_stream
    assert runner.train_loop.position(6)['samples'] == 20


def test_a_work_dir_goes_before_other_weights(whole, tmp_path):
    other = str(whole / 'iter_10.pth')
    stopped = resumable_run.stopped_at(whole, 8, tmp_path / 'run')

    def taken(load_from, folder=stopped):
        cfg = Config(dict(work_dir=str(folder), load_from=load_from))
        resume_newest(cfg)
        return cfg.load_from

    assert taken(None) == taken(other) == str(stopped / 'iter_8.pth')
    # One of its own was asked for by name.
    assert taken(str(stopped / 'iter_4.pth')) == str(stopped / 'iter_4.pth')
    assert taken(other, tmp_path / 'new') == other
    assert taken(None, tmp_path / 'new') is None


def test_added_up_gradients_that_would_be_lost_are_told(tmp_path):
    told = []

    def warn(runner):
        runner.logger.warning = lambda text, *given: told.append(text % given)
        return runner

    for number, expected in ((2, 0), (3, 1)):
        change = {'optim_wrapper.accumulative_counts': number}
        cfg = resumable_run.config(tmp_path / str(number))
        cfg.merge_from_dict(change)
        warn(build_training(cfg)).train()
        lines = [line for line in told if 'added up' in line]
        assert len(lines) == expected


def test_a_validation_that_was_cut_off_is_made_once(tmp_path):
    """A checkpoint is written before it, and again when it found the best score."""
    best = dict(save_best='score', rule='greater')
    resumable_run.train(tmp_path / 'whole', **best)
    scores = {}
    for folder in ('whole', 'before', 'after'):
        run = tmp_path / folder
        if folder != 'whole':
            resumable_run.stopped_at(tmp_path / 'whole', 8, run)
        if folder == 'before':
            # As it was first written.
            path = run / 'iter_8.pth'
            content = torch.load(path, weights_only=True)
            assert content['validated'] is True
            content['validated'] = False
            log = content['message_hub']['log_scalars']['val/score']
            log['log'], log['counts'] = log['log'][:-1], log['counts'][:-1]
            torch.save(content, path)
            path.with_name('iter_8.pth.sha256').unlink()
        if folder != 'whole':
            resumable_run.train(run, resume=True, **best)
        hub = read_checkpoint(run / 'iter_10.pth')['message_hub']
        scores[folder] = hub['log_scalars']['val/score'].data[0].tolist()
    assert list(map(int, scores['whole'])) == [0, 1, 2, 3, 4]
    assert scores['before'] == scores['after'] == scores['whole']


# ------------------------------------------------------------------------ whole or not
def die_inside(point, work_dir):
    """Train on in a child that is killed at its n-th step to the disk."""
    child = os.fork()
    if child == 0:
        left = [point]

        def deadly(function):
            def call(*given):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*given)

            return call

        os.replace, os.fsync = deadly(os.replace), deadly(os.fsync)
        try:
            resumable_run.train(work_dir, resume=True, max_keep_ckpts=1)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_killed_anywhere_inside_a_save_loses_nothing(whole, tmp_path):
    """A save takes eight steps: four syncs of files and folders, three renames."""
    seen = set()
    for point in range(9):
        folder = resumable_run.stopped_at(whole, 4, tmp_path / f'{point}')
        status = die_inside(point, folder)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        found, passed = newest_whole_checkpoint(folder)
        assert not passed
        assert found.name in ('iter_4.pth', 'iter_8.pth')
        assert read_checkpoint(found)['meta']['iter'] in (4, 8)
        seen.add(found.name)
        if point in (1, 3, 5):
            assert list(folder.glob('.saving-*'))
            # Of another checkpoint, which this run does not come by.
            (folder / '.saving-iter_3.pth').touch()
            resumable_run.train(folder, resume=True, max_keep_ckpts=1)
            assert_same_weights(folder, whole)
            names = {p.name for p in folder.glob('*.pth*')}
            assert names == {'iter_10.pth', 'iter_10.pth.sha256'}
            assert not list(folder.glob('.saving-*'))
    assert seen == {'iter_4.pth', 'iter_8.pth'}


def assert_same_weights(found, expected):
    one, other = (read_checkpoint(Path(d, 'iter_10.pth')) for d in (found, expected))
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'random_states'):
        assert_same(one[part], other[part])


def cut(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def other_digest(path):
    flip(path.with_name(path.name + '.sha256'))


def empty_digest(path):
    path.with_name(path.name + '.sha256').write_bytes(b'')


def cut_without_digest(path):
    cut(path)
    path.with_name(path.name + '.sha256').unlink()


def flip_without_digest(path):
    flip(path)
    path.with_name(path.name + '.sha256').unlink()


@pytest.mark.parametrize(
    'spoil',
    [
        cut,
        flip,
        other_digest,
        empty_digest,
        cut_without_digest,
        flip_without_digest,
        os.remove,
    ],
)
def test_the_checkpoint_before_a_spoilt_one_is_used(spoil, whole, tmp_path, capsys):
    folder = resumable_run.stopped_at(whole, 8, tmp_path / 'run')
    spoil(folder / 'iter_8.pth')
    assert find_resumed(folder) == folder / 'iter_4.pth'
    said = capsys.readouterr().out
    assert said.count('\n') == 1
    assert said.startswith('iter_8.pth in ')
    assert 'going on from iter_4.pth' in said
    if spoil is flip:
        with pytest.raises(InputError, match=r'not the file that iter_8\.pth\.sha256'):
            read_checkpoint(folder / 'iter_8.pth')
        resumable_run.train(folder, resume=True)
        assert_same_end(folder, whole)
        spoil(folder / 'iter_4.pth')
        spoil(folder / 'iter_10.pth')
        spoil(folder / 'iter_8.pth')
        with pytest.raises(InputError, match=r'no checkpoint in .* is whole'):
            find_resumed(folder)


def test_checkpoints_of_an_earlier_training_are_not_taken(whole, tmp_path):
    """In the same folder: one of more iterations, and one from between."""
    folder = resumable_run.stopped_at(whole, 8, tmp_path / 'run')
    # The last of them is of this training, but was not called saved yet.
    for number, time in ((6, 1), (9000, 1), (12, 2**32)):
        other = shutil.copy(folder / 'iter_4.pth', folder / f'iter_{number}.pth')
        os.utime(other, (time, time))
    assert find_resumed(folder).name == 'iter_8.pth'
    cut(folder / 'iter_8.pth')
    assert find_resumed(folder).name == 'iter_4.pth'
    # A torn pointer says nothing, so that the newest is taken.
    (folder / 'last_checkpoint').write_bytes(b'')
    assert find_resumed(folder).name == 'iter_12.pth'
    (folder / 'last_checkpoint').unlink()
    assert find_resumed(folder) is None


def test_digests_are_those_of_the_files_and_go_with_them(tmp_path):
    resumable_run.train(tmp_path, max_keep_ckpts=2, save_best='score', rule='greater')
    names = sorted(p.name for p in tmp_path.glob('*.pth'))
    # Each validation was the best one.
    assert names == ['best_score_iter_10.pth', 'iter_10.pth', 'iter_8.pth']
    for name in names:
        digest, named = (tmp_path / f'{name}.sha256').read_text().split()
        content = (tmp_path / name).read_bytes()
        assert (digest, named) == (hashlib.sha256(content).hexdigest(), name)
    assert len(list(tmp_path.glob('*.sha256'))) == 3
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'iter_10.pth'


def test_a_file_is_exchanged_and_not_written_over(tmp_path):
    path = tmp_path / 'a.pth'
    backend = WholeFileBackend()
    backend.put(b'old', path)
    with path.open('rb') as before:
        backend.put(b'new and longer', path)
        assert before.read() == b'old'
    assert path.read_bytes() == b'new and longer'
    assert fits_digest(path)
    write_pointer(tmp_path / 'last_checkpoint', 'old')
    with (tmp_path / 'last_checkpoint').open() as before:
        write_pointer(tmp_path / 'last_checkpoint', 'new')
        assert before.read() == 'old'


def test_a_new_file_is_not_judged_by_the_digest_of_the_old_one(tmp_path, monkeypatch):
    path, replace = tmp_path / 'a.pth', os.replace
    backend = WholeFileBackend()
    backend.put(b'old', path)

    def once(old, new):
        if os.fspath(new).endswith('.sha256'):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, 'replace', once)
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', path)
    assert path.read_bytes() == b'new'
    assert fits_digest(path)


def test_what_is_removed_last_may_have_been_written_anew(tmp_path):
    backend = WholeFileBackend()
    for name in ('a.pth', 'b.pth'):
        backend.put(b'old', tmp_path / name)
    with backend.removing_last():
        backend.remove(tmp_path / 'a.pth')
        backend.remove(tmp_path / 'b.pth')
        assert (tmp_path / 'b.pth').exists()
        backend.put(b'new', tmp_path / 'a.pth')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'a.pth.sha256']
    assert (tmp_path / 'a.pth').read_bytes() == b'new'


def test_nothing_is_called_saved_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """Renamed first, a file may be empty after a power cut."""
    order = []
    for name in ('fsync', 'replace'):
        call = getattr(os, name)

        def noted(*given, name=name, call=call):
            order.append(name)
            return call(*given)

        monkeypatch.setattr(os, name, noted)
    WholeFileBackend().put(b'x', tmp_path / 'a.pth')
    assert order == ['fsync', 'fsync', 'replace', 'replace', 'fsync']


def test_the_best_stays_until_a_better_one_is_written(tmp_path, monkeypatch):
    put = WholeFileBackend.put

    def full_disk(self, content, path):
        if 'best_score_iter_6' in path:
            raise InputError('no room')
        put(self, content, path)

    monkeypatch.setattr(WholeFileBackend, 'put', full_disk)
    with pytest.raises(InputError, match='no room'):
        resumable_run.train(tmp_path, save_best='score', rule='greater')
    assert (tmp_path / 'best_score_iter_4.pth').exists()


def test_a_full_disk_is_one_sentence_and_leaves_the_last_one(
    whole, tmp_path, monkeypatch
):
    folder = resumable_run.stopped_at(whole, 4, tmp_path / 'run')

    def full(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(InputError, match=r'iter_8\.pth cannot be written .*No space'):
        resumable_run.train(folder, resume=True)
    assert newest_whole_checkpoint(folder)[0].name == 'iter_4.pth'
    assert not list(folder.glob('.saving-*'))


BEST = dict(save_best='score', rule='greater', max_keep_ckpts=2)


def names(folder):
    return sorted(p.name for p in folder.glob('*.pth*'))


def cut_off_at(call, folder, monkeypatch):
    """Train until a call that satisfies ``call`` of the backend's put and remove."""
    with monkeypatch.context() as patch:
        for name in ('put', 'remove'):
            plain = getattr(WholeFileBackend, name)

            def checked(self, *given, name=name, plain=plain):
                if call(self, name, Path(given[-1]).name):
                    raise KeyboardInterrupt
                return plain(self, *given)

            patch.setattr(WholeFileBackend, name, checked)
        with pytest.raises(KeyboardInterrupt):
            resumable_run.train(folder, **BEST)


def test_what_a_killed_run_would_have_removed_goes_when_it_goes_on(
    tmp_path, monkeypatch
):
    resumable_run.train(tmp_path / 'whole', **BEST)

    def last_removal(backend, name, file):
        at_end = backend._removed is None
        return name == 'remove' and file == 'best_score_iter_8.pth' and at_end

    run = tmp_path / 'run'
    cut_off_at(last_removal, run, monkeypatch)
    assert 'best_score_iter_8.pth' in names(run)
    assert 'best_score_iter_10.pth' in names(run)
    resumable_run.train(run, resume=True, **BEST)
    assert names(run) == names(tmp_path / 'whole')


def test_a_last_validation_made_after_a_resume_is_in_the_checkpoint(
    tmp_path, monkeypatch
):
    seen = []

    def second_save(backend, name, file):
        seen.extend([file] * (name == 'put'))
        return seen.count('iter_10.pth') == 2

    run = tmp_path / 'run'
    cut_off_at(second_save, run, monkeypatch)
    before = read_checkpoint(run / 'iter_10.pth')
    assert not before['validated']
    resumable_run.train(run, resume=True, **BEST)
    after = read_checkpoint(run / 'iter_10.pth')
    assert after['validated']
    scores = after['message_hub']['log_scalars']['val/score'].data[0]
    assert list(map(int, scores)) == [0, 1, 2, 3, 4]


def test_sigterm_stops_where_no_gradients_are_waiting(tmp_path):
    """And what was added up until then is in the weights."""
    change = {'optim_wrapper.accumulative_counts': 3, 'train_cfg.max_iters': 9}
    calls = []

    class Sends(Hook):
        def after_train_iter(self, runner, *_, **__):
            calls.append(runner.iter)
            if runner.iter == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    cfg = resumable_run.config(tmp_path / 'run', interval=100)
    cfg.merge_from_dict(change)
    runner = build_training(cfg)
    runner.register_hook(Sends())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        runner.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert calls == [0, 1, 2, 3, 4, 5]
    assert find_resumed(tmp_path / 'run').name == 'iter_6.pth'
