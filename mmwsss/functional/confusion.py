"""Confusion matrices and the scores that derive from them.

Confusions are integers and add up over images and processes; rows are the target,
columns the prediction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def confusion_matrix(
    pred: Tensor, target: Tensor, num_classes: int, *, ignore_index: int = 255
) -> Tensor:
    """Count the pixels of each (target, prediction) pair.

    A prediction of ``ignore_index`` on a scored pixel is an error, not a silent
    omission: decide first whether such pixels leave the score (set the target to
    ``ignore_index``) or count as some class.

    Args:
        pred: integers of any shape, in [0, C) wherever the target is scored.
        target: the same shape, in [0, C) or ``ignore_index``.
        num_classes: C.
        ignore_index: target pixels that are not scored.

    Returns:
        (C, C) int64, rows = target.

    Raises:
        ValueError: if the shapes differ or a label is out of range.
    """
    _check_same_shape(pred, target)
    scored = target != ignore_index
    target, pred = target[scored].long(), pred[scored].long()
    _check_range('target', target, num_classes)
    _check_range('pred', pred, num_classes)
    counts = torch.bincount(target * num_classes + pred, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def threshold_sweep(
    cams: Tensor,
    image_label: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float] | Tensor,
    ignore_index: int = 255,
) -> Tensor:
    """Confusion of the labels that CAMs give at each of many background thresholds.

    The label of a pixel is the present class with the largest cam if that cam is
    above the threshold, otherwise background. A cam equal to the threshold is
    background; among equal cams the lower class wins. Same as argmax with a
    background score of ``threshold``. Costs one pass for all thresholds.

    Args:
        cams: (N, K, H, W).
        image_label: (N, K) 0/1; absent classes never win.
        target: (N, H, W) in [0, K] or ``ignore_index``.
        thresholds: T values in any order, compared in the precision of ``cams``.
        ignore_index: target pixels that are not scored.

    Returns:
        (T, C, C) int64 in the order of ``thresholds``, rows = target, C = K + 1.

    Raises:
        ValueError: if the shapes do not belong together, a target is out of range, or
            there is no threshold or no class.
    """
    num_classes = _check_sweep(cams, image_label, target) + 1
    cams = cams if cams.dtype == torch.float64 else cams.float()
    limits = torch.as_tensor(thresholds, dtype=cams.dtype, device=cams.device)
    if limits.ndim != 1 or limits.numel() == 0:
        raise ValueError(f'thresholds must hold at least one value, got {thresholds}')
    limits, order = limits.sort()
    absent = (image_label <= 0)[:, :, None, None]
    best, best_class = cams.masked_fill(absent, float('-inf')).max(dim=1)

    scored = target != ignore_index
    target = target[scored].long()
    _check_range('target', target, num_classes)
    # Number of thresholds strictly below the cam = those at which it is foreground.
    passed = torch.searchsorted(limits, best[scored])
    steps = limits.numel() + 1
    index = (target * num_classes + best_class[scored] + 1) * steps + passed
    counts = torch.bincount(index, minlength=num_classes**2 * steps)
    counts = counts.view(num_classes, num_classes, steps)

    background = counts.cumsum(dim=-1)[..., :-1]  # (C, C, T): cam <= threshold
    confusion = counts.sum(dim=-1, keepdim=True) - background
    confusion[:, 0] += background.sum(dim=1)
    result = torch.empty_like(confusion.permute(2, 0, 1))
    result[order] = confusion.permute(2, 0, 1)
    return result


def segmentation_scores(confusion: Tensor) -> dict[str, Tensor]:
    """IoU, precision and recall of each class, their means, and the accuracy.

    Per class a value is NaN where the class occurs neither in the target nor in the
    prediction, and 0 where only one of the two has it (also the precision of a class
    that is never predicted). The means run over the classes with target pixels: a
    class that the masks do not show is not scored, though false alarms of it lower
    the IoU and the recall of the classes they cover. MMSegmentation's IoUMetric
    differs in the second point, it counts such a class with IoU 0.

    Args:
        confusion: (..., C, C), rows = target; leading dimensions are kept.

    Returns:
        float64 in [0, 1]: ``iou``, ``precision``, ``recall`` (..., C); ``mean_iou``,
        ``mean_precision``, ``mean_recall``, ``accuracy`` (...), NaN without pixels.

    Raises:
        ValueError: if the last two dimensions differ.
    """
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise ValueError(f'confusion must be (..., C, C), got {tuple(confusion.shape)}')
    confusion = confusion.double()
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    target = confusion.sum(dim=-1)
    predicted = confusion.sum(dim=-2)
    union = target + predicted - hit
    ratios = {
        name: (hit / total.clamp(min=1)).masked_fill(union == 0, float('nan'))
        for name, total in (
            ('iou', union),
            ('precision', predicted),
            ('recall', target),
        )
    }
    scored = target > 0
    means = {
        f'mean_{name}': ratio.masked_fill(~scored, 0).sum(-1) / scored.sum(-1)
        for name, ratio in ratios.items()
    }
    return {**ratios, **means, 'accuracy': hit.sum(-1) / target.sum(-1)}


def _check_same_shape(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ValueError(
            f'pred and target must have one shape, got {tuple(pred.shape)} and '
            f'{tuple(target.shape)}'
        )


def _check_sweep(cams: Tensor, image_label: Tensor, target: Tensor) -> int:
    """Return K."""
    if cams.ndim != 4 or cams.shape[1] == 0:
        raise ValueError(
            f'cams must be (N, K, H, W) with K >= 1, got {tuple(cams.shape)}'
        )
    n, k, h, w = cams.shape
    if tuple(image_label.shape) != (n, k):
        raise ValueError(
            f'image_label must be {(n, k)} for cams of shape {tuple(cams.shape)}, '
            f'got {tuple(image_label.shape)}'
        )
    if tuple(target.shape) != (n, h, w):
        raise ValueError(
            f'target must be {(n, h, w)} for cams of shape {tuple(cams.shape)}, '
            f'got {tuple(target.shape)}'
        )
    return k


def _check_range(name: str, label: Tensor, num_classes: int) -> None:
    outside = label[(label < 0) | (label >= num_classes)]
    if outside.numel():
        raise ValueError(
            f'{name} must lie in [0, {num_classes}), got {int(outside[0])}'
        )
