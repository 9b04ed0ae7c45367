"""Counts and figures that show whether a network looks at what accompanies an object.

A photo falls into one of four cells for each class: it has the object or not, the
distractor (the chimney below the smoke) or not. Its scored pixels fall into three
regions: the object, the distractor outside of the object, the rest. All figures derive
from integers per cell and region, which add up over photos and processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Index 2 * has_object + has_distractor.
CELLS = ('none', 'dis_only', 'obj_only', 'obj_dis')
OBJECT, DISTRACTOR, REST = range(3)


@dataclass(frozen=True)
class RegionCounts:
    """Pixels of one photo, for T thresholds and K classes; all int64.

    Attributes:
        predicted: (T, K, 3) of them predicted as the class, by region.
        total: (K, 3) in all, by region.
        false_alarms: (T,) background pixels that are predicted as any class.
    """

    predicted: Tensor
    total: Tensor
    false_alarms: Tensor


def region_counts(
    cams: Tensor,
    target: Tensor,
    distractor: Tensor,
    *,
    thresholds: Tensor | Sequence[float],
    ignore_index: int = 255,
) -> RegionCounts:
    """Count a photo's predicted pixels in objects, in distractors and elsewhere.

    A pixel is predicted as the class with the largest CAM, if that CAM is above the
    threshold; among equal CAMs the lower class wins. A pixel that is void in one of
    the masks is not counted. One pass for all thresholds.

    Args:
        cams: (K, H, W); a class that must not win is 0.
        target: (H, W) in [0, K] or ``ignore_index``.
        distractor: (H, W), k where the distractor of class k is, 0 elsewhere, or
            ``ignore_index``; it may lie over the object.
        thresholds: T values >= 0 in any order, in the precision of ``cams``.
        ignore_index: void.

    Raises:
        ValueError: for shapes that do not belong together and labels out of range.
    """
    if cams.ndim != 3 or cams.shape[0] == 0:
        raise ValueError(f'cams must be (K, H, W), got {tuple(cams.shape)}')
    num_classes = cams.shape[0]
    for name, labels in (('target', target), ('distractor', distractor)):
        if labels.shape != cams.shape[1:]:
            raise ValueError(
                f'{name} must be {tuple(cams.shape[1:])} for cams of shape '
                f'{tuple(cams.shape)}, got {tuple(labels.shape)}'
            )
        known = labels[labels != ignore_index]
        wrong = known[(known < 0) | (known > num_classes)]
        if wrong.numel():
            raise ValueError(
                f'{name} must lie in [0, {num_classes}], got {int(wrong[0])}'
            )
    limits, order = torch.as_tensor(
        thresholds, dtype=cams.dtype, device=cams.device
    ).sort()
    scored = (target != ignore_index) & (distractor != ignore_index)
    target, distractor = target[scored].long(), distractor[scored].long()
    best, winner = cams[:, scored].max(dim=0)
    # At so many of the thresholds, the lowest ones, the pixel is predicted.
    passed = torch.searchsorted(limits, best)
    classes = torch.arange(1, num_classes + 1, device=cams.device)[:, None]
    outside = torch.where(distractor == classes, DISTRACTOR, REST)
    region = torch.where(target == classes, OBJECT, outside)
    total = _histogram(region, 3)
    steps = limits.numel() + 1
    own = region.gather(0, winner[None])[0]
    index = (winner * 3 + own) * steps + passed
    predicted = torch.bincount(index, minlength=3 * num_classes * steps)
    alarms = torch.bincount(passed[target == 0], minlength=steps)
    return RegionCounts(
        predicted=_above(predicted.view(num_classes, 3, steps), order).movedim(-1, 0),
        total=total,
        false_alarms=_above(alarms, order),
    )


def _histogram(region: Tensor, size: int) -> Tensor:
    """(K, P) in [0, size) -> (K, size) counts per row."""
    rows = torch.arange(len(region), device=region.device)[:, None]
    index = (rows * size + region).flatten()
    return torch.bincount(index, minlength=len(region) * size).view(-1, size)


def _above(counts: Tensor, order: Tensor) -> Tensor:
    """Counts by thresholds passed (..., T + 1) -> those above each (..., T)."""
    above = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    result = torch.empty_like(above)
    result[..., order] = above
    return result


def region_iou(counts: RegionCounts) -> Tensor:
    """IoU of each class at each threshold (T, K), float64; NaN without the object."""
    hit = counts.predicted[..., OBJECT].double()
    size = counts.total[:, OBJECT]
    union = counts.predicted.sum(-1) + size - hit
    return (hit / union.clamp(min=1)).masked_fill(size == 0, float('nan'))


@dataclass(frozen=True)
class CellSums:
    """Sums over photos; cells are in the order of ``CELLS``, regions as above.

    Attributes:
        images: (K, 4) photos.
        positive: (K, 4) of them classified as showing the class.
        predicted: (K, 4, 3) predicted pixels.
        ungated: (K, 4, 3) the same where no gate empties a photo's prediction.
        total: (K, 4, 3) pixels.
        iou: (K, 4) sum of the photos' own IoU, float64; 0 without the object.
        false_alarms: () background pixels predicted as any class.
        background: () background pixels.
    """

    images: Tensor
    positive: Tensor
    predicted: Tensor
    ungated: Tensor
    total: Tensor
    iou: Tensor
    false_alarms: Tensor
    background: Tensor


def co_occurrence_scores(sums: CellSums) -> dict[str, Tensor]:
    """What a network does on objects, on their distractors, and without either.

    Written P for predicted, G for object and D for distractor pixels. All values are
    shares in [0, 1] but for the ratios ``CR`` and ``DAR/BAR`` and the difference
    ``ctx_gap``; NaN where the denominator is 0. The confusion ratio CR is that of SeCo
    (Yang et al., CVPR 2024), the worst cell's accuracy that of group robustness
    (Sagawa et al., ICLR 2020).

    Args:
        sums: Over the photos.

    Returns:
        name -> (K,) float64.

        All photos: ``fg_iou``, ``precision``, ``recall``, ``f1``; ``miou`` over the K
        classes and the background, the same for all K.

        Photos with the object: ``img_fg_iou`` (mean of the photos' own),
        ``iou_obj_dis`` and ``iou_obj_only`` (the same in one cell), ``DAR``
        |P & D - G| / |D - G|, ``BAR`` the same on what is neither, their ratio
        ``DAR/BAR``, ``CR`` |P & D - G| / |P & G|.

        Image-level decisions: ``TPR_obj_dis``, ``TPR_obj_only`` (found among those
        with the object), ``ctx_gap`` their difference, ``FPR_img_D`` and ``FPR_img_0``
        (found where only the distractor is, and neither), ``FPR_img_neg`` (both),
        ``accuracy``, ``conflict_acc`` (that of the worst cell; all four must have
        photos).

        Pixels predicted on photos without the object: ``FPR_pix_D`` (distractor only)
        and ``FPR_pix_neg`` (all), without a gate, and the same ``_gated``.
    """
    none, dis_only, obj_only, obj_dis = range(4)
    with_object, without = [obj_only, obj_dis], [none, dis_only]
    predicted, total = sums.predicted.double(), sums.total.double()
    rate = _share(sums.positive, sums.images)
    # Photos without the object are right where it is not found.
    right = sums.images - sums.positive
    right[:, with_object] = sums.positive[:, with_object]
    scores = _pixel_scores(sums)
    scores |= {
        'img_fg_iou': _cells(sums.iou, sums.images, with_object),
        'iou_obj_dis': _cells(sums.iou, sums.images, [obj_dis]),
        'iou_obj_only': _cells(sums.iou, sums.images, [obj_only]),
    }
    found = predicted[:, with_object].sum(1)
    there = total[:, with_object].sum(1)
    activated = _share(found, there)
    scores |= {
        'DAR': activated[:, DISTRACTOR],
        'BAR': activated[:, REST],
        'DAR/BAR': _share(activated[:, DISTRACTOR], activated[:, REST]),
        'CR': _share(found[:, DISTRACTOR], found[:, OBJECT]),
        'TPR_obj_dis': rate[:, obj_dis],
        'TPR_obj_only': rate[:, obj_only],
        'ctx_gap': rate[:, obj_dis] - rate[:, obj_only],
        'FPR_img_D': rate[:, dis_only],
        'FPR_img_0': rate[:, none],
        'FPR_img_neg': _cells(sums.positive, sums.images, without),
        'accuracy': _share(right.sum(1), sums.images.sum(1)),
        'conflict_acc': torch.cat([1 - rate[:, without], rate[:, with_object]], 1)
        .min(1)
        .values,
    }
    pixels = total.sum(-1)
    for name, cells in (('FPR_pix_D', [dis_only]), ('FPR_pix_neg', without)):
        scores[name] = _cells(sums.ungated.sum(-1), pixels, cells)
        scores[f'{name}_gated'] = _cells(predicted.sum(-1), pixels, cells)
    return scores


def _pixel_scores(sums: CellSums) -> dict[str, Tensor]:
    """Scores of pooled pixels, whatever the cell."""
    predicted, total = sums.predicted.sum(1).double(), sums.total.sum(1).double()
    hit, found, size = predicted[:, OBJECT], predicted.sum(1), total[:, OBJECT]
    iou = _share(hit, found + size - hit)
    background = sums.background.double()
    hit_background = background - sums.false_alarms
    left = total[0].sum() - found.sum()
    of_background = _share(hit_background, background + left - hit_background)
    return {
        'fg_iou': iou,
        'miou': torch.cat([of_background[None], iou]).nanmean().expand_as(iou),
        'precision': _share(hit, found),
        'recall': _share(hit, size),
        'f1': _share(2 * hit, found + size),
    }


def _cells(part: Tensor, whole: Tensor, cells: list[int]) -> Tensor:
    """Share (K,) of two tables (K, 4) over some cells."""
    return _share(part[:, cells].sum(1), whole[:, cells].sum(1))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    part, whole = part.double(), whole.double()
    return torch.where(whole > 0, part / whole, torch.nan)
