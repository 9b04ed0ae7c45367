import math

import pytest
import torch

from mmwsss.functional import (
    CellSums,
    co_occurrence_scores,
    region_counts,
    region_iou,
)


def random_photo(seed, num_classes=3, size=(7, 6)):
    generator = torch.Generator().manual_seed(seed)
    # Few levels, so that ties and values equal to a threshold occur.
    cams = torch.randint(0, 6, (num_classes, *size), generator=generator) / 5
    target = torch.randint(0, num_classes + 1, size, generator=generator)
    distractor = torch.randint(0, num_classes + 1, size, generator=generator)
    target[0, :2], distractor[1, :2] = 255, 255
    return cams, target, distractor


def slow_counts(cams, target, distractor, thresholds):
    num_classes = len(cams)
    predicted = torch.zeros(len(thresholds), num_classes, 3, dtype=torch.int64)
    total = torch.zeros(num_classes, 3, dtype=torch.int64)
    alarms = torch.zeros(len(thresholds), dtype=torch.int64)
    for y in range(target.shape[0]):
        for x in range(target.shape[1]):
            if target[y, x] == 255 or distractor[y, x] == 255:
                continue
            regions = []
            for k in range(num_classes):
                if target[y, x] == k + 1:
                    regions.append(0)
                else:
                    regions.append(1 if distractor[y, x] == k + 1 else 2)
                total[k, regions[k]] += 1
            values = cams[:, y, x].tolist()
            winner = values.index(max(values))
            for t, threshold in enumerate(thresholds):
                if values[winner] > threshold:
                    predicted[t, winner, regions[winner]] += 1
                    alarms[t] += int(target[y, x]) == 0
    return predicted, total, alarms


@pytest.mark.parametrize('num_classes', [1, 3])
def test_counts_equal_a_loop(num_classes):
    thresholds = [0.5, 0.2, 0.9, 0.0, 0.2]
    for seed in range(3):
        photo = random_photo(seed, num_classes)
        counts = region_counts(*photo, thresholds=thresholds)
        # In the precision of the CAMs, in which 0.2 is what the cam is.
        cuts = torch.tensor(thresholds).tolist()
        predicted, total, alarms = slow_counts(*photo, cuts)
        assert torch.equal(counts.predicted, predicted)
        assert torch.equal(counts.total, total)
        assert torch.equal(counts.false_alarms, alarms)


def test_iou_is_of_each_class_and_nan_without_it():
    cams, target, distractor = random_photo(5)
    target[target == 2] = 0
    counts = region_counts(cams, target, distractor, thresholds=[0.3])
    iou = region_iou(counts)
    scored = (target != 255) & (distractor != 255)
    best, winner = cams.max(0)
    for k in (0, 2):
        shown = (winner == k) & (best > 0.3) & scored
        there = (target == k + 1) & scored
        expected = (shown & there).sum() / (shown | there).sum()
        assert float(iou[0, k]) == pytest.approx(float(expected))
    assert math.isnan(iou[0, 1])


def test_refuses_what_does_not_fit():
    cams, target, distractor = random_photo(0)
    with pytest.raises(ValueError, match=r'distractor must be \(7, 6\)'):
        region_counts(cams, target, distractor[:3], thresholds=[0.5])
    with pytest.raises(ValueError, match=r'target must lie in \[0, 3\], got 264'):
        region_counts(cams, target + 9, distractor, thresholds=[0.5])
    with pytest.raises(ValueError, match=r'cams must be \(K, H, W\)'):
        region_counts(cams[0], target, distractor, thresholds=[0.5])


def test_a_photo_of_void_only_counts_nothing():
    cams, target, distractor = random_photo(0)
    counts = region_counts(cams, target * 0 + 255, distractor, thresholds=[0.5, 0.1])
    assert not counts.total.any()
    assert not counts.predicted.any()


# Photo by photo of 16 pixels, one class, cells none, dis_only, obj_only, obj_dis:
# pixels of object, distractor outside of it and rest, then those predicted.
TOTAL = torch.tensor([[[0, 0, 16], [0, 4, 12], [8, 0, 8], [4, 3, 9]]])
PREDICTED = torch.tensor([[[0, 0, 1], [0, 2, 1], [4, 0, 0], [3, 2, 1]]])


def sums(**changes):
    content = dict(
        images=torch.ones(1, 4, dtype=torch.int64),
        positive=torch.tensor([[1, 0, 0, 1]]),
        predicted=PREDICTED,
        ungated=PREDICTED,
        total=TOTAL,
        iou=torch.tensor([[0, 0, 0.5, 3 / 7]], dtype=torch.float64),
        false_alarms=torch.tensor(7),
        background=torch.tensor(52),
    )
    return CellSums(**{**content, **changes})


def test_figures_of_four_photos_counted_by_hand():
    scores = co_occurrence_scores(sums())
    expected = {
        'fg_iou': 7 / 19,
        'miou': (7 / 19 + 45 / 57) / 2,
        'precision': 7 / 14,
        'recall': 7 / 12,
        'f1': 14 / 26,
        'img_fg_iou': (3 / 7 + 1 / 2) / 2,
        'iou_obj_dis': 3 / 7,
        'iou_obj_only': 1 / 2,
        'DAR': 2 / 3,
        'BAR': 1 / 17,
        'DAR/BAR': 34 / 3,
        'CR': 2 / 7,
        'TPR_obj_dis': 1,
        'TPR_obj_only': 0,
        'ctx_gap': 1,
        'FPR_img_D': 0,
        'FPR_img_0': 1,
        'FPR_img_neg': 1 / 2,
        'accuracy': 1 / 2,
        'conflict_acc': 0,
        'FPR_pix_D': 3 / 16,
        'FPR_pix_D_gated': 3 / 16,
        'FPR_pix_neg': 4 / 32,
        'FPR_pix_neg_gated': 4 / 32,
    }
    assert {name: float(value) for name, value in scores.items()} == pytest.approx(
        expected
    )


def test_worst_cell_needs_all_cells():
    all_right = co_occurrence_scores(sums(positive=torch.tensor([[0, 0, 1, 1]])))
    assert float(all_right['conflict_acc']) == 1
    assert float(all_right['accuracy']) == 1
    images = torch.tensor([[1, 0, 1, 1]])
    without = co_occurrence_scores(sums(images=images))
    assert math.isnan(without['conflict_acc'])
    assert math.isnan(without['FPR_img_D'])


def test_nothing_predicted_is_zero_or_undefined():
    scores = co_occurrence_scores(
        sums(predicted=PREDICTED * 0, false_alarms=torch.tensor(0))
    )
    assert float(scores['fg_iou']) == float(scores['DAR']) == 0
    assert float(scores['FPR_pix_D']) == 3 / 16
    assert float(scores['FPR_pix_D_gated']) == 0
    assert all(math.isnan(scores[name]) for name in ('precision', 'CR', 'DAR/BAR'))
    assert float(scores['miou']) == pytest.approx((0 + 52 / 64) / 2)
