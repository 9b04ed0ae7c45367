import cv2
import numpy as np
import pytest
import torch

from mmwsss.functional import otsu_threshold


def slow(values):
    """Between-group variance at every candidate, from the definition."""
    values = np.asarray(values, np.float64).ravel()
    low, high = values.min(), values.max()
    best, found = -1.0, low
    for step in range(1, 256):
        cut = low + step * (high - low) / 256
        below, above = values[values <= cut], values[values > cut]
        if len(below) and len(above):
            spread = len(below) * len(above) * (above.mean() - below.mean()) ** 2
            if spread > best * (1 + 1e-9):
                best, found = spread, cut
    return found


def two_hills(seed):
    generator = torch.Generator().manual_seed(seed)
    low = 0.2 + 0.1 * torch.randn(300, generator=generator)
    high = 0.8 + 0.08 * torch.randn(100, generator=generator)
    return torch.cat([low, high]).clamp(0, 1).view(20, 20)


@pytest.mark.parametrize('seed', range(4))
def test_equals_the_definition(seed):
    maps = two_hills(seed)
    assert float(otsu_threshold(maps)) == pytest.approx(slow(maps), abs=1e-6)


def test_cuts_grey_levels_as_opencv():
    grey = (two_hills(9) * 255).round()
    grey[0, 0], grey[0, 1] = 0, 255
    level, _ = cv2.threshold(grey.byte().numpy(), 0, 255, cv2.THRESH_OTSU)
    ours = grey > otsu_threshold(grey, bins=255)
    assert torch.equal(ours, grey > level)


def test_each_map_of_a_batch_has_its_own():
    maps = torch.stack([two_hills(0), 0.5 * two_hills(1)])[:, None]
    found = otsu_threshold(maps)
    assert found.shape == (2, 1)
    assert torch.equal(found[1, 0], otsu_threshold(maps[1, 0]))
    assert float(found[1]) < 0.35 < float(found[0])


def test_does_not_depend_on_scale_or_offset():
    maps = two_hills(2)
    expected = 4 * float(otsu_threshold(maps)) - 3
    shifted = otsu_threshold(4 * maps - 3)
    assert float(shifted) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.7])
def test_a_flat_map_is_all_background(value):
    maps = torch.full((5, 6), value)
    assert not (maps > otsu_threshold(maps)).any()


def test_two_values_are_parted():
    maps = torch.tensor([[0.0, 0.0, 1e-30], [0.0, 0.0, 1e-30]])
    assert (maps > otsu_threshold(maps)).tolist() == [[False, False, True]] * 2


def test_refuses_what_has_no_pixels():
    with pytest.raises(ValueError, match=r'got \(3,\)'):
        otsu_threshold(torch.zeros(3))
    with pytest.raises(ValueError, match=r'\(2, 0, 3\)'):
        otsu_threshold(torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match='bins must be at least 2, got 1'):
        otsu_threshold(torch.zeros(2, 3), bins=1)
