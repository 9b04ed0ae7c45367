import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip('mmengine')

import mmseg.datasets.transforms  # noqa: F401
from distributed_history import (
    IDS,
    IMAGE_LABELS,
    WHOLE,
    held_bytes,
    make_history,
    many_photos,
    read_and_update,
    read_photo,
    run_rank,
    run_visits,
    sample,
    visits,
)
from mmcv.transforms import RandomFlip, RandomResize
from mmseg.models import SegDataPreProcessor

from mmwsss.datasets import PackWSSSInputs, RandomCropWithBox
from mmwsss.errors import InputError
from mmwsss.functional.history import read_history
from mmwsss.models.batch import crop_geometry, valid_mask
from mmwsss.models.labelers.history import PredictionHistory
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

VOC12 = Path(__file__).resolve().parents[2].parent / 'shared' / 'data' / 'voc12'
CPU = torch.device('cpu')


# ------------------------------------------------------------------------- geometry
def position_photo(height, width):
    """A photo whose colours say where in it a pixel lies: (row, column, 0) / 255."""
    rows = (np.arange(height) + 0.5) / height * 255
    columns = (np.arange(width) + 0.5) / width * 255
    rows, columns = np.meshgrid(rows, columns, indexing='ij')
    return np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.float32)


def draw_batch(number, direction):
    """Photos through the training pipeline, padded as the model sees them."""
    steps = [
        RandomResize(
            scale=(80, 80),
            ratio_range=(0.5, 2.0),
            resize_type='Resize',
            keep_ratio=True,
        ),
        RandomCropWithBox(crop_size=(48, 64)),
        RandomFlip(prob=0.7, direction=direction),
        PackWSSSInputs(),
    ]
    packed = []
    for index in range(number):
        results = {'img': position_photo(50 + 5 * index, 90 - 7 * index)}
        results['img_id'] = str(index)
        for step in steps:
            results = step.transform(results)
        packed.append(results)
    preprocessor = SegDataPreProcessor(size=(48, 64), pad_val=0, seg_pad_val=255)
    batch = {
        'inputs': [p['inputs'] for p in packed],
        'data_samples': [p['data_samples'] for p in packed],
    }
    batch = preprocessor(batch, training=True)
    return batch['inputs'], batch['data_samples']


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_geometry_says_what_every_pixel_shows(direction):
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    inputs, samples = draw_batch(8, direction)
    flips = {s.metainfo['flip'] for s in samples}
    assert flips == {True, False}
    valid = valid_mask(samples, inputs.shape[-2:], CPU)
    assert 0.1 < valid.mean() < 0.99
    where = crop_geometry(samples, inputs.shape[-2:], CPU)
    # The photo's positions as maps, read at every pixel, are the photo's colours.
    centres = (torch.arange(64) + 0.5) / 64
    rows, columns = torch.meshgrid(centres, centres, indexing='ij')
    maps = torch.stack([rows, columns]).expand(8, 2, 64, 64)
    found = read_history(maps, where, tuple(inputs.shape[-2:]))
    assert (found * (1 - valid) == 0).all()
    # Resizing blurs a ramp at its ends only; half a pixel of the smallest photo is
    # 0.02, one pixel too far to one side would be seen in the mean.
    error = (found - inputs[:, :2].float() / 255).abs() * valid
    assert error.max() < 0.03
    assert error.sum() / valid.sum() < 0.006


def meta_sample(**meta):
    return sample('a', **meta)


