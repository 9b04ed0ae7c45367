"""Whole trainings through tools/train.py and tools/dist_train.sh, at toy size."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch

from mmwsss.apis.inferencer import WSSSInferencer
from mmwsss.apis.make_pseudo_labels import make_pseudo_labels_command
from mmwsss.apis.train import test_command as run_test_command
from mmwsss.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return tiny_run.draw(tmp_path_factory.mktemp('data'))


def gated(data_root, **options):
    """All parts and hooks on, each strong enough to be seen in the weights."""
    content = tiny_run.add_monitors(tiny_run.gated_config(data_root, **options))
    model = content['model']
    model['labeler']['gate'].update(
        ignore_below=0.55, drop_agreed_below=0.75, momentum=0.5
    )
    model['decode_head']['loss_cross']['use_gates'] = True
    # Both are means over as many places as the labels or the teacher give.
    model['decode_head']['loss_energy'].update(loss_weight=1.0, band_width=2)
    model['loss_teacher'].update(loss_weight=50.0, threshold=0.4)
    for hook in content['custom_hooks']:
        if 'gate_start' in hook:
            hook.update(gate_start=0.6, gate_end=0.8)
    return content


CONFIGS = {'plain': tiny_run.config, 'gated': gated}


def checkpoint(work_dir, iteration):
    path = work_dir / f'iter_{iteration}.pth'
    return torch.load(path, map_location='cpu', weights_only=True)


def weights(work_dir, iteration):
    return checkpoint(work_dir, iteration)['state_dict']


def assert_finished(result):
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope='module')
def whole_runs(data_root, tmp_path_factory):
    """Eight iterations without interruption, run when first asked for."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        content = CONFIGS[name](data_root)
        path = tiny_run.write_config(folder / 'tiny.py', content)
        assert_finished(tiny_run.train(path, folder / 'run'))
        return path, folder / 'run'

    return run


@pytest.fixture
def whole_run(whole_runs):
    return whole_runs('plain')


@pytest.mark.parametrize('name', CONFIGS)
def test_killed_and_resumed_run_ends_bit_identical(name, whole_runs, tmp_path):
    path, finished = whole_runs(name)
    command = [sys.executable, str(tiny_run.ROOT / 'tools/train.py'), str(path)]
    process = subprocess.Popen(
        [*command, '--work-dir', str(tmp_path)],
        env=tiny_run.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    marker = tmp_path / 'last_checkpoint'
    deadline = time.monotonic() + 900
    while not (marker.exists() and 'iter_4' in marker.read_text()):
        assert process.poll() is None, 'the run ended before it could be killed'
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'iter_8.pth').exists()
    assert_finished(tiny_run.train(path, tmp_path, '--resume'))
    expected, ours = weights(finished, 8), weights(tmp_path, 8)
    assert expected.keys() == ours.keys()
    for key in expected:
        assert torch.equal(expected[key], ours[key]), key
    assert probes(tmp_path) == probes(finished)


def probes(work_dir):
    """What the probe hook has put into the last checkpoint's log."""
    scalars = checkpoint(work_dir, 8)['message_hub']['log_scalars']
    return {k: v['log'].tolist() for k, v in scalars.items() if 'probe' in k}


def test_gated_run_uses_all_its_parts(whole_runs):
    """What the comparisons with this run are worth."""
    _, finished = whole_runs('gated')
    lines = loss_lines(finished)
    for name in ('repaired', 'dropped', 'kept', 'foreground', 'ignored'):
        assert max(line[f'label.{name}_share'] for line in lines) > 0.02, name
    losses = ('decode.loss_boundary', 'decode.loss_energy', 'decode.loss_cross')
    for name in (*losses, 'teacher.loss_consistency'):
        assert all(line[name] > 0 for line in lines[3:]), name
    state = weights(finished, 8)
    # Each of the eight photos has left something, and later visits found it.
    assert (state['labeler.gate.history.bank'].flatten(1).amax(1) > 0).sum() >= 8
    assert any(abs(line['label.temporal_mean'] - 0.5) > 0.05 for line in lines[4:])
    assert state['labeler.gate.class_means'].std() > 0.01
    assert state['labeler.gate.schedule'][0] == 2
    head = {k for k in state if k.startswith('decode_head')}
    teacher = {k.replace('decode', 'teacher', 1) for k in head}
    assert teacher < set(state)
    early = weights(finished, 2)
    assert any(not torch.equal(state[k], early[k]) for k in teacher)
    assert [len(values) for values in probes(finished).values()] == [4] * 4
    pictures = finished.glob('*/vis_data/vis_image/pseudo_labels_*.png')
    assert sorted(p.stem for p in pictures) == ['pseudo_labels_3', 'pseudo_labels_6']


