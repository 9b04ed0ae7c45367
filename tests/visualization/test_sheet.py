import numpy as np
import pytest

from mmwsss.visualization.sheet import tile_sheet


def plain(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_every_tile_is_on_the_sheet_below_its_caption():
    rows = [
        [plain(30, 60, 10), plain(30, 60, 20)],
        [plain(60, 30, 30), plain(60, 30, 40)],
    ]
    sheet = tile_sheet(rows, ['one', 'two'], tile_side=40)
    assert sheet.dtype == np.uint8
    places = {
        value: np.argwhere((sheet == value).all(-1)) for value in (10, 20, 30, 40)
    }
    assert [len(places[v]) for v in (10, 20, 30, 40)] == [40 * 20] * 4
    assert places[10][:, 1].max() < places[20][:, 1].min()
    assert places[10][:, 0].max() < places[30][:, 0].min()
    assert (places[10][:, 1].min()) == places[30][:, 1].min()
    # Captions stand above the first row.
    assert (sheet[: places[10][:, 0].min()] < 128).any()


def test_one_pixel_and_missing_tiles():
    assert tile_sheet([[plain(1, 1, 0)]], ['a'], tile_side=4).shape[2] == 3
    for rows, titles in (([], ['a']), ([[]], []), ([[plain(1, 1, 0)]], ['a', 'b'])):
        with pytest.raises(ValueError, match='each row must hold'):
            tile_sheet(rows, titles)
