"""Bad input gets one clear sentence and loses nothing: where each kind is tested.

The rows are the lines of the design page's section on bad input. A row names a test
and words that the test expects of the message; that the test is there, and has them,
is checked here. Tests that belong nowhere else are below.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from mmengine.config import Config
from PIL import Image

from mmwsss.apis.cli import find_sentence, run_tool
from mmwsss.apis.train import build_training
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
TESTS = Path(__file__).resolve().parent

# File -> what is wrong, the test, words that it expects of the message or is given.
ROWS = {
    'datasets/test_image_label_dataset.py': [
        ('missing data set', 'test_missing_root_names_the_command', 'does not exist'),
        (
            'image without label entry',
            'test_photo_without_an_entry_is_named',
            'has no entry',
        ),
    ],
    'tools/test_train.py': [
        (
            'missing weights',
            'test_missing_weights_are_one_sentence',
            'absent.safetensors',
        ),
        (
            'truncated JPEG in a training',
            'test_truncated_photo_stops_the_run_and_loses_nothing',
            'truncated',
        ),
    ],
    'datasets/test_image_labels.py': [
        (
            'label with an unknown class',
            'test_malformed_files_are_one_sentence',
            'unknown class',
        ),
    ],
    'datasets/test_transforms.py': [
        ('mask of another size', 'test_wrong_masks_are_named', 'its photo 6x4'),
        ('id out of range', 'test_wrong_masks_are_named', 'holds the value 7'),
        (
            'truncated JPEG',
            'test_truncated_empty_and_missing_photos_are_named',
            'is truncated or damaged',
        ),
        ('16-bit', 'test_other_modes_become_the_same_grey', 'I;16'),
        ('grey', 'test_other_modes_become_the_same_grey', 'LA'),
        ('RGBA', 'test_other_modes_become_the_same_grey', 'RGBA'),
        ('palette', 'test_other_modes_become_the_same_grey', "'P'"),
        ('CMYK', 'test_cmyk_and_exif_rotation', 'CMYK'),
        ('EXIF rotation', 'test_cmyk_and_exif_rotation', 'exif'),
    ],
    'apis/test_label.py': [
        (
            'truncated JPEG in label',
            'test_a_folder_becomes_masks_and_a_manifest',
            'unreadable',
        ),
    ],
    'models/test_cam_classifier.py': [
        (
            'an image with no object',
            'test_any_photo_and_label_give_finite_maps_in_range',
            '(0, 0, 0)',
        ),
        ('one class only', 'test_a_single_class_is_enough', 'num_classes=1'),
        (
            'images smaller than a patch',
            'test_any_photo_and_label_give_finite_maps_in_range',
            '(1, 1)',
        ),
    ],
    'tools/test_binary_data.py': [
        (
            'one class only, from photos on',
            'test_one_class_from_photos_to_a_segmentor',
            '',
        ),
    ],
    'models/test_segmentor.py': [
        (
            'a batch without foreground',
            'test_losses_and_gradients_are_finite_for_any_image_label',
            '',
        ),
    ],
    'models/test_sipe.py': [
        (
            'a batch without foreground, SIPE',
            'test_losses_and_gradients_are_finite_for_any_image_label',
            '(0, 0, 0), (0, 0, 0)',
        ),
    ],
    'apis/test_inferencer.py': [
        ('images smaller than a patch, label', 'test_tiny_photos', '(1, 1)'),
    ],
    'test_bad_input.py': [
        (
            'images of any size in a training',
            'test_photos_of_any_size_are_trained_on',
            '4000',
        ),
        (
            'truncated JPEG, left out of a training',
            'test_unreadable_photos_are_left_out_and_never_swapped',
            'list all such photos by',
        ),
        (
            'NaN loss',
            'test_a_loss_that_is_no_number_stops_with_a_good_checkpoint',
            'the loss of iteration 5 is not finite',
        ),
    ],
    'apis/test_outputs.py': [
        (
            'truncated JPEG in a tool that makes a file per photo',
            'test_photos_that_cannot_be_read_are_left_out_and_listed',
            'more than --max-unreadable 1',
        ),
    ],
    'models/test_encoders_clip.py': [
        (
            'a wrong number of prompts',
            'test_wrong_number_of_prompts_is_named',
            'given 3 class_names',
        ),
    ],
    'faults/test_faults.py': [
        ('a full disk', 'test_disks', 'disk_full'),
        (
            'two processes writing the same store',
            'test_two_labels_at_once_do_not_write_over_each_other',
            'makes masks in',
        ),
        ('SIGTERM at any moment', 'test_ends_of_processes', 'terminated'),
        (
            'kill -9 at any moment',
            'test_killed_inside_saves_it_ends_as_undisturbed',
            '',
        ),
    ],
}


@pytest.mark.parametrize(
    ('file', 'name', 'words'),
    [
        pytest.param(file, *row[1:], id=row[0])
        for file, rows in ROWS.items()
        for row in rows
    ],
)
def test_every_line_has_its_test(file, name, words):
    text = (TESTS / file).read_text()
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(found) == 1, f'{file} has no test {name}'
    begin = min([found[0].lineno, *(d.lineno for d in found[0].decorator_list)])
    lines = text.splitlines()[begin - 1 : found[0].end_lineno]
    said = ' '.join(''.join(lines).split())
    assert ' '.join(words.split()).replace(' ', '') in said.replace(' ', '')


def config(root, tmp_path, **changes):
    """A training of the toy network in this process."""
    content = Config(tiny_run.config(root) | changes)
    content.work_dir = str(tmp_path / 'run')
    content.default_scope = 'mmseg'
    return content


def test_photos_of_any_size_are_trained_on(tmp_path):
    """Smaller than a patch and 4000 x 3000, in one batch."""
    root = tiny_run.draw(tmp_path / 'data', num_photos=2)
    generator = np.random.default_rng(0)
    for number, size in enumerate([(3, 2), (3000, 4000)]):
        noise = generator.integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(noise).save(root / f'JPEGImages/photo_{number}.jpg')
    content = config(root, tmp_path)
    content.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    for name in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            content[f'{name}_{part}'] = None
    runner = build_training(content)
    model = runner.train()
    assert runner.iter == 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_unreadable_photos_are_left_out_and_never_swapped(tmp_path):
    """Whatever the number of workers, and resumed, as if they had never been listed."""
    root = tiny_run.draw(tmp_path / 'data')
    photo = root / 'JPEGImages/photo_3.jpg'
    photo.write_bytes(photo.read_bytes()[:-300])
    (root / 'broken.txt').write_text('photo_3\n')

    def train(name, *, num_workers=0, resume=False, **changes):
        content = config(root, tmp_path, val_dataloader=None)
        content.train_cfg = dict(type='IterBasedTrainLoop', max_iters=6)
        content.work_dir = str(tmp_path / name)
        content.train_dataloader.num_workers = num_workers
        content.train_dataloader.dataset.update(changes)
        content.experiment_name = f'{name}_{num_workers}'
        return build_training(content, resume=resume).train().state_dict()

    for num_workers in (0, 2):
        with pytest.raises(InputError) as error:
            train('stopped', num_workers=num_workers)
        sentence = find_sentence(error.value)
        assert sentence.startswith(f'the photo {photo} is truncated or damaged (')
        assert '; replace it, or list all such photos by ' in sentence
        assert '\n' not in sentence
    names = (root / 'train.txt').read_text().replace('photo_3\n', '')
    (root / 'others.txt').write_text(names)
    expected = train('others', ann_file='others.txt')
    found = {
        'one process': train('alone', exclude='broken.txt'),
        'two workers': train('workers', num_workers=2, exclude='broken.txt'),
    }
    # As a run leaves it that is killed after four iterations.
    for path in [*tmp_path.glob('alone/iter_6*'), tmp_path / 'alone/last_checkpoint']:
        path.unlink()
    given = dict(num_workers=2, exclude='broken.txt')
    found['resumed'] = train('alone', resume=True, **given)
    for how, state in found.items():
        assert all(torch.equal(state[key], expected[key]) for key in expected), how


@pytest.mark.parametrize('interval', [1, 50])
def test_a_loss_that_is_no_number_stops_with_a_good_checkpoint(
    tmp_path, interval, monkeypatch
):
    content = config(tiny_run.draw(tmp_path / 'data'), tmp_path)
    content.train_cfg = dict(type='IterBasedTrainLoop', max_iters=9)
    content.default_hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)
    )
    hook = dict(type='mmwsss.FiniteLossHook', interval=interval)
    content.custom_hooks = [*content.custom_hooks, hook]
    for name in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            content[f'{name}_{part}'] = None
    runner = build_training(content)
    step, seen = runner.model.train_step, []

    def broken(data, optim_wrapper):
        found = step(data, optim_wrapper)
        seen.append(found)
        return found | {'loss': found['loss'] * (1 if len(seen) != 5 else torch.nan)}

    monkeypatch.setattr(runner.model, 'train_step', broken)
    with pytest.raises(InputError, match='the loss of iteration 5 is not finite') as at:
        runner.train()
    # With a long interval, before the next checkpoint.
    assert len(seen) == (5 if interval == 1 else 6)
    assert f'the last good checkpoint is {tmp_path / "run/iter_3.pth"}' in str(at.value)
    assert [p.name for p in (tmp_path / 'run').glob('*.pth')] == ['iter_3.pth']
    good = torch.load(tmp_path / 'run/iter_3.pth', weights_only=True)['state_dict']
    assert all(values.isfinite().all() for values in good.values())

    # A run from the beginning in the same folder owes nothing to that checkpoint.
    content.train_cfg.max_iters = 2
    again = build_training(content)
    nothing = {'loss': torch.tensor(torch.nan)}
    again.model.train_step = lambda data, optim_wrapper: nothing
    with pytest.raises(InputError, match='there is no checkpoint from before'):
        again.train()


@pytest.mark.parametrize(
    ('message', 'told'),
    [
        ('[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1', True),
        ('NCCL error: remote process exited or there was a network error', True),
        ('Timed out waiting 1800000ms for recv operation to complete', True),
        ('Invalid scalar type for gloo', False),
        ('NCCL WARN Invalid usage: tensors must be contiguous', False),
    ],
)
def test_only_a_rank_that_is_gone_is_told_as_one(message, told, monkeypatch):
    error = RuntimeError(message)
    assert find_sentence(error) is None
    monkeypatch.setenv('WORLD_SIZE', '2')
    sentence = find_sentence(error)
    assert (sentence is not None) == told
    assert not told or f'(seen here: {message})' in sentence


def test_a_sentence_is_one_line():
    sentence = find_sentence(InputError('no stage "\n"; name it'))
    assert sentence == 'no stage "\\n"; name it'


@pytest.mark.parametrize('value', ['1', ''])
def test_a_traceback_on_request(value, monkeypatch, capsys):
    monkeypatch.setenv('MMWSSS_TRACEBACK', value)

    def main():
        raise InputError('no photo here; give one') from KeyError('defect')

    with pytest.raises(SystemExit) as end:
        run_tool(main)
    assert end.value.code == 1
    printed = capsys.readouterr().err
    assert printed.endswith('error: no photo here; give one\n')
    assert ("KeyError: 'defect'" in printed) == (value == '1')
