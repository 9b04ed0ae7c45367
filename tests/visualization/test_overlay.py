import numpy as np
import pytest

from mmwsss.visualization.colors import heat_colors, voc_palette
from mmwsss.visualization.overlay import (
    color_labels,
    outline,
    overlay_cam,
    overlay_labels,
    overlay_scores,
)


def test_voc_palette_has_the_published_colours():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 255: (224, 224, 192)}
    for index, color in known.items():
        assert tuple(palette[index]) == color
    assert len({tuple(color) for color in palette}) == 256


def test_heat_gets_lighter_and_survives_nan():
    grey = heat_colors(np.linspace(0, 1, 50)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) >= 0).all()
    assert tuple(heat_colors(np.array(np.nan))) == tuple(heat_colors(np.array(0.0)))


def test_undecided_pixels_are_striped_and_unlike_any_class():
    label = np.full((40, 40), 255)
    label[:, :10] = 1
    colors = color_labels(label)
    assert (colors[:, :10] == voc_palette()[1]).all()
    assert len(np.unique(colors[:, 10:].reshape(-1, 3), axis=0)) == 2


def test_outline_marks_the_border_of_objects_only():
    label = np.zeros((6, 6), dtype=int)
    label[1:5, 1:5] = 2
    edge = outline(label)
    assert edge.sum() == 12
    assert not edge[label == 0].any()
    assert not edge[2:4, 2:4].any()


@pytest.mark.parametrize('size', [(1, 1), (13, 7)])
def test_overlays_keep_the_size_and_leave_the_photo_alone(size):
    photo = np.full((*size, 3), 100, dtype=np.uint8)
    before = photo.copy()
    pictures = [
        overlay_labels(photo, np.full(size, 1)),
        overlay_cam(photo, np.full(size, 0.5)),
        overlay_scores(photo, np.full((3, *size), 0.5)),
        overlay_scores(photo, np.full((1, *size), 0.5)),
    ]
    for picture in pictures:
        assert picture.shape == photo.shape
        assert picture.dtype == np.uint8
    assert (photo == before).all()


def test_background_shows_the_faded_photo():
    photo = np.full((4, 4, 3), 77, dtype=np.uint8)
    assert (overlay_labels(photo, np.zeros((4, 4), dtype=int)) == 77).all()
