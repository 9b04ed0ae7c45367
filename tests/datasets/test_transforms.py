import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmwsss.datasets import (
    AllClasses,
    LoadDistractorMask,
    LoadMask,
    LoadPhoto,
    PackWSSSInputs,
    RandomCropWithBox,
    RemoveOverlay,
)
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
        assert crop['crop_from'] == (30, 40)
    with pytest.raises(ValueError, match='crop_size'):
        RandomCropWithBox(crop_size=(0, 4))


@pytest.mark.parametrize('size', [(10, 30), (10, 8), (30, 8), (30, 40), (20, 20)])
def test_padded_crops_lie_anywhere_and_are_black_and_void_outside(size):
    image = np.random.default_rng(0).integers(1, 255, (*size, 3), np.uint8)
    mask = image[..., 0] % 7
    transform = RandomCropWithBox(crop_size=(20, 16), pad_to_crop=True)
    boxes = set()
    for _ in range(200):
        photo = {'img': image, 'gt_seg_map': mask, 'seg_fields': ['gt_seg_map']}
        crop = transform.transform(photo)
        assert crop['img'].shape == (20, 16, 3)
        assert crop['img_shape'] == (20, 16)
        assert crop['crop_from'] == size
        x0, y0, x1, y1 = crop['crop_box']
        assert (x1 - x0, y1 - y0) == (16, 20)
        for y in range(20):
            for x in range(16):
                inside = 0 <= y + y0 < size[0] and 0 <= x + x0 < size[1]
                expected = image[y + y0, x + x0] if inside else (0, 0, 0)
                assert tuple(crop['img'][y, x]) == tuple(expected)
                void = mask[y + y0, x + x0] if inside else 255
                assert crop['gt_seg_map'][y, x] == void
        boxes.add((x0, y0))
    # Every place is possible: the photo lies in the crop or the crop in the photo.
    places = (abs(size[0] - 20) + 1) * (abs(size[1] - 16) + 1)
    assert len(boxes) == places if places < 25 else len(boxes) > 25
    assert min(y for _, y in boxes) >= min(0, size[0] - 20)
    assert max(y for _, y in boxes) <= max(0, size[0] - 20)


def test_crops_of_flipped_or_cropped_photos_are_refused():
    crop = RandomCropWithBox(crop_size=(8, 8))
    photo = {'img': np.zeros((30, 40, 3)), 'img_path': 'a.jpg'}
    crop.transform(dict(photo, flip=False))
    for before in ({'flip': True}, crop.transform(dict(photo))):
        with pytest.raises(ValueError, match=r'before RandomFlip; it got a\.jpg'):
            crop.transform({**photo, **before})


def test_packing_keeps_where_the_crop_was():
    results = {'img': np.zeros((30, 40, 3), np.uint8), 'img_id': 'a'}
    results = RandomCropWithBox(crop_size=(30, 20)).transform(results)
    meta = PackWSSSInputs().transform(results)['data_samples'].metainfo
    assert meta['crop_from'] == (30, 40)
    assert meta['crop_box'] == results['crop_box']


def noise():
    values = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    return Image.fromarray(values)


def test_truncation_is_found_whatever_other_libraries_set(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    noise().save(tmp_path / 'a.jpg')
    data = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match='truncated'):
        load(tmp_path / 'a.jpg')


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF'])
def test_damage_is_an_input_error_or_a_photo(tmp_path, kind):
    stream = io.BytesIO()
    noise().save(stream, kind)
    generator = np.random.default_rng(1)
    path = tmp_path / 'a'
    for number in range(60):
        data = bytearray(stream.getvalue())
        for place in generator.integers(0, min(len(data), 200), 3):
            data[place] = generator.integers(256)
        end = generator.integers(len(data)) if number % 2 else len(data)
        path.write_bytes(data[:end])
        try:
            photo = load(path)
        except InputError:
            continue
        assert photo.dtype == np.uint8
        assert photo.ndim == 3