def test_geometry_by_hand():
    crop = {'crop_box': (30, 20, 60, 60), 'crop_from': (80, 120)}
    samples = [
        meta_sample(),
        meta_sample(img_shape=(32, 24)),
        meta_sample(img_shape=(40, 30), **crop),
        meta_sample(img_shape=(40, 30), flip=True, flip_direction='horizontal', **crop),
        meta_sample(img_shape=(40, 30), flip=False, flip_direction=None, **crop),
        meta_sample(flip=True),
    ]
    found = crop_geometry(samples, (64, 48), CPU)
    # The crop shows rows 0.25..0.75 and columns 0.25..0.5 in 0.625 of the input.
    straight = [[0.8, 0.25, 0.625], [0.4, 0.25, 0.625]]
    expected = [
        [[1, 0, 1], [1, 0, 1]],
        [[2, 0, 0.5], [2, 0, 0.5]],
        straight,
        [[0.8, 0.25, 0.625], [-0.4, 0.5, 0.625]],
        straight,
        [[1, 0, 1], [-1, 1, 1]],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert crop_geometry([], (4, 4), CPU).shape == (0, 2, 3)


def test_geometry_names_what_is_missing():
    with pytest.raises(ValueError, match=r'keep crop_from among the meta_keys'):
        crop_geometry([meta_sample(crop_box=(0, 0, 1, 1))], (4, 4), CPU)
    with pytest.raises(ValueError, match=r"got 'sideways'"):
        crop_geometry([meta_sample(flip=True, flip_direction='sideways')], (4, 4), CPU)


# -------------------------------------------------------------------- what it holds
def test_slots_are_packed_for_the_images_own_classes():
    history = make_history()
    # Five backgrounds, eight classes, one slot that stays empty.
    assert history.bank.shape == (14, 8, 8)
    assert history.bank.dtype == torch.uint8
    trash = 13
    expected = [
        [0, 1, 2, trash],
        [3, trash, trash, trash],
        [4, 5, trash, 6],
        [7, trash, 8, trash],
        [9, 10, 11, 12],
        [trash] * 4,
    ]
    assert history.slots.tolist() == expected


def test_all_of_voc_needs_less_than_forty_megabytes():
    if not VOC12.is_dir():
        pytest.skip('the VOC lists of ../shared/data are not here')
    with gzip.open(VOC12 / 'image_labels.json.gz', 'rt') as stream:
        data = json.load(stream)
    ids = (VOC12 / 'train_aug.txt').read_text().split()
    ids = [i for i in dict.fromkeys(ids) if i in data['labels']]
    assert len(ids) == 10582
    labels = torch.zeros(len(ids), 20)
    for row, image_id in enumerate(ids):
        for name in data['labels'][image_id]:
            labels[row, data['classes'].index(name)] = 1
    history = PredictionHistory()
    history.prepare(ids, labels)
    size = sum(b.numel() * b.element_size() for b in history.buffers())
    assert 20e6 < size < 40e6
    # Hashes of the ids do not collide.
    assert len(history._rows) == 10582


def test_updates_equal_a_loop_over_photos_and_visits():
    history = run_visits(make_history())
    labels = dict(zip(IDS, IMAGE_LABELS.tolist(), strict=True))
    counts = {i: np.zeros((4, 8, 8)) for i in labels}
    for samples, label, affine in visits():
        for n, item in enumerate(samples):
            image_id = item.metainfo['img_id']
            if image_id not in labels:
                continue
            (sy, oy, _), (sx, ox, _) = affine[n].tolist()
            for row in range(8):
                for column in range(8):
                    y = ((row + 0.5) / 8 - oy) / sy
                    x = ((column + 0.5) / 8 - ox) / sx
                    if not (0 <= y < 1 and 0 <= x < 1):
                        continue
                    seen = int(label[n, int(y * 6), int(x * 5)])
                    if seen == 255:
                        continue
                    counts[image_id][:, row, column] *= 0.8
                    counts[image_id][seen, row, column] += 1
    everything = torch.ones(1, 3)
    for image_id, present in labels.items():
        expected = counts[image_id] * np.array([1, *present])[:, None, None]
        found = history.read([sample(image_id)], everything, (8, 8), WHOLE)
        np.testing.assert_allclose(found[0].numpy(), expected, atol=0.05)
        assert found.max() > 0.9
    assert not history.bank[-1].any()


def test_reading_leaves_out_absent_classes_unknown_photos_and_padding():
    history = run_visits(make_history())
    history.bank[:-1] = 255
    samples = [sample('a'), sample('c'), sample('new')]
    image_label = torch.tensor([[1, 0, 0], [1, 0, 1], [1, 1, 1.0]])
    where = WHOLE.repeat(3, 1, 1)
    where[:, 1] = torch.tensor([2.0, 0.0, 0.5])
    found = history.read(samples, image_label, (4, 4), where)
    assert found.shape == (3, 4, 4, 4)
    assert found.dtype == torch.float32
    for n, classes in enumerate([{0, 1}, {0, 1, 3}, set()]):
        for c in range(4):
            expected = torch.zeros(4, 4)
            expected[:, :2] = 5.0 if c in classes else 0.0
            torch.testing.assert_close(found[n, c], expected)


def test_photos_are_found_by_id_or_by_the_name_of_their_file():
    history = make_history()
    label = torch.ones(1, 4, 4, dtype=torch.int64)
    by_path = sample('a')
    by_path.metainfo = {'img_path': '/data/photos/a.jpg'}
    history.update([by_path], label, WHOLE)
    found = history.read([sample('a')], torch.ones(1, 3), (8, 8), WHOLE)
    torch.testing.assert_close(found[0, 1], torch.ones(8, 8))
    assert not found[0, 0].any()
    assert not found[0, 2:].any()


def test_an_empty_history_reads_zeros_and_refuses_visits():
    history = PredictionHistory()
    found = history.read([sample('a')], torch.ones(1, 3), (4, 5), WHOLE)
    assert torch.equal(found, torch.zeros(1, 4, 4, 5))
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r'call prepare'):
        history.update([sample('a')], label, WHOLE)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r'decay must be in \[0, 1\), got 1'):
        PredictionHistory(decay=1)
    with pytest.raises(ValueError, match=r'grid_size must be at least 1, got 0'):
        PredictionHistory(grid_size=0)
    history = PredictionHistory()
    with pytest.raises(ValueError, match=r'must be \(2, K\), got \(3, 1\)'):
        history.prepare(['a', 'b'], torch.ones(3, 1))
    with pytest.raises(InputError, match=r"image 'a' stands .* twice"):
        history.prepare(['a', 'a'], torch.tensor([[1, 0], [0, 1]]))
    history.prepare(['a', 'b', 'a'], torch.tensor([[1, 0], [0, 0], [1, 0]]))
    assert len(history.bank) == 2 + 1 + 1
    with pytest.raises(ValueError, match=r'of 2 classes, image_label of 3'):
        history.read([sample('a')], torch.ones(1, 3), (4, 4), WHOLE)


