import pytest
import torch

from mmwsss.functional import fill_from_neighbours


def test_a_tower_takes_sky_above_and_ground_below():
    image = torch.zeros(3, 24, 9)
    image[:, :12] = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)
    image[:, 12:] = torch.tensor([0.4, 0.3, 0.1]).view(3, 1, 1)
    plain, region = image.clone(), torch.zeros(24, 9, dtype=torch.bool)
    region[2:22, 3:6] = True
    image[:, region] = 1.0
    filled = fill_from_neighbours(image, region)
    assert torch.equal(filled[:, ~region], plain[:, ~region])
    # Near the horizon both are near.
    rows = [*range(10), *range(15, 24)]
    torch.testing.assert_close(filled[:, rows], plain[:, rows])


def test_one_hidden_pixel_is_the_median_of_its_neighbours():
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3).repeat(3, 1, 1)
    image[1] *= 10
    region = torch.zeros(3, 3, dtype=torch.bool)
    region[1, 1] = True
    filled = fill_from_neighbours(image, region, radius=1)
    # Of 0 1 2 3 5 6 7 8 the lower median.
    assert filled[:, 1, 1].tolist() == [3, 30, 3]
    assert filled.dtype == torch.uint8


def test_nothing_and_everything():
    image = torch.rand(3, 4, 5)
    for value in (False, True):
        region = torch.full((4, 5), value)
        assert torch.equal(fill_from_neighbours(image, region), image)


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r'got \(3, 4, 5\) and \(5, 4\)'):
        fill_from_neighbours(torch.rand(3, 4, 5), torch.zeros(5, 4))
    with pytest.raises(ValueError, match='radius must be at least 1, got 0'):
        fill_from_neighbours(torch.rand(3, 4, 5), torch.zeros(4, 5), radius=0)
