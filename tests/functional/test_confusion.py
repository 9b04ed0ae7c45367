import math

import numpy as np
import pytest
import torch

from mmwsss.functional.confusion import (
    confusion_matrix,
    segmentation_scores,
    threshold_sweep,
)


def confusion_loop(pred, target, num_classes, ignore_index=255):
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore_index:
            counts[t, p] += 1
    return torch.from_numpy(counts)


def random_labels(seed=0, n=2, c=5, h=7, w=9):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randint(0, c, (n, h, w), generator=generator)
    target = torch.randint(0, c, (n, h, w), generator=generator)
    target[torch.rand(n, h, w, generator=generator) < 0.1] = 255
    return pred, target


def random_cams(seed=0, n=3, k=4, h=6, w=7, levels=11):
    """CAMs on a few levels, so that ties and hits of a threshold happen."""
    generator = torch.Generator().manual_seed(seed)
    cams = torch.randint(0, levels, (n, k, h, w), generator=generator) / (levels - 1)
    image_label = (torch.rand(n, k, generator=generator) < 0.6).float()
    image_label[0] = 0
    target = torch.randint(0, k + 1, (n, h, w), generator=generator)
    target[torch.rand(n, h, w, generator=generator) < 0.1] = 255
    return cams, image_label, target


def sweep_loop(cams, image_label, target, thresholds):
    """argmax with a constant background score, one threshold after the other."""
    n, k, h, w = cams.shape
    result = []
    for threshold in thresholds:
        present = torch.where(
            image_label[:, :, None, None] > 0, cams, torch.full_like(cams, -9.0)
        )
        background = torch.full((n, 1, h, w), threshold, dtype=cams.dtype)
        # numpy's argmax documents the first of equal values.
        pred = np.argmax(torch.cat([background, present], 1).numpy(), axis=1)
        result.append(confusion_loop(pred, target.numpy(), k + 1))
    return torch.stack(result)


# ---------------------------------------------------------------------- confusion
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8])
def test_confusion_matrix_equals_loop(dtype):
    pred, target = random_labels()
    confusion = confusion_matrix(pred.to(dtype), target.to(dtype), 5)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, confusion_loop(pred, target, 5))


def test_confusion_matrix_rows_are_the_target():
    confusion = confusion_matrix(torch.tensor([1]), torch.tensor([0]), 2)
    assert confusion.tolist() == [[0, 1], [0, 0]]


def test_confusion_matrix_without_scored_pixels_is_zero():
    confusion = confusion_matrix(torch.tensor([7]), torch.tensor([255]), 3)
    assert torch.equal(confusion, torch.zeros(3, 3, dtype=torch.int64))


# --------------------------------------------------------------------------- sweep
@pytest.mark.parametrize(
    'thresholds', [[0.5], [0.0, 0.1, 0.35, 0.5, 1.0], [0.9, 0.2, 0.5, 0.2, -1.0, 2.0]]
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_threshold_sweep_equals_one_argmax_per_threshold(thresholds, dtype):
    cams, image_label, target = random_cams()
    cams = cams.to(dtype)
    sweep = threshold_sweep(cams, image_label, target, thresholds=thresholds)
    assert sweep.shape == (len(thresholds), 5, 5)
    assert sweep.dtype == torch.int64
    assert torch.equal(sweep, sweep_loop(cams, image_label, target, thresholds))


def test_threshold_sweep_ties_go_to_background_then_the_lower_class():
    cams = torch.full((1, 2, 1, 1), 0.5)
    target = torch.ones(1, 1, 1, dtype=torch.long)
    sweep = threshold_sweep(cams, torch.ones(1, 2), target, thresholds=[0.5, 0.49])
    assert sweep[0].nonzero().tolist() == [[1, 0]]
    assert sweep[1].nonzero().tolist() == [[1, 1]]


def test_threshold_sweep_extremes_and_sums():
    cams, image_label, target = random_cams()
    sweep = threshold_sweep(
        cams, image_label, target, thresholds=torch.tensor([-1.0, 0.5, 1.0])
    )
    assert sweep.sum(dim=(1, 2)).eq((target != 255).sum()).all()
    assert sweep[2, :, 1:].sum() == 0  # no cam is above 1
    # Below every cam only the photo without an object is background.
    assert sweep[0, :, 0].sum() == (target[0] != 255).sum()


def test_threshold_sweep_adds_up_over_images():
    cams, image_label, target = random_cams()
    parts = [
        threshold_sweep(
            cams[i : i + 1],
            image_label[i : i + 1],
            target[i : i + 1],
            thresholds=[0.3, 0.6],
        )
        for i in range(3)
    ]
    joint = threshold_sweep(cams, image_label, target, thresholds=[0.3, 0.6])
    assert torch.equal(sum(parts), joint)


# -------------------------------------------------------------------------- scores
def test_segmentation_scores_of_a_small_case():
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 4, 0]])
    scores = segmentation_scores(confusion)
    assert scores['iou'].tolist() == pytest.approx([6 / 9, 3 / 10, 0.0])
    assert scores['precision'].tolist() == pytest.approx([6 / 7, 3 / 9, 0.0])
    assert scores['recall'].tolist() == pytest.approx([6 / 8, 3 / 4, 0.0])
    assert scores['mean_iou'].item() == pytest.approx((6 / 9 + 3 / 10) / 3)
    assert scores['accuracy'].item() == pytest.approx(9 / 16)