def test_huge_and_floating_point_photos_are_named(tmp_path, monkeypatch):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / 'f.tif')
    with pytest.raises(InputError, match=r'f\.tif has floating point pixels'):
        load(tmp_path / 'f.tif')
    noise().save(tmp_path / 'big.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(InputError, match=r'big\.png'):
        load(tmp_path / 'big.png')


def test_one_bit_masks_and_absent_masks(tmp_path):
    mask = np.arange(24).reshape(4, 6) % 2
    Image.fromarray(mask.astype(bool)).save(tmp_path / 'm.png')
    np.testing.assert_array_equal(load_mask(tmp_path / 'm.png', num_classes=2), mask)
    with pytest.raises(InputError, match=r'absent\.png cannot be read'):
        load_mask(tmp_path / 'absent.png')
    with pytest.raises(InputError, match=r'seg_map_path in data_prefix'):
        LoadMask().transform({'img_path': 'a.jpg', 'ori_shape': (4, 6)})


def test_packing_counts_the_classes():
    photo = np.zeros((4, 6, 3), np.uint8)
    for label in ([0, 0, 0], [1, 0, 1]):
        results = {'img': photo, 'image_label': np.array(label, np.float32)}
        sample = PackWSSSInputs(meta_keys=()).transform(results)['data_samples']
        assert sample.metainfo == {'num_present': sum(label)}
    unlabelled = PackWSSSInputs().transform({'img': photo})['data_samples']
    assert 'num_present' not in unlabelled.metainfo


def binary_mask(tmp_path, *values, **results):
    mask = np.zeros((8, 12), np.uint8)
    mask.flat[: len(values)] = values
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    results = {'ori_shape': (8, 12), 'image_label': np.array([1.0]), **results}
    asked = {'seg_map_path': str(tmp_path / 'mask.png'), **results}
    return LoadMask(num_classes=2).transform(asked)['gt_seg_map']


def test_an_object_saved_as_255_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r'no value but 0 and 255.* save the object as 1'
    ):
        binary_mask(tmp_path, 255, 255)
    assert binary_mask(tmp_path, 1, 255).any()
    # All that is known of these is that 255 is void.
    assert binary_mask(tmp_path, 255, image_label=np.array([0.0])).any()
    assert binary_mask(tmp_path, 255, clip_id='a').any()
    assert not binary_mask(tmp_path).any()


def overlay_results():
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3)
    return {
        'img': image,
        'img_shape': (20, 30),
        'ori_shape': (20, 30),
        'gt_seg_map': image[..., 0],
        'seg_fields': ['gt_seg_map'],
    }


def test_an_overlay_is_cut_off_photo_and_mask():
    image = overlay_results()['img']
    results = RemoveOverlay(top=0.12, left=0.24).transform(overlay_results())
    assert np.array_equal(results['img'], image[2:, 7:])
    assert np.array_equal(results['gt_seg_map'], image[2:, 7:, 0])
    assert results['img_shape'] == results['ori_shape'] == (18, 23)
    same = RemoveOverlay().transform(overlay_results())
    assert np.array_equal(same['img'], image)
    # A crop behind it is still the first one.
    assert RandomCropWithBox(crop_size=(8, 8)).transform(results)['crop_from'] == (
        18,
        23,
    )


def test_an_overlay_is_cut_off_before_anything_else():
    for change in ({'flip': True}, {'img': np.zeros((10, 30, 3))}):
        with pytest.raises(ValueError, match='directly behind the loading steps'):
            RemoveOverlay(top=0.1).transform({**overlay_results(), **change})
    for wrong in ({'top': 1.0}, {'left': -0.1}):
        with pytest.raises(ValueError, match=r'must lie in \[0, 1\), got'):
            RemoveOverlay(**wrong)
    tiny = RemoveOverlay(top=0.99, left=0.99).transform(overlay_results())
    assert tiny['img'].shape == (1, 1, 3)


def test_distractor_masks_are_found_by_id_flipped_and_packed(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[:, :3] = 1
    Image.fromarray(mask).save(tmp_path / 'a.png')
    results = {
        'img_path': 'photos/a.jpg',
        'img': np.zeros((8, 12, 3), np.uint8),
        'ori_shape': (8, 12),
    }
    loaded = LoadDistractorMask(mask_root=str(tmp_path), num_classes=2)
    results = RandomCropWithBox(crop_size=(8, 12)).transform(loaded.transform(results))
    packed = PackWSSSInputs().transform(results)['data_samples']
    assert packed.distractor_map.data.shape == (1, 8, 12)
    assert np.array_equal(packed.distractor_map.data[0].numpy(), mask)
    with pytest.raises(InputError, match=r'b\.png cannot be read'):
        loaded.transform({**results, 'img_id': 'b'})


def test_a_photo_can_be_asked_for_all_classes():
    before = np.array([0.0, 1.0, 0.0], np.float32)
    results = AllClasses().transform({'image_label': before})
    assert results['image_label'].tolist() == [1, 1, 1]
    assert before.tolist() == [0, 1, 0]
