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
    strict_reference: bool = False,
) -> Tensor:
    """Mean of the cross-entropy on background and of that on foreground pixels.

    0.5 * sum_bg(w CE) / sum_bg(w) + 0.5 * sum_fg(w CE) / sum_fg(w); an empty half
    contributes 0.

    Args:
        seg_logits: (N, C, H, W).
        pseudo_label: (N, H, W) in [0, C) or ``ignore_index``.
        label_smoothing: probability taken from the label and spread evenly over the
            other C - 1 classes, in [0, (C - 1) / C].
        ignore_index: label without supervision.
        weight: (N, H, W) >= 0, carries no gradient; None weighs all pixels 1.
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
    )
    return balanced_cross_entropy_from_sums(sums, strict_reference=strict_reference)


def balanced_cross_entropy_sums(
    seg_logits: Tensor,
    pseudo_label: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    weight: Tensor | None = None,
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
    affinity = _full_precision(affinity)
    near = _pairs_within(h, w, radius, device=affinity.device)  # (h*w, h*w)
    label = pseudo_label.reshape(n, h * w)
    kept = label != ignore_index
    counted = near & kept[:, :, None] & kept[:, None, :]
    same = label[:, :, None] == label[:, None, :]
    positive, negative = counted & same, counted & ~same
    zero = affinity.new_zeros(())
    return torch.stack(
        [
            torch.where(positive, 1 - affinity, zero).sum(),
            positive.sum().to(affinity.dtype),
            torch.where(negative, affinity, zero).sum(),
            negative.sum().to(affinity.dtype),
        ]
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


def _pairs_within(h: int, w: int, radius: int, *, device: torch.device) -> Tensor:
    """(h*w, h*w) bool: cells at a Chebyshev distance of at most ``radius``."""
    if radius < 0:
        raise ValueError(f'radius must not be negative, got {radius}')
    rows = torch.arange(h, device=device).repeat_interleave(w)
    columns = torch.arange(w, device=device).repeat(h)
    row_near = (rows[:, None] - rows).abs() <= radius
    return row_near & ((columns[:, None] - columns).abs() <= radius)


# ---------------------------------------------------------------------- cross view
def cross_view_loss(
    logits_a: Tensor,
    logits_b: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float = 0.0,
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
            it decides among) is at least this.
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
    )
    return cross_view_from_sums(sums, strict_reference=strict_reference)


def cross_view_sums(
    logits_a: Tensor,
    logits_b: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    restrict: bool = True,
    threshold: float = 0.0,
) -> Tensor:
    """Local sums (8,): those of the balanced cross-entropy of a, then of b."""
    if logits_a.shape != logits_b.shape:
        raise ValueError(
            f'both streams must have one shape, got {tuple(logits_a.shape)} and '
            f'{tuple(logits_b.shape)}'
        )
    cells = (logits_a.shape[0], 1, *logits_a.shape[2:])
    if valid is not None and tuple(valid.shape) != cells:
        raise ValueError(f'valid must be {cells}, got {tuple(valid.shape)}')
    teaching_classes = image_label if restrict else None
    sums = []
    for learner, teacher in ((logits_a, logits_b), (logits_b, logits_a)):
        label, probability = top_class(teacher, teaching_classes)
        label = label.masked_fill(probability < threshold, _CROSS_VIEW_IGNORE)
        if valid is not None:
            label = label.masked_fill(valid[:, 0] <= 0, _CROSS_VIEW_IGNORE)
        sums.append(
            balanced_cross_entropy_sums(learner, label, ignore_index=_CROSS_VIEW_IGNORE)
        )
    return torch.cat(sums)


def cross_view_from_sums(sums: Tensor, *, strict_reference: bool = False) -> Tensor:
    """Loss from the sums (8,) of all processes."""
    learner_a, learner_b = sums.chunk(2)
    return balanced_cross_entropy_from_sums(
        learner_a, strict_reference=strict_reference
    ) + balanced_cross_entropy_from_sums(learner_b, strict_reference=strict_reference)


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
