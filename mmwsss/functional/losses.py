"""Losses of a segmentation network that learns from pseudo-labels.

Each loss is a ratio of sums over the batch and comes in three pieces: ``*_sums`` adds
up what one process sees, ``*_from_sums`` makes the loss of it, and the plain name does
both. Adding the sums of all processes in between gives the loss of the joint batch.

After WeCLIP (Zhang et al., CVPR 2024), WeCLIP+ (TPAMI 2025) and AFA (Ru et al., CVPR
2022). Differences from the released code: every loss and gradient is finite when a
batch has no background, no foreground or nothing but ignored pixels; dice averages
over the classes that occur; the decoder affinity is normalised; cross-view labels stay
within the image's classes. ``strict_reference``, ``normalize=False`` and
``restrict=False`` give the published forms.

Convention: label 0 is background, ``ignore_index`` takes no part anywhere. Logits are
taken to float32 (float64 stays), also under autocast.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .pseudo_label import top_class

# The cross-view labels are made in here, so their mark may be one that no class has.
_CROSS_VIEW_IGNORE = -1
_DICE_EPS = 1e-6
_AFFINITY_GAIN = 3.0


# ------------------------------------------------------------------- cross-entropy
def balanced_cross_entropy(
    seg_logits: Tensor,
    pseudo_label: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    strict_reference: bool = False,
) -> Tensor:
    """Mean of the cross-entropy on background and of that on foreground pixels.

    0.5 * sum_bg(w CE) / sum_bg(w) + 0.5 * sum_fg(w CE) / sum_fg(w); an empty half
    contributes 0. Each half is divided by its own weights, so that a doubtful batch
    is not a cheap one, and only the proportions of the weights matter.

    Args:
        seg_logits: (N, C, H, W).
        pseudo_label: (N, H, W) in [0, C) or ``ignore_index``.
        label_smoothing: probability taken from the label and spread evenly over the
            other C - 1 classes, in [0, (C - 1) / C].
        ignore_index: label without supervision.
        weight: (N, H, W) >= 0, carries no gradient; None weighs all pixels 1.
        class_weight: (C,) >= 0, factor on the weight of the pixels of each label
            (``frequency_weights``); None takes 1.
        strict_reference: True lets an empty half be 0 / 0 = NaN, as published.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: if the shapes do not belong together or the smoothing is outside
            its range.
    """
    sums = balanced_cross_entropy_sums(
        seg_logits,
        pseudo_label,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        weight=weight,
        class_weight=class_weight,
    )
    return balanced_cross_entropy_from_sums(sums, strict_reference=strict_reference)


def balanced_cross_entropy_sums(
    seg_logits: Tensor,
    pseudo_label: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Local sums (4,): background w CE, background w, foreground w CE, foreground w."""
    _check_logits_and_label(seg_logits, pseudo_label, weight)
    label = pseudo_label.long()
    cross_entropy = F.cross_entropy(
        _full_precision(seg_logits),
        label,
        ignore_index=ignore_index,
        label_smoothing=_torch_smoothing(label_smoothing, seg_logits.shape[1]),
        reduction='none',
    )
    weight = _pixel_weight(label, ignore_index, weight, dtype=cross_entropy.dtype)
    if class_weight is not None:
        factor = _per_label(
            class_weight, label, seg_logits.shape[1], ignore_index, 'class_weight'
        )
        weight = weight * factor.to(weight.dtype)
    background = weight * (label == 0)
    foreground = weight * (label != 0)
    return torch.stack(
        [
            (cross_entropy * background).sum(),
            background.sum(),
            (cross_entropy * foreground).sum(),
            foreground.sum(),
        ]
    )


def balanced_cross_entropy_from_sums(
    sums: Tensor, *, strict_reference: bool = False
) -> Tensor:
    """Loss from the sums (4,) of all processes."""
    loss, count = sums.view(2, 2).unbind(1)  # each (background, foreground)
    if not strict_reference:
        count = torch.where(count > 0, count, torch.ones_like(count))
    return 0.5 * (loss / count).sum()