def test_it_is_built_from_a_config_and_stays_bytes_in_half_precision():
    config = dict(type='mmwsss.PredictionHistory', grid_size=4)
    history = MODELS.build(config)
    history.prepare(['a'], torch.ones(1, 2))
    assert not list(history.parameters())
    history.half()
    assert all(not b.is_floating_point() for b in history.buffers())
    assert (history.bank.dtype, history.slots.dtype) == (torch.uint8, torch.int32)
    history.to('meta')
    assert history.bank.is_meta
    assert history.slots.is_meta


# ------------------------------------------------------------------------ checkpoint
def test_a_resumed_training_goes_on_bit_for_bit(tmp_path):
    steps = list(visits()) * 3
    straight, stopped = make_history(), make_history()
    for step in steps:
        straight.update(*step)
    for step in steps[:4]:
        stopped.update(*step)
    torch.save(stopped.state_dict(), tmp_path / 'model.pt')
    state = torch.load(tmp_path / 'model.pt', weights_only=True)
    assert set(state) == {'bank', 'image_keys', 'image_labels', 'fingerprint'}
    prepared_first, loaded_first = make_history(), PredictionHistory(grid_size=8)
    prepared_first.load_state_dict(state)
    loaded_first.load_state_dict(state)
    loaded_first.prepare(IDS, IMAGE_LABELS)
    assert state['bank'].any()
    for history in (prepared_first, loaded_first):
        for step in steps[4:]:
            history.update(*step)
        assert torch.equal(history.bank, straight.bank)


def test_evaluation_reads_the_history_of_the_checkpoint():
    trained = run_visits(make_history())
    everything = torch.ones(1, 3)
    # As a part of a larger model, and one checkpoint after the other.
    model = torch.nn.ModuleDict({'history': PredictionHistory(grid_size=8)})
    other = PredictionHistory(grid_size=8)
    other.prepare(['x'], torch.ones(1, 5))
    model.load_state_dict({f'history.{k}': v for k, v in other.state_dict().items()})
    model.load_state_dict({f'history.{k}': v for k, v in trained.state_dict().items()})
    for image_id in IDS:
        expected = trained.read([sample(image_id)], everything, (6, 7), WHOLE)
        found = model['history'].read([sample(image_id)], everything, (6, 7), WHOLE)
        assert expected.any()
        assert torch.equal(found, expected)


