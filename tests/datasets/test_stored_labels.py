import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmwsss.datasets import LoadPseudoLabels, PackPseudoLabels
from mmwsss.errors import InputError


@pytest.fixture
def stored(tmp_path):
    """A photo whose three channels repeat its label and reliability, and both PNGs."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (30, 40)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    label[label == 3] = 255
    trust = rng.integers(0, 256, (30, 40)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    for folder in ('labels', 'trust', 'photos'):
        (tmp_path / folder / 'sub').mkdir(parents=True)
    Image.fromarray(label).save(tmp_path / 'labels/sub/a.png')
    Image.fromarray(trust).save(tmp_path / 'trust/sub/a.png')
    photo = np.dstack([label, trust, trust])
    Image.fromarray(photo).save(tmp_path / 'photos/sub/a.png')
    return tmp_path


def loader(root, **options):
    return LoadPseudoLabels(
        label_root=str(root / 'labels'),
        reliability_root=str(root / 'trust'),
        num_classes=3,
        **options,
    )


def photo_of(root):
    return {'img_path': str(root / 'photos/sub/a.png'), 'img_id': 'sub/a'}


@pytest.mark.parametrize('seed', range(6))
def test_label_and_reliability_follow_the_photo(stored, seed):
    init_default_scope('mmseg')
    np.random.seed(seed)
    pipeline = Compose(
        [
            dict(type='mmwsss.LoadPhoto'),
            dict(
                type='mmwsss.LoadPseudoLabels',
                label_root=str(stored / 'labels'),
                reliability_root=str(stored / 'trust'),
                num_classes=3,
            ),
            # Twice the size and no mixing of colours, so that pixels can be compared.
            dict(
                type='RandomResize',
                scale=(160, 120),
                ratio_range=(1.0, 1.0),
                keep_ratio=True,
                resize_type='Resize',
                interpolation='nearest',
            ),
            dict(type='mmwsss.RandomCropWithBox', crop_size=(50, 70)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmwsss.PackPseudoLabels'),
        ]
    )
    packed = pipeline(photo_of(stored))
    # Stored as RGB, handed out as BGR.
    trust, _, label = packed['inputs']
    sample = packed['data_samples']
    assert sample.gt_sem_seg.data.shape == (1, 50, 70)
    assert torch.equal(sample.gt_sem_seg.data[0], label.long())
    torch.testing.assert_close(sample.pseudo_reliability.data[0], trust.float() / 255)
    assert sample.metainfo['crop_from'] == (120, 160)


def test_without_reliability_there_is_none(stored):
    results = {**photo_of(stored), 'img': np.zeros((60, 80, 3), np.uint8)}
    results['ori_shape'] = (60, 80)
    results = LoadPseudoLabels(label_root=str(stored / 'labels')).transform(results)
    assert results['seg_fields'] == ['gt_seg_map']
    assert (
        'pseudo_reliability'
        not in PackPseudoLabels().transform(results)['data_samples']
    )


def test_bad_files_are_named(stored):
    results = {**photo_of(stored), 'ori_shape': (60, 80)}
    wrong = loader(stored).transform
    (stored / 'trust/sub/a.png').unlink()
    with pytest.raises(InputError, match=r'reliability map .*a\.png of the photo'):
        wrong(dict(results))
    with pytest.raises(InputError, match=r'60x80|80x60|must agree'):
        wrong({**results, 'ori_shape': (60, 60)})
    Image.fromarray(np.full((60, 80), 3, np.uint8)).save(stored / 'labels/sub/a.png')
    with pytest.raises(InputError, match='holds the value 3'):
        wrong(dict(results))
    missing = LoadPseudoLabels(label_root=str(stored / 'nowhere'))
    with pytest.raises(InputError, match=r'pseudo-label .*no files are in that'):
        missing.transform(dict(results))


@pytest.mark.parametrize(
    ('labels', 'sure'), [([], None), (['a', 'b'], ['c']), (['a'], ['c', None])]
)
def test_folders_of_labels_and_reliability_come_in_pairs(labels, sure):
    with pytest.raises(ValueError, match='one or more folders'):
        LoadPseudoLabels(label_root=labels, reliability_root=sure)