def class_counts(
    pseudo_label: Tensor,
    *,
    num_classes: int,
    weight: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Effective number of pixels of each class: their number or sum of weights.

    Counts of several processes add up.

    Args:
        pseudo_label: (N, H, W) in [0, C) or ``ignore_index``.
        num_classes: C.
        weight: (N, H, W) >= 0; None weighs all pixels 1.
        ignore_index: label that is not counted.

    Returns:
        (C,) float32, or float64 for a float64 weight. No gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    if weight is not None and weight.shape != pseudo_label.shape:
        raise ValueError(
            f'weight must be {tuple(pseudo_label.shape)} as the labels, got '
            f'{tuple(weight.shape)}'
        )
    dtype = torch.float32 if weight is None else _full_precision(weight).dtype
    weight = _pixel_weight(pseudo_label, ignore_index, weight, dtype=dtype)
    classes = torch.arange(num_classes, device=pseudo_label.device)
    # bincount would wait for the device.
    is_class = pseudo_label[:, None] == classes[:, None, None]  # (N, C, H, W)
    return (weight[:, None] * is_class).sum(dim=(0, 2, 3))


def frequency_weights(counts: Tensor, *, low: float = 0.5, high: float = 3.0) -> Tensor:
    """Weights against the imbalance of the foreground classes of a batch.

    clip(mean count of the present foreground classes / count of the class, low,
    high). Background has a half of the balanced cross-entropy for itself and keeps 1;
    so do classes that do not occur.

    Args:
        counts: (C,) >= 0 of the joint batch (``class_counts``), background first.
        low: smallest weight.
        high: largest weight, so that a few wrong pixels cannot rule the batch.

    Returns:
        (C,) in the dtype of ``counts``.

    Raises:
        ValueError: if the counts are not one vector or not 0 < low <= 1 <= high.
    """
    if counts.ndim != 1:
        raise ValueError(f'counts must be (C,), got {tuple(counts.shape)}')
    if not 0 < low <= 1 <= high:
        raise ValueError(f'need 0 < low <= 1 <= high, got low={low}, high={high}')
    present = counts > 0
    foreground = present & (torch.arange(len(counts), device=counts.device) > 0)
    one = torch.ones_like(counts)
    mean = torch.where(foreground, counts, 0 * one).sum() / foreground.sum().clamp(
        min=1
    )
    weight = (mean / torch.where(present, counts, one)).clamp(low, high)
    return torch.where(foreground, weight, one)


def _torch_smoothing(label_smoothing: float, num_classes: int) -> float:
    """Translate eps / (C - 1) on the others into torch's eps / C on all classes."""
    limit = (num_classes - 1) / num_classes
    if not 0.0 <= label_smoothing <= limit:
        raise ValueError(
            f'label_smoothing must lie in [0, {limit:g}] for {num_classes} classes, '
            f'got {label_smoothing}'
        )
    return min(label_smoothing / limit, 1.0) if limit else 0.0


# ---------------------------------------------------------------------------- dice
def present_dice_loss(
    seg_logits: Tensor,
    pseudo_label: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    strict_reference: bool = False,
) -> Tensor:
    """Soft dice over the batch, averaged over the classes that occur in it.

    1 - mean_c 2 sum(w p_c y_c) / (sum(w p_c) + sum(w y_c)) with p the softmax and y
    the one-hot label, background included. Without any labelled pixel it is 0.

    Args:
        seg_logits: (N, C, H, W).
        pseudo_label: (N, H, W) in [0, C) or ``ignore_index``.
        ignore_index: label left out of y and of the prediction.
        weight: (N, H, W) >= 0, carries no gradient; None weighs all pixels 1.
        strict_reference: True averages over all C classes, as published: absent
            classes have dice 0, so that a perfect prediction still costs
            1 - present / C.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: if the shapes do not belong together.
    """
    sums = present_dice_sums(
        seg_logits, pseudo_label, ignore_index=ignore_index, weight=weight
    )
    return present_dice_from_sums(sums, strict_reference=strict_reference)


def present_dice_sums(
    seg_logits: Tensor,
    pseudo_label: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
) -> Tensor:
    """Local sums (3 * C,): overlap, prediction and label mass of each class."""
    _check_logits_and_label(seg_logits, pseudo_label, weight)
    label = pseudo_label.long()
    probability = _full_precision(seg_logits).softmax(dim=1)
    weight = _pixel_weight(label, ignore_index, weight, dtype=probability.dtype)
    weight = weight[:, None]  # (N, 1, H, W)
    classes = torch.arange(seg_logits.shape[1], device=label.device)
    is_class = label[:, None] == classes[:, None, None]  # (N, C, H, W)
    mass = probability * weight
    return torch.cat(
        [
            (mass * is_class).sum(dim=(0, 2, 3)),
            mass.sum(dim=(0, 2, 3)),
            (weight * is_class).sum(dim=(0, 2, 3)),
        ]
    )


def present_dice_from_sums(sums: Tensor, *, strict_reference: bool = False) -> Tensor:
    """Loss from the sums (3 * C,) of all processes."""
    overlap, prediction, label = sums.view(3, -1)
    if strict_reference:
        return 1 - (2 * overlap / (prediction + label + _DICE_EPS)).mean()
    present = label > 0
    total = torch.where(present, prediction + label, torch.ones_like(label))
    miss = torch.where(present, 1 - 2 * overlap / total, torch.zeros_like(label))
    return miss.sum() / present.sum().clamp(min=1)


# ------------------------------------------------------------------------ affinity
def feature_affinity(features: Tensor, *, normalize: bool = True) -> Tensor:
    """Affinity of each pair of cells from the decoder's features.

    normalize: sigmoid(3 (cos_ij - mean of cos over the image)), after ExCEL (CVPR
    2025). Otherwise sigmoid(f_i . f_j) as in AFA and WeCLIP, which saturates: a cell
    is never less than 0.5 like itself and usually exactly 1. A zero feature has
    cosine 0 with all others and gets no gradient in the normalised form.

    Args:
        features: (N, D, h, w).
        normalize: choose the form.

    Returns:
        (N, h*w, h*w), symmetric, in [0, 1].

    Raises:
        ValueError: if ``features`` has not four dimensions.
    """
    if features.ndim != 4:
        raise ValueError(f'features must be (N, D, h, w), got {tuple(features.shape)}')
    tokens = _full_precision(features).flatten(2)  # (N, D, h*w)
    if normalize:
        tokens = _unit_or_zero(tokens)
    # In half precision the products of unnormalised features overflow.
    with torch.autocast(features.device.type, enabled=False):
        similarity = tokens.transpose(1, 2) @ tokens
    if normalize:
        mean = similarity.mean(dim=(1, 2), keepdim=True)
        similarity = _AFFINITY_GAIN * (similarity - mean)
    return similarity.sigmoid()


def affinity_loss(
    affinity: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 8,
    ignore_index: int = 255,
) -> Tensor:
    """Pull the affinity of like cells to 1 and of unlike cells to 0 (AFA).

    0.5 sum_pos(1 - A) / (n_pos + 1) + 0.5 sum_neg(A) / (n_neg + 1), over the ordered
    pairs of cells within a Chebyshev radius whose labels are equal (pos, each cell
    with itself included) or differ (neg).

    Args:
        affinity: (N, h*w, h*w) in [0, 1].
        pseudo_label: (N, h, w) on the same grid (``resize_label``).
        radius: in cells, inclusive.
        ignore_index: a pair with such an end does not count.

    Returns:
        Scalar in [0, 1).

    Raises:
        ValueError: if the grids differ or the radius is negative.
    """
    return affinity_from_sums(
        affinity_sums(affinity, pseudo_label, radius=radius, ignore_index=ignore_index)
    )


def affinity_sums(
    affinity: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 8,
    ignore_index: int = 255,
) -> Tensor:
    """Local sums (4,): 1 - A over like pairs, their number; A over unlike pairs, n."""
    n, h, w = _check_affinity(affinity, pseudo_label)
    first, second = _near_pairs(h, w, radius, device=affinity.device)
    affinity = _full_precision(affinity)
    # Only the near pairs are fetched: masks over all pairs cost several times the
    # matrix itself, in time and in memory.
    places = (first * (h * w) + second).expand(n, -1)
    near = affinity.flatten(1).gather(1, places)  # (N, pairs)
    label = pseudo_label.flatten(1)
    # NaN is neither equal to a label nor different from it.
    known = label.to(near.dtype).masked_fill(label == ignore_index, math.nan)
    difference = known.index_select(1, first) - known.index_select(1, second)
    unlike = difference.abs().gt_(0)
    like = difference.eq_(0)
    return torch.stack(
        [((1 - near) * like).sum(), like.sum(), (near * unlike).sum(), unlike.sum()]
    )


def affinity_from_sums(sums: Tensor) -> Tensor:
    """Loss from the sums (4,) of all processes."""
    distance, count = sums.view(2, 2).unbind(1)
    return 0.5 * (distance / (count + 1)).sum()


def _unit_or_zero(tokens: Tensor, eps: float = 1e-6) -> Tensor:
    """Unit vectors along dim 1; a shorter one than eps becomes 0, without gradient."""
    # Dividing by a clamped norm would send gradients of 1/eps into dead features.
    square = tokens.square().sum(dim=1, keepdim=True)
    alive = square > eps**2
    inverse = torch.where(alive, square, torch.ones_like(square)).rsqrt()
    return tokens * (inverse * alive)


def _near_pairs(
    h: int, w: int, radius: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two (pairs,): the ordered pairs of cells within a Chebyshev distance."""
    if radius < 0:
        raise ValueError(f'radius must not be negative, got {radius}')
    (y, other_y), (x, other_x) = (
        _near_along(side, radius).to(device, non_blocking=True) for side in (h, w)
    )
    # All pairs of rows with all pairs of columns.
    first = (y[:, None] * w + x).flatten()
    return first, (other_y[:, None] * w + other_x).flatten()


def _near_along(side: int, radius: int) -> Tensor:
    """(2, pairs) int64: the ordered pairs of places on an axis, made on the host."""
    near = [
        (place, other)
        for place in range(side)
        for other in range(max(0, place - radius), min(side, place + radius + 1))
    ]
    return torch.tensor(near, dtype=torch.long, device='cpu').view(-1, 2).T


# ---------------------------------------------------------------------- cross view
def cross_view_loss(
    logits_a: Tensor,
    logits_b: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float | Tensor = 0.0,
    weight: Tensor | None = None,
    strict_reference: bool = False,
) -> Tensor:
    """Each of two streams learns the other's hard decisions (WeCLIP+).

    Balanced cross-entropy of a against argmax(b) plus that of b against argmax(a).

    Args:
        logits_a: (N, C, h, w) of one stream.
        logits_b: (N, C, h, w) of the other.
        image_label: (N, K) 0/1 with K = C - 1.
        valid: (N, 1, h, w) 0/1; padding takes no part. None counts every cell.
        restrict: decide among background and the image's classes; False among all C,
            as published.
        threshold: a stream teaches where its largest probability (over the classes
            it decides among) is at least this; (C,) gives each class its own.
        weight: (N, h, w) >= 0 of each cell, carries no gradient; None weighs all 1.
        strict_reference: True lets an empty half be NaN, as published.

    Returns:
        Scalar >= 0, differentiable in both streams as learners.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    sums = cross_view_sums(
        logits_a,
        logits_b,
        image_label,
        valid=valid,
        restrict=restrict,
        threshold=threshold,
        weight=weight,
    )
    return cross_view_from_sums(sums, strict_reference=strict_reference)


def cross_view_sums(
    logits_a: Tensor,
    logits_b: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float | Tensor = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Local sums (8,): those of the balanced cross-entropy of a, then of b."""
    return multi_view_sums(
        (logits_a, logits_b),
        image_label,
        valid=valid,
        restrict=restrict,
        threshold=threshold,
        weight=weight,
    ).flatten()


def cross_view_from_sums(sums: Tensor, *, strict_reference: bool = False) -> Tensor:
    """Loss from the sums (8,) of all processes."""
    return multi_view_from_sums(sums.view(2, 1, 4), strict_reference=strict_reference)


def multi_view_loss(
    stream_logits: Sequence[Tensor],
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float | Tensor = 0.0,
    weight: Tensor | None = None,
    strict_reference: bool = False,
) -> Tensor:
    """``cross_view_loss`` for any number of streams, each of which learns from all.

    Sum over the learners of the mean over their teachers, so that two streams give
    exactly ``cross_view_loss`` and a third one does not change the scale per learner.

    Args:
        stream_logits: S >= 2 tensors (N, C, h, w).
        image_label: (N, K) 0/1 with K = C - 1.
        valid: see ``cross_view_loss``, as are the others.
        restrict: decide among background and the image's classes.
        threshold: number or (C,).
        weight: (N, h, w) >= 0.
        strict_reference: True lets an empty half be NaN, as published.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: if there is one stream or the shapes do not belong together.
    """
    sums = multi_view_sums(
        stream_logits,
        image_label,
        valid=valid,
        restrict=restrict,
        threshold=threshold,
        weight=weight,
    )
    return multi_view_from_sums(sums, strict_reference=strict_reference)


def multi_view_sums(
    stream_logits: Sequence[Tensor],
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float | Tensor = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Local sums (S, S - 1, 4): those of each learner with each of its teachers."""
    _check_streams(stream_logits, valid)
    labels = [
        _teaching_label(
            teacher,
            image_label if restrict else None,
            valid=valid,
            threshold=threshold,
        )
        for teacher in stream_logits
    ]
    return torch.stack(
        [
            torch.stack(
                [
                    balanced_cross_entropy_sums(
                        learner, label, ignore_index=_CROSS_VIEW_IGNORE, weight=weight
                    )
                    for teacher, label in enumerate(labels)
                    if teacher != number
                ]
            )
            for number, learner in enumerate(stream_logits)
        ]
    )


def multi_view_from_sums(sums: Tensor, *, strict_reference: bool = False) -> Tensor:
    """Loss from the sums (S, S - 1, 4) of all processes."""
    losses = [
        balanced_cross_entropy_from_sums(pair, strict_reference=strict_reference)
        for pair in sums.flatten(0, 1)
    ]
    return torch.stack(losses).sum() / sums.shape[1]


def _teaching_label(
    teacher: Tensor,
    image_label: Tensor | None,
    *,
    valid: Tensor | None,
    threshold: float | Tensor,
) -> Tensor:
    """(N, h, w): what a stream decides, ignored where it is unsure or padding."""
    label, probability = top_class(teacher, image_label)
    if isinstance(threshold, Tensor):
        threshold = _per_label(
            threshold, label, teacher.shape[1], _CROSS_VIEW_IGNORE, 'threshold'
        )
    label = label.masked_fill(probability < threshold, _CROSS_VIEW_IGNORE)
    if valid is not None:
        label = label.masked_fill(valid[:, 0] <= 0, _CROSS_VIEW_IGNORE)
    return label


def _check_streams(stream_logits: Sequence[Tensor], valid: Tensor | None) -> None:
    if len(stream_logits) < 2:
        raise ValueError(f'need two streams or more, got {len(stream_logits)}')
    shapes = [tuple(logits.shape) for logits in stream_logits]
    for shape in shapes[1:]:
        if shape != shapes[0]:
            raise ValueError(
                f'both streams must have one shape, got {shapes[0]} and {shape}'
            )
    cells = (shapes[0][0], 1, *shapes[0][2:])
    if valid is not None and tuple(valid.shape) != cells:
        raise ValueError(f'valid must be {cells}, got {tuple(valid.shape)}')


# ---------------------------------------------------------------------- shared parts
def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _pixel_weight(
    label: Tensor, ignore_index: int, weight: Tensor | None, *, dtype: torch.dtype
) -> Tensor:
    """(N, H, W): the weight where there is a label, 0 where it is ignored."""
    kept = (label != ignore_index).to(dtype)
    if weight is None:
        return kept
    # where, not a product: a NaN weight on an ignored pixel must not count.
    return torch.where(kept > 0, weight.detach().to(dtype), kept)


def _per_label(
    values: Tensor, label: Tensor, num_classes: int, ignore_index: int, name: str
) -> Tensor:
    """(N, H, W): the value (C,) of each pixel's label, any one at ignored pixels."""
    if tuple(values.shape) != (num_classes,):
        raise ValueError(
            f'{name} must be ({num_classes},) for {num_classes} classes, got '
            f'{tuple(values.shape)}'
        )
    return values.detach()[label.masked_fill(label == ignore_index, 0).long()]


def _check_logits_and_label(
    seg_logits: Tensor, pseudo_label: Tensor, weight: Tensor | None
) -> None:
    if seg_logits.ndim != 4:
        raise ValueError(
            f'seg_logits must be (N, C, H, W), got {tuple(seg_logits.shape)}'
        )
    expected = (seg_logits.shape[0], *seg_logits.shape[2:])
    for name, value in (('pseudo_label', pseudo_label), ('weight', weight)):
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f'{name} must be {expected} for logits of shape '
                f'{tuple(seg_logits.shape)}, got {tuple(value.shape)}'
            )


def _check_affinity(affinity: Tensor, pseudo_label: Tensor) -> tuple[int, int, int]:
    if pseudo_label.ndim != 3:
        raise ValueError(
            f'pseudo_label must be (N, h, w), got {tuple(pseudo_label.shape)}'
        )
    n, h, w = pseudo_label.shape
    if tuple(affinity.shape) != (n, h * w, h * w):
        raise ValueError(
            f'affinity must be {(n, h * w, h * w)} for labels of shape {(n, h, w)}, '
            f'got {tuple(affinity.shape)}'
        )
    return n, h, w
