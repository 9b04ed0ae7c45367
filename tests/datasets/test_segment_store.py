import numpy as np
import pytest

pytest.importorskip('mmengine')

from mmwsss.datasets import SegmentStore
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (16, 8)])
def test_segments_come_back_as_they_were(tmp_path, size):
    masks = np.random.default_rng(0).random((4, *size)) > 0.5
    store = SegmentStore(tmp_path)
    store.write('camera/a', masks)
    found = store.read('camera/a')
    assert found.dtype == bool
    assert np.array_equal(found, masks)
    # A list of arrays is as good, and no segment at all is legal.
    store.write('b', [mask.copy() for mask in masks])
    assert store.path('b').read_bytes() == store.path('camera/a').read_bytes()
    store.write('none', [], size=size)
    assert store.read('none').shape == (0, *size)


def test_the_format_is_the_documented_one(tmp_path):
    mask = np.zeros((2, 5), bool)
    mask[0, 0] = mask[1, 4] = True
    SegmentStore(tmp_path).write('a', [mask])
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as content:
        assert content['size'].tolist() == [2, 5]
        assert content['packed'].tolist() == [[0b10000000, 0b01000000]]


def test_what_is_no_segment_is_refused_when_written(tmp_path):
    store = SegmentStore(tmp_path)
    cases = [
        (dict(masks=np.zeros((1, 2, 2))), 'boolean, got float64'),
        (dict(masks=[np.zeros((2, 2), bool), np.zeros((2, 3), bool)]), 'one height'),
        (dict(masks=[]), 'give size='),
        (dict(masks=np.zeros((1, 2, 2), bool), size=(3, 2)), r'\(2, 2\), \(3, 2\)'),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            store.write('a', **arguments)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_one_sentence(tmp_path):
    store = SegmentStore(tmp_path)
    with pytest.raises(InputError, match=r'a\.npz does not exist; write one with'):
        store.read('a')
    store.write('a', np.ones((3, 40, 50), bool))
    whole = store.path('a').read_bytes()
    store.path('a').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match='cannot be read as stored segments'):
        store.read('a')
    pickled = np.array([{'segmentation': 1}], dtype=object)
    good = np.array([4, 4], np.int32)
    for content in (
        dict(size=good, packed=pickled),
        dict(size=good),
    ):
        np.savez(store.path('a'), **content)
        with pytest.raises(InputError, match='cannot be read as stored segments'):
            store.read('a')
    for content, message in (
        (dict(size=good, packed=np.zeros((1, 3), np.uint8)), r'must be uint8 \(M, 2\)'),
        (dict(size=good, packed=np.zeros((1, 2))), 'must be uint8'),
        (dict(size=good[:1], packed=np.zeros((1, 2), np.uint8)), 'a height and a w'),
        (dict(size=good * 0, packed=np.zeros((1, 0), np.uint8)), 'a height and a w'),
    ):
        np.savez(store.path('a'), **content)
        with pytest.raises(InputError, match=message):
            store.read('a')
