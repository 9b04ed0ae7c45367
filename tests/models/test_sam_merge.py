import pytest
import torch

pytest.importorskip('mmengine')

from mmwsss.errors import InputError
from mmwsss.functional import (
    merge_segments_iou,
    merge_segments_sepl,
    restrict_to_image_classes,
    scores_to_label,
)
from mmwsss.models.refiners import SAMMerge

pytestmark = pytest.mark.mm


def case():
    """Two photos, three classes; the first shows classes 1 and 3, the second none."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 12, 16, generator=generator)
    scores = torch.rand(2, 4, 12, 16, generator=generator)
    scores[0, 3, 2:7, 2:9] += 1
    image_label = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    segments = torch.zeros(3, 12, 16, dtype=torch.bool)
    segments[0, 1:8, 1:9] = segments[1, 3:6, 10:] = segments[2, 9:] = True
    return image, scores, image_label, [segments, segments[:1]]


@pytest.mark.parametrize('rule', ['iou', 'sepl'])
def test_the_label_is_that_of_the_merged_masks(rule):
    image, scores, image_label, segments = case()
    refined = SAMMerge(segments='', rule=rule)(image, scores, image_label, segments)
    before = scores_to_label(scores, image_label)
    after = scores_to_label(refined, image_label)
    merge = {'iou': merge_segments_iou, 'sepl': merge_segments_sepl}[rule]
    masks = merge(torch.stack([before[0] == 1, before[0] == 3]), segments[0])
    once = masks[0] ^ masks[1]
    assert ((after[0] == 1) == masks[0])[once].all()
    assert ((after[0] == 3) == masks[1])[once].all()
    assert (after[0] == 0)[~masks.any(0)].all()
    assert masks[1].any()
    assert not torch.equal(before[0], after[0])
    # A photo without objects stays one, and where nothing changed scores are the same.
    assert (after[1] == 0).all()
    same = before == after
    allowed = restrict_to_image_classes(scores, image_label, fill=0.0)
    assert torch.equal(refined.movedim(1, -1)[same], allowed.movedim(1, -1)[same])


def test_absent_classes_never_win():
    image, scores, image_label, segments = case()
    scores[:, 2] = 5.0  # absent in both
    refined = SAMMerge(segments='')(image, scores, image_label, segments)
    label = scores_to_label(refined, image_label)
    assert not (label == 2).any()
    expected = SAMMerge(segments='')(image, case()[1], image_label, segments)
    assert torch.equal(label, scores_to_label(expected, image_label))


def test_scores_of_another_size_are_resized():
    image, scores, image_label, segments = case()
    refined = SAMMerge(segments='')(image, scores[..., ::4, ::4], image_label, segments)
    assert refined.shape == (2, 4, 12, 16)


def test_it_says_what_is_missing_or_wrong():
    image, scores, image_label, _ = case()
    with pytest.raises(
        InputError, match=r'which only python tools/make_pseudo_labels\.py'
    ):
        SAMMerge(segments='x')(image, scores, image_label)
    for options, message in (
        (dict(rule='best'), "rule must be .* 'best'"),
        (dict(combine='xor'), "combine must be .* 'xor'"),
        (dict(min_iou=1.5), 'min_iou must be in .* 1.5'),
        (dict(min_share=-1), 'min_share must be in .* -1'),
    ):
        with pytest.raises(ValueError, match=message):
            SAMMerge(segments='x', **options)
