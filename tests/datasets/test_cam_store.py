import errno
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmwsss.datasets import CAMStore, LoadCAMs, PackCAMs, StoredCAMs
from mmwsss.datasets.cam_store import grid_size, read_pickled_cams
from mmwsss.errors import InputError


def stored(classes=(1, 3), size=(9, 14), background=False, seed=0):
    generator = np.random.default_rng(seed)
    grid = grid_size(size)
    return StoredCAMs(
        classes=np.array(classes, dtype=np.int64),
        cams=generator.random((len(classes), *grid), dtype=np.float32),
        size=size,
        background=generator.random(grid, dtype=np.float32) if background else None,
    )


@pytest.mark.parametrize('size', [(1, 1), (4, 5), (8, 8), (375, 500), (13, 2)])
def test_the_grid_has_stride_four(size):
    # As the released code of IRN counts it.
    assert grid_size(size) == tuple((side - 1) // 4 + 1 for side in size)


@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('dtype', ['float16', 'uint8'])
def test_what_is_written_is_read(tmp_path, dtype, background):
    before = stored(background=background)
    store = CAMStore(tmp_path / 'new' / 'store')
    store.write('2007_000032', before, dtype=dtype)
    after = store.read('2007_000032')
    error = 0.5 / 255 if dtype == 'uint8' else 2**-11
    np.testing.assert_allclose(after.cams, before.cams, atol=error + 1e-7)
    assert after.cams.dtype == np.float32
    assert after.classes.tolist() == [1, 3]
    assert after.size == (9, 14)
    if background:
        np.testing.assert_allclose(after.background, before.background, atol=error)
    else:
        assert after.background is None
    with np.load(store.path('2007_000032')) as content:
        assert content['classes'].dtype == np.uint16
        assert content['cams'].dtype == dtype


def test_class_probabilities_are_kept_exactly(tmp_path):
    store, probs = CAMStore(tmp_path), np.array([0.1, 0.9, 1e-6, 0.5], np.float32)
    store.write('a', replace(stored(), probs=probs), dtype='uint8')
    np.testing.assert_array_equal(store.read('a').probs, probs)
    store.write('b', stored())
    assert store.read('b').probs is None
    with pytest.raises(ValueError, match=r'probs must be one per class, got \(3,\)'):
        store.write('c', replace(stored(), probs=probs[:3]))
    with pytest.raises(InputError, match='not finite'):
        store.write('c', replace(stored(), probs=probs * np.nan))


def test_dense_puts_every_class_in_its_place():
    cams = stored()
    dense = cams.dense(5)
    assert dense.shape == (5, 3, 4)
    assert (dense[[0, 2, 4]] == 0).all()
    assert torch.equal(dense[[1, 3]], torch.from_numpy(cams.cams))
    with pytest.raises(ValueError, match='num_classes is 3'):
        cams.dense(3)


def test_a_photo_without_objects_and_an_id_with_a_folder(tmp_path):
    store = CAMStore(tmp_path)
    store.write('train2014/7', stored(classes=()))
    read = store.read('train2014/7')
    assert read.cams.shape == (0, 3, 4)
    assert (read.dense(2) == 0).all()


def test_equal_cams_make_equal_files(tmp_path):
    store = CAMStore(tmp_path)
    store.write('a', stored())
    store.write('b', stored())
    assert store.path('a').read_bytes() == store.path('b').read_bytes()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'classes': np.array([3, 1])}, 'classes must ascend'),
        ({'classes': np.array([1, 1])}, 'classes must ascend'),
        ({'size': (9, 18)}, r'cams must be \(2, 3, 5\)'),
        ({'size': (0, 14)}, 'size must be a height and a width'),
        ({'background': np.zeros((3, 5), np.float32)}, r'background must be \(3, 4\)'),
    ],
)
def test_maps_that_do_not_fit_are_not_stored(tmp_path, change, message):
    content = {k: getattr(stored(), k) for k in ('classes', 'cams', 'size')} | change
    with pytest.raises(ValueError, match=message):
        CAMStore(tmp_path).write('a', StoredCAMs(**content))
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_refused(tmp_path):
    cams = stored()
    cams.cams[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="'a' hold values that are not finite"):
        CAMStore(tmp_path).write('a', cams)
    with pytest.raises(ValueError, match="got 'float32'"):
        CAMStore(tmp_path).write('a', stored(), dtype='float32')
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    store = CAMStore(tmp_path)
    store.write('a', stored())
    before = store.path('a').read_bytes()

    def full(stream, **arrays):
        stream.write(b'half of it')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(InputError, match='No space left on device') as caught:
        store.write('a', stored(seed=1))
    assert '\n' not in str(caught.value)
    assert store.path('a').read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.npz']


def cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def pickled(path):
    with path.open('wb') as stream:
        np.savez(stream, classes=np.array([{'a': 1}], dtype=object))


def other_arrays(path):
    with path.open('wb') as stream:
        np.savez(stream, cams=np.zeros((1, 2, 2)))


def other_type(path):
    with path.open('wb') as stream:
        maps = np.zeros((1, 1, 1))
        np.savez(stream, classes=np.array([0]), cams=maps, size=np.array([2, 2]))


def other_size(path):
    with path.open('wb') as stream:
        maps = np.zeros((1, 1, 1), np.uint8)
        np.savez(stream, classes=np.array([0]), cams=maps, size=np.array([20, 2]))


@pytest.mark.parametrize(
    'spoil',
    [
        cut_off,
        pickled,
        other_arrays,
        other_type,
        other_size,
        lambda p: p.write_text(''),
    ],
)
def test_spoilt_files_are_named_and_nothing_is_unpickled(tmp_path, spoil):
    store = CAMStore(tmp_path)
    store.write('a', stored())
    spoil(store.path('a'))
    with pytest.raises(InputError, match=r'a\.npz .*delete it and make it again'):
        store.read('a')
    with pytest.raises(InputError, match=r'make_cams\.py'):
        store.read('b')


# ------------------------------------------------------------- other repositories
def save(path, content):
    np.save(path, content, allow_pickle=True)
    return path


def maps(count, size=(9, 14), seed=0):
    return np.random.default_rng(seed).random((count, *size), dtype=np.float32)


def test_dictionaries_of_other_repositories_are_read_with_trust(tmp_path):
    small, large = maps(2, (3, 4)), maps(2, (9, 14), seed=1)
    irn = {'keys': torch.tensor([4, 2]), 'cam': torch.from_numpy(small)}
    cases = {
        'irn': (irn, [2, 4], small[::-1], None),
        'irn_high_res': ({**irn, 'high_res': large}, [2, 4], large[::-1], None),
        'psa': ({7: large[0], 1: large[1]}, [1, 7], large[::-1], None),
        'sipe': (
            {'keys': np.array([0, 3, 6]), 'IS_CAM': maps(3)},
            [2, 5],
            maps(3)[1:],
            maps(3)[0],
        ),
        'amn': (
            {'keys': np.array([3, 6]), 'high_res': maps(3)},
            [3, 6],
            maps(3)[1:],
            maps(3)[0],
        ),
        'nothing': ({}, [], np.zeros((0, 1, 1)), None),
    }
    for name, (content, classes, cams, background) in cases.items():
        path = save(tmp_path / f'{name}.npy', content)
        with pytest.raises(InputError, match='--trust-pickle'):
            read_pickled_cams(path)
        found = read_pickled_cams(path, trust_pickle=True)
        assert found.classes.tolist() == classes, name
        np.testing.assert_array_equal(found.cams, cams, err_msg=name)
        if background is None:
            assert found.background is None
        else:
            np.testing.assert_array_equal(found.background, background)


