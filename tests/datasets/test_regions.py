"""Pieces of photos that are laid on others."""

import numpy as np
import pytest
from PIL import Image

from mmwsss.datasets import PasteRegions
from mmwsss.datasets.image_labels import save_image_labels
from mmwsss.errors import InputError

CLASSES = ('smoke', 'boat')
# Piece -> its shades of blue, one a column, its height, the classes of its photo.
PIECES = {
    'none': ((10, 20, 30), 5, []),
    'wide': ((40, 50, 60, 70, 80), 2, []),
    'boat': ((90, 100), 2, ['boat']),
    'both': ((110, 120), 2, ['smoke', 'boat']),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    for name, (shades, height, _) in PIECES.items():
        rgb = np.zeros((height, len(shades), 3), np.uint8)
        rgb[..., 2] = shades
        Image.fromarray(rgb).save(tmp_path / f'JPEGImages/{name}.png')
    labels = {name: names for name, (_, _, names) in PIECES.items()}
    save_image_labels(tmp_path / 'image_labels.json', CLASSES, labels)
    (tmp_path / 'list.txt').write_text('none\nwide\n')
    return str(tmp_path)


def pasted(transform, *, label=(0, 0), size=(12, 16), seed=0, mask=False):
    """The blue channel after the transform of a photo whose blue is 255."""
    np.random.seed(seed)
    image = np.full((*size, 3), 255, np.uint8)
    results = {'img': image, 'image_label': np.array(label, np.float32)}
    if mask:
        results |= {'gt_seg_map': np.ones(size, np.uint8), 'seg_fields': ['gt_seg_map']}
    found = transform.transform(results)
    assert (image == 255).all()  # others may hold the same array
    return (found['img'][..., 0], found['gt_seg_map']) if mask else found['img'][..., 0]


def names_in(blue):
    """Pieces with a column of their own shade in the picture."""
    return {
        name for name, (shades, *_) in PIECES.items() if np.isin(blue, shades).any()
    }


def test_a_piece_lies_whole_at_any_place_flipped_or_not(folder):
    transform = PasteRegions(data_root=folder, ann_file='list.txt', prob=1.0)
    corners, flips, seen = set(), set(), set()
    for seed in range(600):
        blue = pasted(transform, seed=seed, size=(7, 6))
        rows, columns = np.nonzero(blue != 255)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        (name,) = names_in(blue)
        shades, height, _ = PIECES[name]
        turned = bool(blue[box][0, 0] != shades[0])
        expected = np.tile(shades[::-1] if turned else shades, (height, 1))
        np.testing.assert_array_equal(blue[box], expected)
        corners.add((name, rows.min(), columns.min()))
        flips.add(turned)
        seen.add(name)
    assert seen == {'none', 'wide'}
    assert flips == {True, False}
    # 3 x 4 places of the one, 6 x 2 of the other.
    assert len(corners) == 24


def test_a_photo_takes_pieces_alone_whose_classes_it_has(folder):
    transform = PasteRegions(data_root=folder, prob=1.0, max_regions=3)
    for label, allowed in (
        ((0, 0), {'none', 'wide'}),
        ((1, 0), {'none', 'wide'}),
        ((0, 1), {'none', 'wide', 'boat'}),
        ((1, 1), set(PIECES)),
    ):
        seen = [names_in(pasted(transform, label=label, seed=s)) for s in range(80)]
        assert set().union(*seen) == allowed, label
        assert {1, 2} <= {len(names) for names in seen}


def test_a_photo_without_fitting_pieces_stays_as_it_is(folder, tmp_path):
    (tmp_path / 'list.txt').write_text('boat both\n')
    transform = PasteRegions(data_root=folder, ann_file='list.txt', prob=1.0)
    assert all((pasted(transform, seed=s) == 255).all() for s in range(10))
    assert (pasted(transform, label=(0, 1)) != 255).any()


def test_share_of_photos(folder):
    for prob in (0.0, 0.3, 1.0):
        transform = PasteRegions(data_root=folder, prob=prob)
        changed = [(pasted(transform, seed=s) != 255).any() for s in range(400)]
        assert np.mean(changed) == pytest.approx(prob, abs=0.06)


def test_masks_are_void_below_a_piece(folder):
    transform = PasteRegions(data_root=folder, prob=1.0, max_regions=2)
    for seed in range(5):
        blue, mask = pasted(transform, mask=True, seed=seed)
        np.testing.assert_array_equal(mask == 255, blue != 255)
        assert set(np.unique(mask)) == {1, 255}


def test_a_piece_larger_than_the_photo_loses_what_is_too_much(folder):
    transform = PasteRegions(data_root=folder, ann_file='list.txt', prob=1.0)
    found = [pasted(transform, size=(2, 2), seed=s) for s in range(40)]
    assert all((blue != 255).all() for blue in found)
    # Any part of it, not the upper left one alone.
    assert {int(shade) for blue in found for shade in blue[0]} >= {10, 30, 40, 80}


def test_boxes_come_from_photos_without_objects(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    rgb = np.zeros((40, 60, 3), np.uint8)
    for name, blue in (('empty', 100), ('smoke', 200)):
        rgb[..., 2] = blue
        Image.fromarray(rgb).save(tmp_path / f'JPEGImages/{name}.png')
    labels = {'empty': [], 'smoke': ['smoke']}
    save_image_labels(tmp_path / 'image_labels.json', CLASSES, labels)
    transform = PasteRegions(data_root=str(tmp_path), box=(0.1, 0.3), prob=1.0)
    sizes = []
    for seed in range(100):
        blue = pasted(transform, label=(1, 0), size=(40, 60), seed=seed)
        assert set(np.unique(blue)) == {100, 255}
        rows, columns = np.nonzero(blue == 100)
        sizes.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
        assert len(rows) == np.prod(sizes[-1])
    assert (np.min(sizes, 0) == (4, 6)).all()
    assert (np.max(sizes, 0) == (12, 18)).all()
    save_image_labels(
        tmp_path / 'image_labels.json',
        CLASSES,
        {'empty': ['smoke'], 'smoke': ['smoke']},
    )
    with pytest.raises(InputError, match='no piece of a photo without objects'):
        PasteRegions(data_root=str(tmp_path), box=(0.1, 0.3))


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'prob': 1.5}, 'prob must lie in .*, got 1.5'),
        ({'max_regions': 0}, 'at least 1, got 0'),
        ({'box': (0.5, 0.2)}, 'ascending shares .*, got'),
        ({'box': (0.0, 0.2)}, 'ascending shares .*, got'),
        ({'box': (0.1, 1.2)}, 'ascending shares .*, got'),
    ],
)
def test_numbers_out_of_range_are_refused(folder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PasteRegions(data_root=folder, **options)


def test_folders_that_hold_no_pieces_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r'none/JPEGImages does not exist; make it'):
        PasteRegions(data_root=str(tmp_path / 'none'))
    with pytest.raises(InputError, match=r'the list .*lost\.txt cannot be read'):
        PasteRegions(data_root=folder, ann_file='lost.txt')
    (tmp_path / 'list.txt').write_text('none\nother\n')
    with pytest.raises(InputError, match=r'1 of 2 photos .* the first is other'):
        PasteRegions(data_root=folder, ann_file='list.txt')
    transform = PasteRegions(data_root=folder, prob=1.0)
    with pytest.raises(InputError, match='of 2 classes, the data set has 3'):
        pasted(transform, label=(0, 0, 1))
    save_image_labels(tmp_path / 'image_labels.json', CLASSES, {'none': []})
    with pytest.raises(InputError, match='has no entry for boat'):
        PasteRegions(data_root=folder)
