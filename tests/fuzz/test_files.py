"""Damaged photos, masks, label maps and stored CAMs: a result, or one sentence."""

import io

import numpy as np
import pytest
from fuzz.mutations import check, damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmwsss.apis.doctor.scan import look_at_photo
from mmwsss.apis.label_folders import read_mask
from mmwsss.datasets.cam_store import CAMStore, LoadCAMs, StoredCAMs
from mmwsss.datasets.transforms import LoadMask, read_photo

pytestmark = pytest.mark.mm
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def encoded(kind: str, mode: str = 'RGB', **options) -> bytes:
    picture, stream = Image.fromarray(PIXELS).convert(mode), io.BytesIO()
    if kind == 'JPEG' and mode == 'RGB':
        # EXIF: turned by 90 degrees.
        exif = Image.Exif()
        exif[0x0112] = 6
        options['exif'] = exif
    picture.save(stream, kind, **options)
    return stream.getvalue()


PHOTOS = {
    'jpeg': encoded('JPEG'),
    'progressive': encoded('JPEG', 'L', progressive=True),
    'cmyk': encoded('JPEG', 'CMYK'),
    'png': encoded('PNG', 'RGBA'),
    'palette': encoded('PNG', 'P'),
    'grey 16': encoded('PNG', 'I;16'),
    'webp': encoded('WEBP'),
    'bmp': encoded('BMP'),
    'tiff': encoded('TIFF', compression='tiff_lzw'),
    'gif': encoded('GIF', 'P'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@fuzzed(300, given(content=st.sampled_from(sorted(PHOTOS.values())).flatmap(damaged)))
def test_photos(folder, content):
    path = folder / 'photo.jpg'
    path.write_bytes(content)

    def read():
        photo = read_photo(str(path))
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
        assert photo.size

    check(read)
    # The doctor goes on to the next photo, whatever this one is.
    look_at_photo(str(path))


MASK = np.where(PIXELS[..., 0] < 128, 0, np.where(PIXELS[..., 1] < 200, 2, 255))


def mask_bytes(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(MASK.astype(np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


MASKS = [mask_bytes('PNG'), mask_bytes('WEBP', lossless=True), mask_bytes('TIFF')]
MASKS += [PHOTOS[name] for name in ('png', 'palette', 'grey 16', 'gif')]


@fuzzed(200, given(content=st.sampled_from(MASKS).flatmap(damaged)))
def test_masks(folder, content):
    path = folder / 'mask.png'
    path.write_bytes(content)
    results = {'seg_map_path': str(path), 'img_path': 'x.jpg', 'ori_shape': (12, 16)}

    def read():
        for mask in (
            read_mask(path, 3),
            LoadMask(num_classes=3).transform(dict(results))['gt_seg_map'],
        ):
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 1, 2, 255}

    check(read)


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Arrays that a foreign or older file might hold."""
    shapes = st.one_of(
        st.just(shape), st.lists(st.integers(0, 4), max_size=4).map(tuple)
    )
    kinds = st.sampled_from(['f2', 'f4', 'f8', 'u1', 'i4', 'i8', 'b1', 'U3', 'c8'])
    fills = st.sampled_from([0, 1, 3, -1, 255, 1e9, float('nan')])

    def make(shape, kind, fill):
        with np.errstate(all='ignore'):
            return np.full(shape, fill).astype(kind)

    return st.builds(make, shapes, kinds, fills)


@st.composite
def stores(draw):
    """The bytes of a store's file: damaged, or with other arrays in it."""
    stream = io.BytesIO()
    good = dict(
        classes=np.array([0, 2], np.uint16),
        cams=np.linspace(0, 1, 24).reshape(2, 3, 4).astype(np.float16),
        size=np.array([12, 16], np.int32),
        background=np.full((3, 4), 128, np.uint8),
        probs=np.array([0.9, 0.1, 0.7], np.float32),
    )
    save = draw(st.sampled_from([np.savez, np.savez_compressed]))
    if draw(st.booleans()):
        save(stream, **good)
        return draw(damaged(stream.getvalue()))
    for name in draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=2)):
        if name in good and draw(st.booleans()):
            del good[name]
        elif name in good:
            good[name] = draw(arrays(good[name].shape))
    save(stream, **good)
    return stream.getvalue()


@fuzzed(300, given(content=stores()))
def test_stored_cams(folder, content):
    store = CAMStore(folder)
    store.path('a').write_bytes(content)
    results = {
        'img_id': 'a',
        'img_path': 'a.jpg',
        'image_label': np.array([1, 0, 1], np.float32),
        'ori_shape': (12, 16),
    }

    def read():
        stored = store.read('a')
        assert isinstance(stored, StoredCAMs)
        for values in (stored.cams, stored.background, stored.probs):
            if values is not None:
                assert ((values > -0.01) & (values < 1.01)).all()
        cams = LoadCAMs(cam_root=str(folder)).transform(results)['cams']
        assert cams.shape == (3, 3, 4)

    check(read)