class Trap:
    """Tells when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return _spring, ()


def _spring():
    Trap.sprung = True


def test_nothing_runs_without_trust(tmp_path):
    path = tmp_path / 'a.npy'
    path.write_bytes(pickle.dumps(Trap()))
    save(tmp_path / 'b.npy', {'keys': Trap()})
    for name in ('a.npy', 'b.npy'):
        with pytest.raises(InputError):
            read_pickled_cams(tmp_path / name)
    assert not Trap.sprung


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'keys': [1], 'other': 3}, 'holds no known kind of CAMs'),
        ({'keys': [1, 2, 3], 'cam': maps(2)}, '3 classes and maps of shape'),
        ({'keys': [1, 1], 'cam': maps(2)}, '2 classes and maps of shape'),
        ({'keys': [1, 2], 'IS_CAM': maps(2)}, 'IS_CAM without a background'),
        ({'person': maps(1)[0]}, 'holds no known kind of CAMs'),
        ({1: 255 * maps(1)[0]}, 'normalised to'),
        ({1: -maps(1)[0]}, 'normalised to'),
        ({1: maps(1)[0] * np.nan}, 'normalised to'),
        (maps(2), 'holds no dictionary'),
    ],
)
def test_other_dictionaries_are_named(tmp_path, content, message):
    path = save(tmp_path / 'a.npy', content)
    with pytest.raises(InputError, match=message) as caught:
        read_pickled_cams(path, trust_pickle=True)
    assert '\n' not in str(caught.value)


def test_damaged_pickles_are_named(tmp_path):
    path = save(tmp_path / 'a.npy', {1: maps(1)[0]})
    cut_off(path)
    with pytest.raises(InputError, match='cannot be read as pickled CAMs'):
        read_pickled_cams(path, trust_pickle=True)
    with pytest.raises(InputError, match='does not exist'):
        read_pickled_cams(tmp_path / 'b.npy', trust_pickle=True)


# ------------------------------------------------------------------------ transforms
def sample(**changes):
    return {
        'img': np.zeros((9, 14, 3), np.uint8),
        'img_id': 'a',
        'img_path': 'photos/a.jpg',
        'ori_shape': (9, 14),
        'img_shape': (9, 14),
        'image_label': np.array([0, 1, 0, 1], np.float32),
    } | changes


@pytest.mark.parametrize('background', [False, True])
def test_stored_cams_reach_the_data_sample(tmp_path, background):
    CAMStore(tmp_path).write('a', stored(background=background))
    results = LoadCAMs(cam_root=str(tmp_path)).transform(sample())
    packed = PackCAMs().transform(results)['data_samples']
    expected = CAMStore(tmp_path).read('a')
    assert torch.equal(packed.cams, expected.dense(4))
    assert ('cam_background' in packed) == background
    if background:
        assert packed.cam_background.shape == (1, 3, 4)
    without_id = sample()
    del without_id['img_id']
    assert 'cams' in LoadCAMs(cam_root=str(tmp_path)).transform(without_id)


def test_cams_come_on_a_grid_of_choice(tmp_path):
    CAMStore(tmp_path).write('a', stored(background=True))
    results = LoadCAMs(cam_root=str(tmp_path), grid_size=6).transform(sample())
    assert results['cams'].shape == (4, 6, 6)
    assert results['cam_background'].shape == (1, 6, 6)
    whole = CAMStore(tmp_path).read('a').dense(4)  # (4, 3, 4)
    absent = (whole == 0).all(2).all(1)
    assert not results['cams'][absent].any()
    for grid in (2, 3, 6):
        fine = LoadCAMs(cam_root=str(tmp_path), grid_size=grid).transform(sample())
        for found, stored_map in zip(fine['cams'], whole.numpy(), strict=True):
            expected = Image.fromarray(stored_map).resize((grid, grid), Image.BILINEAR)
            np.testing.assert_allclose(found, np.asarray(expected), atol=1e-5)
    with pytest.raises(InputError, match='grid_size must be 1 or more, got 0'):
        LoadCAMs(cam_root=str(tmp_path), grid_size=0)


def test_cams_of_another_label_or_photo_are_refused(tmp_path):
    CAMStore(tmp_path).write('a', stored())
    load = LoadCAMs(cam_root=str(tmp_path))
    with pytest.raises(InputError, match=r'classes \[1, 3\], but .* has \[1\]'):
        load.transform(sample(image_label=np.array([0, 1, 0, 0])))
    with pytest.raises(InputError, match=r'has \(9, 15\)'):
        load.transform(sample(ori_shape=(9, 15)))