def test_segmentation_scores_leave_classes_without_target_out_of_the_means():
    # Class 2 only occurs in the prediction, class 3 nowhere.
    confusion = torch.tensor([[3, 0, 1, 0], [0, 4, 0, 0], [0] * 4, [0] * 4])
    scores = segmentation_scores(confusion)
    assert scores['iou'].tolist()[:3] == pytest.approx([3 / 4, 1.0, 0.0])
    for name in ('iou', 'precision', 'recall'):
        assert math.isnan(scores[name][3])
        assert not scores[name][:3].isnan().any()
    assert scores['mean_iou'].item() == pytest.approx((3 / 4 + 1) / 2)
    assert scores['mean_recall'].item() == pytest.approx((3 / 4 + 1) / 2)
    assert scores['mean_precision'].item() == pytest.approx(1.0)


def test_segmentation_scores_of_nothing_are_nan():
    scores = segmentation_scores(torch.zeros(2, 2, dtype=torch.int64))
    assert all(value.isnan().all() for value in scores.values())


def test_segmentation_scores_keep_leading_dimensions():
    cams, image_label, target = random_cams()
    sweep = threshold_sweep(cams, image_label, target, thresholds=[0.3, 0.6])
    joint = segmentation_scores(sweep)
    assert joint['iou'].shape == (2, 5)
    for i, confusion in enumerate(sweep):
        for name, value in segmentation_scores(confusion).items():
            torch.testing.assert_close(joint[name][i], value)


@pytest.mark.mm
def test_segmentation_scores_equal_mmseg_iou_metric():
    metric = pytest.importorskip('mmseg.evaluation.metrics').IoUMetric
    pred, target = random_labels()
    areas = metric.intersect_and_union(pred, target, 5, 255)
    expected = metric.total_area_to_metrics(*areas, metrics=['mIoU', 'mFscore'])
    scores = segmentation_scores(confusion_matrix(pred, target, 5))
    for name, key in [('iou', 'IoU'), ('precision', 'Precision'), ('recall', 'Recall')]:
        np.testing.assert_allclose(scores[name], expected[key], rtol=1e-6)
    np.testing.assert_allclose(scores['mean_iou'], expected['IoU'].mean(), rtol=1e-6)
    np.testing.assert_allclose(scores['accuracy'], expected['aAcc'], rtol=1e-6)


# -------------------------------------------------------------------------- errors
def test_errors_show_what_was_received():
    pred, target = random_labels()
    cams, image_label, cam_target = random_cams()
    with pytest.raises(ValueError, match=r'\(2, 7, 9\) and \(1, 7, 9\)'):
        confusion_matrix(pred, target[:1], 5)
    with pytest.raises(ValueError, match=r'pred must lie in \[0, 4\), got 4'):
        confusion_matrix(pred, target.where(target < 4, 255), 4)
    with pytest.raises(ValueError, match=r'target must lie in \[0, 5\), got -1'):
        confusion_matrix(pred, target.where(target != 3, -1), 5)
    with pytest.raises(ValueError, match=r'pred must lie in \[0, 5\), got 255'):
        confusion_matrix(torch.tensor([255]), torch.tensor([0]), 5)
    with pytest.raises(ValueError, match=r'image_label .* got \(3, 3\)'):
        threshold_sweep(cams, image_label[:, 1:], cam_target, thresholds=[0.5])
    with pytest.raises(ValueError, match=r'target .* got \(2, 6, 7\)'):
        threshold_sweep(cams, image_label, cam_target[1:], thresholds=[0.5])
    with pytest.raises(ValueError, match=r'K >= 1, got \(3, 0, 6, 7\)'):
        threshold_sweep(cams[:, :0], image_label, cam_target, thresholds=[0.5])
    with pytest.raises(ValueError, match=r'at least one value, got \[\]'):
        threshold_sweep(cams, image_label, cam_target, thresholds=[])
    with pytest.raises(ValueError, match=r'target must lie in \[0, 5\), got 9'):
        threshold_sweep(cams, image_label, cam_target * 0 + 9, thresholds=[0.5])
    with pytest.raises(ValueError, match=r'got \(2, 3\)'):
        segmentation_scores(torch.zeros(2, 3))