def test_training_changes_the_head_and_saves_no_frozen_weight(whole_run):
    _, finished = whole_run
    before, after = weights(finished, 2), weights(finished, 8)
    assert not [name for name in after if name.startswith('backbone')]
    changed = [n for n in after if not torch.equal(before[n], after[n])]
    assert any(name.startswith('decode_head.blocks') for name in changed)
    assert any(name.startswith('cam_source') for name in changed)


def test_number_of_workers_changes_nothing(whole_run, data_root, tmp_path):
    _, finished = whole_run
    content = tiny_run.config(data_root, num_workers=2)
    path = tiny_run.write_config(tmp_path / 'workers.py', content)
    assert_finished(tiny_run.train(path, tmp_path / 'run'))
    expected, ours = weights(finished, 8), weights(tmp_path / 'run', 8)
    for name in expected:
        assert torch.equal(expected[name], ours[name]), name


def test_unreadable_masks_do_not_matter(data_root, whole_run, tmp_path):
    _, finished = whole_run
    root = tiny_run.draw(tmp_path / 'data')
    for mask in (root / 'SegmentationClass').iterdir():
        mask.write_bytes(b'no mask')
    path = tiny_run.write_config(tmp_path / 'tiny.py', tiny_run.config(root))
    assert_finished(tiny_run.train(path, tmp_path / 'run'))
    expected, ours = weights(finished, 8), weights(tmp_path / 'run', 8)
    for name in expected:
        assert torch.equal(expected[name], ours[name]), name


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def logged(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def loss_lines(work_dir):
    """One line an iteration, without those of single hooks."""
    return [line for line in logged(work_dir) if 'loss' in line]


def first_probe(work_dir):
    return [line for line in logged(work_dir) if 'probe/refined_miou' in line][:1]


def train_on_two(config_file, work_dir, *options):
    """Run tools/dist_train.sh with two processes to the end."""
    script = str(tiny_run.ROOT / 'tools/dist_train.sh')
    return subprocess.run(
        ['bash', script, str(config_file), '2', '--work-dir', str(work_dir), *options],
        env={
            **tiny_run.environment(),
            'PYTHON': sys.executable,
            'PORT': str(free_port()),
            'CUDA_VISIBLE_DEVICES': '',
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope='module')
def shared_runs(data_root, tmp_path_factory):
    """A training in one process, and in two with half the batch each."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(f'shared_{name}')
        for number, batch_size in (('one', 4), ('two', 2)):
            content = CONFIGS[name](data_root, batch_size=batch_size)
            # Every process draws its own dropout, so it has to be off for this.
            content['model']['decode_head']['dropout_ratio'] = 0.0
            # Adam scales every gradient to one size, also those that are zero but for
            # rounding (the bias of an attention's keys), so plain SGD it is.
            sgd = dict(type='SGD', lr=0.05, momentum=0.9)
            content['optim_wrapper']['optimizer'] = sgd
            tiny_run.write_config(folder / f'{number}.py', content)
        assert_finished(tiny_run.train(folder / 'one.py', folder / 'one'))
        assert_finished(train_on_two(folder / 'two.py', folder / 'two'))
        return folder

    return run


@pytest.mark.parametrize('config', CONFIGS)
def test_two_processes_equal_one_with_the_doubled_batch(config, shared_runs):
    folder = shared_runs(config)
    one, two = loss_lines(folder / 'one'), loss_lines(folder / 'two')
    assert len(one) == 8
    for number, (first, second) in enumerate(zip(one, two, strict=True)):
        # Labels are cut at thresholds: once rounding moves one pixel over the edge
        # the runs drift apart slowly, so only the first iterations are exact.
        tolerance = 1e-5 if number < 2 else 2e-3
        names = [n for n in first if 'loss' in n or n == 'grad_norm']
        assert len(names) > 5
        for name in names:
            assert second[name] == pytest.approx(first[name], abs=tolerance), name
    # The probe shares its photos among the processes; nothing is trained yet.
    assert first_probe(folder / 'two') == first_probe(folder / 'one')
    assert bool(first_probe(folder / 'one')) == (config == 'gated')
    # Later the photos' history counts, of which each of the two has a half.
    found = probes(folder / 'two')
    for name, values in probes(folder / 'one').items():
        assert found[name] == pytest.approx(values, abs=0.5), name
    for iteration, tolerance in ((2, 1e-6), (8, 2e-3)):
        theirs = weights(folder / 'two', iteration)
        for name, value in weights(folder / 'one', iteration).items():
            torch.testing.assert_close(
                theirs[name], value, atol=tolerance, rtol=1e-4, msg=name
            )


def stopped_after_four(work_dir, folder):
    """A run's work dir as it was after four iterations."""
    folder.mkdir()
    kept = shutil.copy(work_dir / 'iter_4.pth', folder)
    (folder / 'last_checkpoint').write_text(str(kept))
    return folder


def test_a_run_of_two_processes_goes_on_in_two_or_in_one(shared_runs, tmp_path):
    """Each of the two holds half of the history; the checkpoint has all of it."""
    folder = shared_runs('gated')
    two = stopped_after_four(folder / 'two', tmp_path / 'two')
    assert_finished(train_on_two(folder / 'two.py', two, '--resume'))
    expected, found = weights(folder / 'two', 8), weights(two, 8)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert probes(two) == probes(folder / 'two')
    one = stopped_after_four(folder / 'two', tmp_path / 'one')
    assert_finished(tiny_run.train(folder / 'one.py', one, '--resume'))
    expected, found = weights(folder / 'two', 6), weights(one, 6)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    bank = 'labeler.gate.history.bank'
    assert torch.equal(found[bank], expected[bank])
    assert not torch.equal(found[bank], weights(one, 4)[bank])


def assert_one_sentence(result, *parts):
    assert result.returncode == 1
    lines = [x for x in result.stderr.splitlines() if x.startswith('error: ')]
    assert len(lines) == 1, result.stderr[-2000:]
    for part in parts:
        assert part in lines[0]
    assert 'Traceback' not in result.stderr


def test_truncated_photo_stops_the_run_and_loses_nothing(tmp_path):
    root = tiny_run.draw(tmp_path / 'data')
    photo = root / 'JPEGImages' / 'photo_3.jpg'
    photo.write_bytes(photo.read_bytes()[:-300])
    content = tiny_run.config(root, num_workers=1)
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    kept = tmp_path / 'run' / 'iter_2.pth'
    kept.parent.mkdir()
    kept.write_bytes(b'an earlier result')
    assert_one_sentence(tiny_run.train(path, kept.parent), 'photo_3.jpg', 'truncated')
    assert kept.read_bytes() == b'an earlier result' or kept.stat().st_size > 1000


def test_missing_data_set_and_config_are_one_sentence(tmp_path):
    content = tiny_run.config(tmp_path / 'nowhere')
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    result = tiny_run.train(path, tmp_path / 'run')
    assert_one_sentence(result, str(tmp_path / 'nowhere'), 'prepare_data.py')
    assert not list(tmp_path.glob('run/*.pth'))
    result = tiny_run.train(tmp_path / 'absent.py', tmp_path / 'run')
    assert_one_sentence(result, 'absent.py')


def test_missing_weights_are_one_sentence(data_root, tmp_path):
    content = tiny_run.config(data_root)
    encoders = content['model']['backbone']['encoders']
    encoders['a']['weights'] = str(tmp_path / 'absent.safetensors')
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    assert_one_sentence(tiny_run.train(path, tmp_path / 'run'), 'absent.safetensors')


@pytest.mark.parametrize('mistake', ['no entry', 'unknown class'])
def test_wrong_labels_are_one_sentence(mistake, tmp_path):
    root = tiny_run.draw(tmp_path / 'data')
    file = root / 'image_labels.json'
    content = json.loads(file.read_text())
    if mistake == 'no entry':
        del content['labels']['photo_5']
    else:
        content['labels']['photo_5'] = ['unicorn']
    file.write_text(json.dumps(content))
    path = tiny_run.write_config(tmp_path / 'tiny.py', tiny_run.config(root))
    expected = ['photo_5'] + (['unicorn'] if mistake == 'unknown class' else [])
    assert_one_sentence(tiny_run.train(path, tmp_path / 'run'), *expected)
    assert not os.path.exists(tmp_path / 'run' / 'last_checkpoint')


def test_a_forgotten_hook_is_one_sentence(data_root, tmp_path):
    content = CONFIGS['gated'](data_root)
    content['custom_hooks'] = content['custom_hooks'][:2]
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    result = tiny_run.train(path, tmp_path / 'run')
    assert_one_sentence(result, 'ReliabilityGatedPseudoLabelHook', 'custom_hooks')
    assert not list(tmp_path.glob('run/*.pth'))


def test_profile_tells_where_time_goes_and_changes_nothing(whole_run, tmp_path):
    path, folder = whole_run
    result = tiny_run.train(path, tmp_path / 'run', '--profile', '2')
    assert_finished(result)
    assert 'Self CPU time total' in result.stdout
    assert 'aten::' in result.stdout
    expected, ours = weights(folder, 8), weights(tmp_path / 'run', 8)
    for name in expected:
        assert torch.equal(expected[name], ours[name]), name
    result = tiny_run.train(path, tmp_path / 'other', '--profile', '1000')
    assert_one_sentence(result, '--profile 1000 needs a training of 1005 iterations')
    assert not (tmp_path / 'other').exists()


def evil_run(work_dir, folder, marker, kind):
    """A run's work dir whose last checkpoint would write a file."""
    folder = stopped_after_four(work_dir, folder)
    path = folder / 'iter_4.pth'
    content = torch.load(path, weights_only=True)
    if kind == 'pickle':
        content['meta']['hook_msgs'] = WritesAFile(marker)
    else:
        content['meta']['config'] = f'a = open({str(marker)!r}, "w").write("x")'
    torch.save(content, path)
    return folder, path


class WritesAFile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, 'was here')


@pytest.mark.parametrize('kind', ['pickle', 'config text'])
def test_no_tool_runs_what_hides_in_a_checkpoint(
    kind, whole_run, data_root, tmp_path, monkeypatch
):
    content = tiny_run.config(data_root)
    loader = tiny_run.eval_loader(content)
    content.update(
        train_eval_dataloader=loader,
        test_dataloader=loader,
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        test_cfg=dict(type='TestLoop'),
    )
    config = str(tiny_run.write_config(tmp_path / 'tiny.py', content))
    marker = tmp_path / 'marker'
    folder, path = evil_run(whole_run[1], tmp_path / 'run', marker, kind)
    result = tiny_run.train(config, folder, '--resume')
    assert_one_sentence(result, 'iter_4.pth', 'nothing was run', '--trust')
    given = {
        run_test_command: [config, str(path), '--work-dir', str(tmp_path / 'test')],
        make_pseudo_labels_command: [
            *(config, '--checkpoint', str(path), '--out', str(tmp_path / 'labels'))
        ],
    }
    for command, arguments in given.items():
        monkeypatch.setattr(sys, 'argv', ['tool', *arguments])
        with pytest.raises(InputError, match='nothing was run'):
            command()
    with pytest.raises(InputError, match='nothing was run'):
        WSSSInferencer(config, path)
    assert not marker.exists()