def test_a_history_of_other_photos_is_refused():
    state = run_visits(make_history()).state_dict()
    others = [
        (dict(grid_size=8), [*IDS[:-1], 'x'], IMAGE_LABELS),
        (dict(grid_size=8), IDS, IMAGE_LABELS.flip(0)),
        (dict(grid_size=8), ['a'], IMAGE_LABELS[:1]),
        (dict(grid_size=16), IDS, IMAGE_LABELS),
        (dict(grid_size=8, decay=0.7), IDS, IMAGE_LABELS),
    ]
    for number, (settings, ids, labels) in enumerate(others):
        history = PredictionHistory(**settings)
        history.prepare(ids, labels)
        with pytest.raises(InputError, match=r'other photos, image labels, grid'):
            history.load_state_dict(state)
        if number >= 3:
            with pytest.raises(InputError, match=r'another grid size or decay'):
                PredictionHistory(**settings).load_state_dict(state)
        else:
            adopted = PredictionHistory(**settings)
            adopted.load_state_dict(state)
            with pytest.raises(InputError, match=r'other photos, image labels, grid'):
                adopted.prepare(ids, labels)


def test_a_checkpoint_without_history_leaves_it_alone():
    history = run_visits(make_history())
    before = history.bank.clone()
    missing, unexpected = history.load_state_dict({}, strict=False)
    assert set(missing) == {'bank', 'image_keys', 'image_labels', 'fingerprint'}
    assert not unexpected
    assert torch.equal(history.bank, before)


# ------------------------------------------------------------------------ processes
def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope='module', params=[2, 3])
def processes(request, tmp_path_factory):
    """What each of several processes has found, see tests/distributed_history.py."""
    folder = tmp_path_factory.mktemp(f'{request.param}_processes')
    mp.spawn(run_rank, args=(request.param, str(folder)), nprocs=request.param)
    paths = [folder / f'rank{rank}.pt' for rank in range(request.param)]
    return [torch.load(path, weights_only=True) for path in paths]


def test_processes_that_share_the_photos_equal_one_with_the_joint_batch(processes):
    history = make_history()
    expected = read_and_update(history)
    assert expected[2].any()
    for step, joint in enumerate(expected):
        found = torch.cat([result['reads'][step] for result in processes])
        assert torch.equal(found, joint)
    for result in processes:
        assert_same_state(result['blank'], make_history().state_dict())
        for name in ('state', 'again', 'copied', 'wrapped'):
            assert_same_state(result[name], history.state_dict())
    for rank, result in enumerate(processes):
        for image_id, found in zip(IDS[rank:], result['alone'], strict=True):
            assert torch.equal(found, read_photo(history, image_id))


def test_a_checkpoint_of_several_processes_goes_on_in_any_number(processes):
    expected = run_visits(run_visits(make_history())).state_dict()
    for result in processes:
        for state in result['resumed']:
            assert_same_state(state, expected)
    alone = make_history()
    alone.load_state_dict(processes[-1]['state'])
    assert_same_state(run_visits(alone).state_dict(), expected)


def test_each_process_holds_its_share_of_the_bytes(processes):
    whole = PredictionHistory()
    whole.prepare(*many_photos())
    shares = [result['bytes'] / held_bytes(whole) for result in processes]
    assert max(shares) < 1.1 / len(processes)
    # What is more than the whole: the empty slot and row of each.
    assert 1 < sum(shares) < 1.01


class NoWaiting(TorchDispatchMode):
    """Fails on operations for which the host has to wait for the device."""

    WAITING = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'equal')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split('.')[0]
        assert name not in self.WAITING, f'{name} waits for the device'
        if name in ('index', 'index_put_'):
            kinds = [i.dtype for i in args[1] if i is not None]
            assert torch.bool not in kinds, 'a mask as an index waits for the device'
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device():
    history = make_history()
    with pytest.raises(AssertionError, match='waits'), NoWaiting():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match='waits'), NoWaiting():
        history.bank[history.bank > 0]
    for samples, label, affine in visits():
        with NoWaiting():
            history.read(samples, torch.ones(6, 3), (5, 5), affine)
            history.update(samples, label, affine)
            crop_geometry(samples, (32, 32), CPU)
    assert history.bank.any()
