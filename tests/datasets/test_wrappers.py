"""Wrapped data sets give the same augmentations however the stream is read."""

import json
import shutil
from itertools import islice
from pathlib import Path

import mmengine.dataset
import pytest
import tiny_run
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from mmwsss.datasets import SeededIndex, SeededStreamSampler
from mmwsss.datasets.sampler import check_seeds_pass
from mmwsss.engine.hooks import training_labels
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm

WRAPPERS = {
    'repeat': lambda d: dict(type='RepeatDataset', dataset=d, times=3),
    'concat': lambda d: dict(type='ConcatDataset', datasets=[d, d]),
    'balanced': lambda d: dict(
        type='mmwsss.ClassBalancedDataset', dataset=d, oversample_thr=1.0
    ),
    'nested': lambda d: dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset',
            datasets=[d, WRAPPERS['repeat'](d), WRAPPERS['balanced'](d)],
        ),
    ),
}


@pytest.fixture(scope='module')
def inner(tmp_path_factory):
    root = tiny_run.draw(tmp_path_factory.mktemp('data'))
    return tiny_run.config(root)['train_dataloader']['dataset']


def build(config):
    init_default_scope('mmseg')
    return DATASETS.build(config)


def batches(dataset, count, *, num_workers=0, skip=0):
    sampler = SeededStreamSampler(dataset, seed=4)
    sampler.skip(skip)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=pseudo_collate,
    )
    return list(islice(loader, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        for a, b in zip(one['inputs'], two['inputs'], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(one['data_samples'], two['data_samples'], strict=True):
            assert a.metainfo == b.metainfo


@pytest.mark.parametrize('name', WRAPPERS)
def test_augmentation_is_the_same_with_workers_and_after_a_resume(inner, name):
    dataset = build(WRAPPERS[name](inner))
    expected = batches(dataset, 8)
    assert_same(batches(dataset, 8, num_workers=2), expected)
    # A resumed run begins anew after the samples that it has seen.
    assert_same(batches(dataset, 3, num_workers=2, skip=20), expected[5:])
    boxes = [
        s.metainfo['crop_box'] for batch in expected for s in batch['data_samples']
    ]
    assert len(set(boxes)) > 8


def test_wrapped_photo_is_augmented_like_the_bare_one(inner):
    bare, repeated = build(inner), build(WRAPPERS['repeat'](inner))
    for index, seed in ((3, 1), (11, 2), (23, 3)):
        wanted = bare[SeededIndex(index % 8, seed)]['inputs']
        assert torch.equal(repeated[SeededIndex(index, seed)]['inputs'], wanted)
    concatenated = build(WRAPPERS['concat'](inner))
    wanted = bare[SeededIndex(5, 9)]['inputs']
    assert torch.equal(concatenated[SeededIndex(13, 9)]['inputs'], wanted)
    assert torch.equal(concatenated[SeededIndex(5, 9)]['inputs'], wanted)


def test_wrappers_that_lose_the_seed_are_refused_by_name(inner):
    plain = dict(type='ClassBalancedDataset', dataset=inner, oversample_thr=0.5)
    for config in (plain, dict(type='RepeatDataset', dataset=plain, times=2)):
        with pytest.raises(InputError) as error:
            SeededStreamSampler(build(config), seed=0)
        assert 'wrapper ClassBalancedDataset loses the seed' in str(error.value)
        assert 'use mmwsss.ClassBalancedDataset instead' in str(error.value)

    class Shuffled(mmengine.dataset.RepeatDataset):
        def _get_ori_dataset_idx(self, idx):
            return [*range(8)][idx % 8]

    shuffled = Shuffled(inner, times=2)
    with pytest.raises(InputError, match=r'wrapper Shuffled .* use RepeatDataset or'):
        check_seeds_pass(shuffled)
    mixed = build(dict(type='ConcatDataset', datasets=[inner, inner]))
    mixed.datasets[1] = shuffled
    with pytest.raises(InputError, match='wrapper Shuffled'):
        check_seeds_pass(mixed)


def test_seeds_survive_the_arithmetic_of_wrappers_and_stay_integers():
    index = SeededIndex(13, 7)
    for found, value in ((index % 8, 5), (index - 8, 5), (index - 0, 13)):
        assert type(found) is SeededIndex
        assert (int(found), found.seed) == (value, 7)
        assert found == value
        assert [*range(20)][found] == value


def test_rare_classes_are_repeated(inner, tmp_path):
    root = tiny_run.draw(tmp_path)
    file = root / 'image_labels.json'
    content = json.loads(file.read_text())
    content['labels'] = {f'photo_{i}': ['disc'] for i in range(8)}
    content['labels'] |= {'photo_6': ['bar'], 'photo_7': []}
    file.write_text(json.dumps(content))
    config = WRAPPERS['balanced'](dict(inner, data_root=str(root)))
    dataset = build(config)
    # disc is in 6 of 8 photos, ceil(sqrt(8 / 6)) = 2; bar in 1, ceil(sqrt(8)) = 3; a
    # photo without objects stands there once.
    assert len(dataset) == 6 * 2 + 3 + 1
    ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    assert ids.count('photo_6') == 3
    assert ids.count('photo_7') == 1
    found, labels = training_labels(dataset)
    assert set(found) == set(content['labels'])
    assert labels.shape == (len(found), 2)


@pytest.mark.slow
def test_resumed_training_on_a_wrapped_data_set_ends_bit_identical(inner, tmp_path):
    def write(num_workers):
        content = tiny_run.config(Path(inner['data_root']), num_workers=num_workers)
        content['train_dataloader']['dataset'] = WRAPPERS['repeat'](inner)
        return tiny_run.write_config(tmp_path / f'workers_{num_workers}.py', content)

    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert tiny_run.train(write(0), whole).returncode == 0
    resumed.mkdir()
    shutil.copy(whole / 'iter_4.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_4.pth'))
    assert tiny_run.train(write(2), resumed, '--resume').returncode == 0
    # The files are our own; their logs hold numpy types that safe loading refuses.
    one, two = (
        torch.load(folder / 'iter_8.pth', weights_only=False)['state_dict']
        for folder in (whole, resumed)
    )
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
