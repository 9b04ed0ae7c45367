import math

import cv2
import numpy as np
import pytest
import torch

from mmwsss.functional import color_words, otsu_threshold, threshold_information


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


def information(words, above):
    """Mutual information in nats, from its definition, pair by pair."""
    total, found = len(words), 0.0
    for word in set(words):
        for side in (False, True):
            both = sum(
                w == word and a == side for w, a in zip(words, above, strict=True)
            )
            if both:
                own = sum(w == word for w in words)
                others = sum(a == side for a in above)
                found += both / total * math.log(both * total / (own * others))
    return found


def test_threshold_information_is_mutual_information():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 5, (3, 7, 6), generator=generator)
    scores = torch.rand(3, 7, 6, generator=generator)
    scores[2] = words[2] / 5
    thresholds = torch.tensor([-1.0, 0.0, 0.2, 0.4999, 0.5, 0.8, 1.0])
    scores[0, 0, 0], scores[1, 2, 3] = 0.5, 0.2
    found = threshold_information(words, scores, thresholds=thresholds, num_words=9)
    assert found.shape == (3, 7)
    for n in range(3):
        for t, threshold in enumerate(thresholds):
            above = (scores[n] > threshold).flatten().tolist()
            expected = information(words[n].flatten().tolist(), above)
            assert found[n, t] == pytest.approx(expected, abs=1e-12)
    assert found[:, 0].abs().max() == 0


def test_given_a_place_only_what_is_said_beside_it_counts():
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 4, (2, 9, 8), generator=generator)
    places = torch.randint(0, 3, (2, 9, 8), generator=generator)
    scores = (torch.rand(2, 9, 8, generator=generator) + words / 4 + places) / 5
    thresholds = torch.tensor([-1.0, 0.1, 0.25, 0.4, 0.6])
    given = dict(thresholds=thresholds, num_words=4)
    found = threshold_information(words, scores, **given, places=places, num_places=5)
    for n in range(2):
        for t, threshold in enumerate(thresholds):
            # The mean over the places of what the words say inside of each.
            expected = 0.0
            for place in range(3):
                inside = places[n] == place
                above = (scores[n][inside] > threshold).tolist()
                share = float(inside.float().mean())
                expected += share * information(words[n][inside].tolist(), above)
            assert found[n, t] == pytest.approx(expected, abs=1e-7)
    # The same place everywhere is none; words that name the place say nothing.
    nowhere = torch.zeros_like(places)
    plain = threshold_information(words, scores, **given)
    same = threshold_information(words, scores, **given, places=nowhere)
    assert torch.allclose(plain, same)
    found = threshold_information(
        places, scores, thresholds=thresholds, num_words=3, places=places, num_places=3
    )
    assert found.abs().max() < 1e-12


def test_a_cut_that_tells_the_words_apart_says_all():
    words = torch.tensor([[[0, 0, 1, 1]]])
    scores = torch.tensor([[[0.1, 0.2, 0.7, 0.9]]])
    found = threshold_information(
        words, scores, thresholds=torch.tensor([0.15, 0.5, 0.8]), num_words=2
    )
    assert found[0, 1] == pytest.approx(math.log(2))
    assert found[0].argmax() == 1


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (dict(words=torch.zeros(1, 2, 2, dtype=torch.long)), 'N, H, W'),
        (dict(thresholds=torch.tensor([0.5, 0.5])), 'increase'),
        (dict(thresholds=torch.tensor([[0.5]])), 'increase'),
        (dict(num_words=2), r'\[0, 2\), got 0 to 2'),
        (dict(words=torch.full((1, 2, 3), -1)), 'got -1'),
        (dict(scores=torch.zeros(1, 0, 3), words=torch.zeros(1, 0, 3)), 'N, H, W'),
        (dict(places=torch.zeros(1, 3, 2, dtype=torch.long)), r'\(1, 2, 3\) as the'),
        (dict(places=torch.ones(1, 2, 3, dtype=torch.long)), r'places .* got 1 to 1'),
    ],
)
def test_information_refuses(change, sentence):
    given = dict(
        words=torch.tensor([[[0, 1, 2], [0, 0, 0]]]),
        scores=torch.rand(1, 2, 3),
        thresholds=torch.tensor([0.2, 0.5]),
        num_words=3,
    )
    given |= change
    words, scores = given.pop('words'), given.pop('scores')
    with pytest.raises(ValueError, match=sentence):
        threshold_information(words, scores, **given)


def test_color_words_are_levels_of_equal_frequency():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 12, 15, generator=generator)
    words = color_words(image)
    assert words.shape == (2, 12, 15)
    for n in range(2):
        for channel in range(3):
            level = words[n] // 3 ** (2 - channel) % 3
            assert level.flatten().bincount().tolist() == [60, 60, 60]
            values = image[n, channel]
            assert values[level == 0].max() < values[level == 1].min()
            assert values[level == 1].max() < values[level == 2].min()
    # Neither exposure nor contrast nor the other photo matter.
    assert torch.equal(color_words(image * 0.3 + 5)[1:], color_words(image[1:]))


def test_equal_colors_have_equal_words():
    image = torch.zeros(1, 3, 4, 4)
    image[0, :, 0, 0] = 1
    assert color_words(image, levels=2)[0].unique().numel() <= 2
    assert color_words(torch.zeros(1, 3, 1, 1)).unique().numel() == 1
    with pytest.raises(ValueError, match='levels'):
        color_words(image, levels=1)
    with pytest.raises(ValueError, match='N, 3, H, W'):
        color_words(image[0])
