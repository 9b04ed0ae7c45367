import numpy as np
import pytest
from PIL import Image

from mmwsss.datasets import LoadMask, LoadPhoto, RandomCropWithBox
from mmwsss.errors import InputError


def load(path):
    return LoadPhoto().transform({'img_path': str(path)})['img']


def gradient():
    return np.linspace(0, 255, 12 * 8).reshape(8, 12).astype(np.uint8)


def test_photo_is_bgr(tmp_path):
    rgb = np.dstack([gradient(), gradient()[::-1], gradient()[:, ::-1]])
    Image.fromarray(rgb).save(tmp_path / 'a.png')
    np.testing.assert_array_equal(load(tmp_path / 'a.png'), rgb[:, :, ::-1])


@pytest.mark.parametrize('mode', ['L', 'P', 'LA', 'RGBA', 'I;16', '1'])
def test_other_modes_become_the_same_grey(tmp_path, mode):
    grey = gradient()
    if mode == 'I;16':
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == '1':
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
        image = Image.fromarray(grey).convert('1')
    else:
        image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / 'a.png')
    np.testing.assert_array_equal(load(tmp_path / 'a.png'), np.dstack([grey] * 3))


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / 'a.png')
    assert (load(tmp_path / 'a.png') == 255).all()


def test_cmyk_and_exif_rotation(tmp_path):
    red = Image.new('RGB', (12, 8), (200, 0, 0))
    red.convert('CMYK').save(tmp_path / 'cmyk.jpg')
    np.testing.assert_allclose(load(tmp_path / 'cmyk.jpg')[0, 0], [0, 0, 200], atol=6)
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path / 'turned.jpg', exif=exif)
    results = LoadPhoto().transform({'img_path': str(tmp_path / 'turned.jpg')})
    assert results['img'].shape == (12, 8, 3)
    assert results['ori_shape'] == (12, 8)


def test_truncated_empty_and_missing_photos_are_named(tmp_path):
    path = tmp_path / 'a.jpg'
    Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    ).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r'a\.jpg is truncated or damaged'):
        load(path)
    path.write_bytes(b'')
    with pytest.raises(InputError, match=r'a\.jpg is truncated or damaged'):
        load(path)
    with pytest.raises(InputError, match=r'b\.jpg does not exist'):
        load(tmp_path / 'b.jpg')


def load_mask(path, **options):
    results = {'seg_map_path': str(path), 'ori_shape': (4, 6)}
    return LoadMask(**options).transform(results)['gt_seg_map']


def test_palette_masks_keep_their_indices(tmp_path):
    mask = np.array([[0, 1, 2, 255, 1, 0]] * 4, np.uint8)
    image = Image.fromarray(mask).convert('P')
    image.putdata(mask.flatten().tolist())
    image.save(tmp_path / 'm.png')
    np.testing.assert_array_equal(load_mask(tmp_path / 'm.png', num_classes=3), mask)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.zeros((5, 6), np.uint8), 'is 6x5, its photo 6x4'),
        (np.full((4, 6), 7, np.uint8), 'holds the value 7'),
        (np.zeros((4, 6, 3), np.uint8), 'index or palette PNG'),
    ],
)
def test_wrong_masks_are_named(tmp_path, mask, message):
    Image.fromarray(mask).save(tmp_path / 'm.png')
    with pytest.raises(InputError, match=message):
        load_mask(tmp_path / 'm.png', num_classes=3)


def test_crop_box_says_where_the_crop_was():
    image = np.arange(30 * 40 * 3).reshape(30, 40, 3)
    np.random.seed(0)
    for _ in range(20):
        crop = RandomCropWithBox(crop_size=(8, 50)).transform({'img': image})
        x0, y0, x1, y1 = crop['crop_box']
        assert (x0, x1) == (0, 40)
        assert y1 - y0 == 8
        np.testing.assert_array_equal(crop['img'], image[y0:y1, x0:x1])
        assert crop['img_shape'] == (8, 40)
    with pytest.raises(ValueError, match='crop_size'):
        RandomCropWithBox(crop_size=(0, 4))
