import numpy as np
import pytest
from scipy import ndimage

from mmwsss.datasets.crops import (
    make_negative_crops,
    make_positive_crops,
    peak_box,
)


def photo(height=40, width=50):
    image = np.arange(height * width * 3).reshape(height, width, 3)
    mask = np.zeros((height, width), np.uint8)
    mask[5:15, 30:45] = 1
    mask[30:32, 0:3] = 255
    return image, mask


def run(make, **options):
    image, mask = photo()
    generator = np.random.default_rng(0)
    return mask, image, make(image, mask, 12, generator=generator, **options)


def test_negative_crops_hold_no_object_and_nothing_unknown():
    mask, image, crops = run(make_negative_crops, n=8)
    assert len(crops) == 8
    for crop, (row, column) in crops:
        assert np.array_equal(crop, image[row : row + 12, column : column + 12])
        assert not mask[row : row + 12, column : column + 12].any()
    corners = np.array([place for _, place in crops])
    apart = np.abs(corners[:, None] - corners[None]).max(-1)
    assert apart[~np.eye(8, dtype=bool)].min() >= 6


def test_max_area_lets_some_pixels_through():
    mask, _, crops = run(make_negative_crops, n=200, max_area=20)
    areas = [(mask[r : r + 12, c : c + 12] != 0).sum() for _, (r, c) in crops]
    assert 0 < max(areas) <= 20


def test_positive_crops_hold_enough_of_the_object():
    mask, image, crops = run(make_positive_crops, n=3, min_area_ratio=0.4)
    assert crops
    for crop, (row, column) in crops:
        part = mask[row : row + 12, column : column + 12]
        assert (part == 1).mean() >= 0.4
        assert np.array_equal(crop, image[row : row + 12, column : column + 12])
    # Every crop shows it, also where no share is asked for.
    mask, _, crops = run(make_positive_crops, n=50, min_area_ratio=0.0)
    assert all((mask[r : r + 12, c : c + 12] == 1).any() for _, (r, c) in crops)


@pytest.mark.parametrize('value', [0, 1])
def test_no_room_no_crops(value):
    image, generator = np.zeros((10, 30, 3)), np.random.default_rng(0)
    mask = np.full((10, 30), value, np.uint8)
    assert make_negative_crops(image, mask, 12, n=2, generator=generator) == []
    found = make_negative_crops(image, mask, 10, n=50, generator=generator)
    # Corners in one row, 5 apart: 3 to 5 of 21 places.
    assert (3 <= len(found) <= 5) if value == 0 else found == []


def test_the_seed_decides_the_places():
    image, mask = photo()
    one, same, other = (
        make_negative_crops(image, mask, 8, n=4, generator=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    places = [[place for _, place in crops] for crops in (one, same, other)]
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize('cut', [0.2, 0.6, 1.0])
def test_peak_box_is_that_of_the_part_with_the_peak(cut):
    generator = np.random.default_rng(1)
    for _ in range(30):
        values = ndimage.gaussian_filter(generator.random((9, 14)), 1.2)
        values = np.clip(values - values.mean(), 0, None)
        parts, _ = ndimage.label(values >= cut * values.max(), np.ones((3, 3)))
        row, column = np.unravel_index(values.argmax(), values.shape)
        rows, columns = ndimage.find_objects((parts == parts[row, column]).astype(int))[
            0
        ]
        expected = rows.start, columns.start, rows.stop, columns.stop
        assert peak_box(values, cut) == expected


def test_an_empty_map_has_no_peak():
    assert peak_box(np.zeros((3, 4)), 0.5) is None
    assert peak_box(np.ones((3, 4)), 0.5) == (0, 0, 3, 4)
