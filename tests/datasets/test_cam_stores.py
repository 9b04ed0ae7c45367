import numpy as np
import pytest
import torch

from mmwsss.datasets import CAMStore, LoadCAMStores, PackCAMStores, StoredCAMs
from mmwsss.datasets.cam_store import grid_size
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


def write(root, *, classes=(0, 2), size=(20, 30), seed=0, background=False):
    generator = np.random.default_rng(seed)
    cams = generator.integers(0, 1025, (len(classes), *grid_size(size))) / 1024
    own = np.ones(grid_size(size), np.float32) if background else None
    stored = StoredCAMs(np.array(classes), cams.astype(np.float32), size, own)
    CAMStore(root).write('a', stored)
    return cams


def results(label=(1, 0, 1), size=(20, 30)):
    return {
        'img_id': 'a',
        'img_path': 'a.jpg',
        'img': np.zeros((*size, 3), np.uint8),
        'img_shape': size,
        'ori_shape': size,
        'image_label': np.array(label, np.float32),
    }


def test_stores_are_read_side_by_side(tmp_path):
    first = write(tmp_path / 'x', seed=1)
    second = write(tmp_path / 'y', seed=2, background=True)
    load = LoadCAMStores(cam_roots=[str(tmp_path / 'x'), str(tmp_path / 'y')])
    packed = PackCAMStores().transform(load.transform(results()))
    sources = packed['data_samples'].cam_sources
    assert sources.shape == (2, 3, 5, 8)
    assert (sources[:, 1] == 0).all()
    np.testing.assert_array_equal(sources[0, [0, 2]].numpy(), first)
    np.testing.assert_array_equal(sources[1, [0, 2]].numpy(), second)
    assert 'cam_background' not in packed['data_samples']
    assert packed['data_samples'].image_label.tolist() == [1, 0, 1]


def test_a_photo_without_classes_is_legal(tmp_path):
    write(tmp_path / 'x', classes=())
    load = LoadCAMStores(cam_roots=[str(tmp_path / 'x')] * 2)
    packed = PackCAMStores().transform(load.transform(results(label=(0, 0, 0))))
    assert packed['data_samples'].cam_sources.shape == (2, 3, 5, 8)
    assert packed['data_samples'].cam_sources.sum() == 0


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_cams_follow_a_flip(tmp_path, direction):
    write(tmp_path / 'x')
    load = LoadCAMStores(cam_roots=[str(tmp_path / 'x')] * 2)
    loaded = load.transform(results())
    loaded |= {'flip': True, 'flip_direction': direction}
    found = PackCAMStores().transform(dict(loaded))['data_samples'].cam_sources
    before = loaded['cam_sources']
    for y in range(5):
        for x in range(8):
            row = y if direction == 'horizontal' else 4 - y
            column = x if direction == 'vertical' else 7 - x
            assert torch.equal(found[..., y, x], before[..., row, column])


def test_what_does_not_fit_is_named(tmp_path):
    write(tmp_path / 'x')
    roots = [str(tmp_path / 'x'), str(tmp_path / 'y')]
    with pytest.raises(InputError, match=r'a\.npz does not exist; .*make_cams\.py'):
        LoadCAMStores(cam_roots=roots).transform(results())
    write(tmp_path / 'y', classes=(0,))
    with pytest.raises(InputError, match=r'classes \[0\], but .* has \[0, 2\]'):
        LoadCAMStores(cam_roots=roots).transform(results())
    write(tmp_path / 'y', size=(20, 31))
    with pytest.raises(InputError, match=r'\(20, 31\)'):
        LoadCAMStores(cam_roots=roots).transform(results())
    for wrong in (roots[:1], roots[0]):
        with pytest.raises(InputError, match='two CAM stores or more'):
            LoadCAMStores(cam_roots=wrong)
    write(tmp_path / 'y')
    loaded = LoadCAMStores(cam_roots=roots).transform(results())
    with pytest.raises(ValueError, match='the pipeline crops'):
        PackCAMStores().transform(loaded | {'crop_box': (0, 0, 4, 4)})
