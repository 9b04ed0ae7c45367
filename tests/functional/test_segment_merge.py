import numpy as np
import pytest
import torch

from mmwsss.functional import follow_label, merge_segments_iou, merge_segments_sepl
from mmwsss.functional.segment_merge import winning_label


def draw(seed, num_masks=2, num_segments=5, size=(7, 9)):
    """Rectangles: disjoint class masks, segments that overlap."""
    generator = np.random.default_rng(seed)

    def box():
        mask = np.zeros(size, bool)
        y, x = generator.integers(0, (size[0] - 1, size[1] - 1))
        h, w = generator.integers(1, 6, 2)
        mask[y : y + h, x : x + w] = True
        return mask

    masks = np.stack([box() for _ in range(num_masks)])
    for k in range(1, num_masks):
        masks[k] &= ~masks[:k].any(0)
    segments = [box() for _ in range(num_segments)]
    # Some are a mask but for a pixel, as a good generator's are.
    segments[0] = masks[0].copy()
    segments[0][0, 0] ^= True
    return masks, np.stack(segments)


def pixels(mask):
    return {tuple(p) for p in np.argwhere(mask)}


def by_sets(masks, segments, rule, **options):
    """The definitions on sets of pixels."""
    masks = [pixels(m) for m in masks]
    segments_of = [[] for _ in masks]
    area = segments[0].size
    segments = [pixels(s) for s in segments]
    for segment in segments:
        best, best_fit = None, -1
        for k, mask in enumerate(masks):
            shared = len(segment & mask)
            if rule == 'iou':
                fit = shared / max(len(segment | mask), 1)
                wanted = (
                    fit > options['min_iou']
                    and len(segment) / area <= options['max_area']
                )
            else:
                fit = shared
                wanted = shared > 0 and (
                    shared / len(segment) > 0.5 or shared / len(mask) >= 0.85
                )
            if wanted and fit > best_fit:
                best, best_fit = k, fit
        if best is not None:
            segments_of[best].append(segment)
    result = []
    for mask, own in zip(masks, segments_of, strict=True):
        union = set().union(*own)
        if rule == 'sepl':
            result.append(union | (mask - set().union(*segments)))
        elif not own:
            result.append(mask)
        else:
            combine = {'or': mask | union, 'and': mask & union, 'replace': union}
            result.append(combine[options['combine']])
    return result


@pytest.mark.parametrize('combine', ['or', 'and', 'replace'])
def test_iou_rule_equals_its_definition_on_sets(combine):
    changed = 0
    for seed in range(60):
        masks, segments = draw(seed)
        options = dict(min_iou=0.3, max_area=0.3, combine=combine)
        found = merge_segments_iou(
            torch.from_numpy(masks), torch.from_numpy(segments), **options
        )
        expected = by_sets(masks, segments, 'iou', **options)
        assert [pixels(f.numpy()) for f in found] == expected, seed
        changed += not np.array_equal(found.numpy(), masks)
    assert changed > 5


def test_sepl_rule_equals_its_definition_on_sets():
    changed = 0
    for seed in range(60):
        masks, segments = draw(seed, num_masks=3)
        found = merge_segments_sepl(torch.from_numpy(masks), torch.from_numpy(segments))
        assert [pixels(f.numpy()) for f in found] == by_sets(masks, segments, 'sepl')
        changed += not np.array_equal(found.numpy(), masks)
    assert changed > 10


def test_a_segment_goes_to_one_class_alone():
    row = torch.zeros(2, 1, 10, dtype=torch.bool)
    row[0, 0, :4] = row[1, 0, 4:10] = True
    whole = torch.ones(1, 1, 10, dtype=torch.bool)
    # It holds all of both; the second is the larger part.
    found = merge_segments_sepl(row, whole)
    assert found[0].sum() == 0
    assert found[1].all()
    found = merge_segments_iou(row, whole, max_area=1.0)
    assert torch.equal(found[0], row[0])
    assert found[1].all()
    # A segment of all the photo says nothing by default.
    assert torch.equal(merge_segments_iou(row, whole), row)


def test_nothing_to_merge_is_legal():
    none = torch.zeros(0, 4, 5, dtype=torch.bool)
    some = torch.rand(2, 4, 5) > 0.5
    for merge in (merge_segments_iou, merge_segments_sepl):
        assert torch.equal(merge(some, none), some)
        assert merge(none, some).shape == (0, 4, 5)
        empty = torch.zeros_like(some)
        # An empty class shares no pixel with any segment, an empty segment none.
        assert not merge(empty, some).any()
        assert torch.equal(merge(some, empty), some)


@pytest.mark.parametrize(
    ('masks', 'segments', 'message'),
    [
        (
            torch.zeros(1, 2, 2),
            torch.zeros(1, 2, 2) > 0,
            r'masks .*\(1, 2, 2\) torch.f',
        ),
        (torch.zeros(1, 2, 2) > 0, torch.zeros(2, 2) > 0, 'segments must be three-dim'),
        (torch.zeros(1, 2, 2) > 0, torch.zeros(1, 2, 3) > 0, r'\(2, 2\) and \(2, 3\)'),
    ],
)
def test_wrong_masks_are_refused(masks, segments, message):
    for merge in (merge_segments_iou, merge_segments_sepl):
        with pytest.raises(ValueError, match=message):
            merge(masks, segments)
    some = torch.zeros(1, 2, 2) > 0
    with pytest.raises(ValueError, match=r"combine must be .* 'xor'"):
        merge_segments_iou(some, some, combine='xor')


def test_overlapping_masks_go_to_the_better_score():
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]]) > 0
    scores = torch.tensor([[[0.1, 0.5, 0.9, 0.9]], [[0.9, 0.6, 0.1, 0.9]]])
    assert winning_label(masks, scores).tolist() == [[1, 2, 2, 0]]
    assert winning_label(masks[:0], scores[:0]).tolist() == [[0] * 4]
    with pytest.raises(ValueError, match='one shape'):
        winning_label(masks, scores[:1])


def test_scores_follow_a_label_and_keep_their_values():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (2, 5, 6), generator=generator)
    found = follow_label(scores, label)
    assert torch.equal(found.argmax(1), label)
    assert torch.equal(found.sort(1).values, scores.sort(1).values)
    same = scores.argmax(1) == label
    assert torch.equal(found.movedim(1, -1)[same], scores.movedim(1, -1)[same])
    assert torch.equal(follow_label(scores, scores.argmax(1)), scores)


def test_scores_follow_a_label_through_ties():
    scores = torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    for wanted in range(3):
        label = torch.full((1, 1, 3), wanted)
        found = follow_label(scores.t()[None, :, None], label)
        assert (found.argmax(1) == wanted).all(), wanted
        assert (found >= 0).all()
    with pytest.raises(ValueError, match='label'):
        follow_label(scores.view(1, 3, 3, 1), torch.zeros(1, 2, 2).long())
