"""Scores to pseudo-labels, and what may stand in a pseudo-label.

Conventions: channel 0 is background, class k of ``image_label`` is channel k + 1, and
255 means ignore. Background is always allowed. Ties go to the lower channel, so
background wins them. Nothing in here carries a gradient into a label.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255


def restrict_to_image_classes(
    scores: Tensor, image_label: Tensor, *, fill: float = float('-inf')
) -> Tensor:
    """Fill the channels of classes that the image does not show.

    Args:
        scores: (N, C, H, W) scores or logits, channel 0 background.
        image_label: (N, K) 0/1 with K = C - 1.
        fill: value of the channels of absent classes.

    Returns:
        (N, C, H, W) in the dtype of ``scores``; gradients flow through the channels
        that were kept.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    _check_scores(scores, image_label)
    present = image_label > 0
    background = present.new_ones(len(present), 1)
    allowed = torch.cat([background, present], dim=1)
    return scores.masked_fill(~allowed[:, :, None, None], fill)


def scores_to_label(
    scores: Tensor,
    image_label: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Label each pixel with background or a class that the image shows.

    Without thresholds the label is the argmax over background and present classes.
    With both, the background channel is not read: let s be the best present
    foreground score; s >= high gives its class, s <= low gives background, anything
    between gives 255 (two thresholds as in AFA, CVPR 2022, and ToCo, CVPR 2023).

    Args:
        scores: (N, C, H, W), channel 0 background.
        image_label: (N, K) 0/1 with K = C - 1.
        low: a best foreground score up to here is background.
        high: a best foreground score from here on is foreground; wins over ``low``
            where the two are equal.

    Returns:
        pseudo_label (N, H, W) int64.

    Raises:
        ValueError: if the shapes do not belong together, if only one threshold is
            given, or if low > high.
    """
    allowed_scores = restrict_to_image_classes(scores, image_label)
    if low is None and high is None:
        # The first one wins a tie, as with argmax, which is many times slower on a CPU.
        return allowed_scores.max(dim=1).indices
    if low is None or high is None:
        raise ValueError(f'give both low and high or none, got low={low}, high={high}')
    if not low <= high:
        raise ValueError(f'low must not exceed high, got low={low}, high={high}')
    if scores.shape[1] == 1:
        return scores.new_zeros(scores[:, 0].shape, dtype=torch.int64)
    best, best_class = allowed_scores[:, 1:].max(dim=1)  # (N, H, W)
    label = torch.full_like(best_class, IGNORE_INDEX)
    label = label.masked_fill(best <= low, 0)
    return torch.where(best >= high, best_class + 1, label)


def ir_label(foreground_label: Tensor, background_label: Tensor) -> Tensor:
    """Join two opinions to a label of what is sure (IRN, Ahn et al., CVPR 2019).

    The first labelling is made with a strong background, so that its objects are sure;
    the second with a weak one, so that its background is. The pixel takes the first's
    class where it shows one, background where both show background, 255 between.

    Args:
        foreground_label: (N, H, W), for example after a dense CRF.
        background_label: (N, H, W).

    Returns:
        (N, H, W) int64. A 255 of the first stays one.

    Raises:
        ValueError: if the shapes differ.
    """
    if foreground_label.shape != background_label.shape:
        raise ValueError(
            'both labels must have the same shape, got '
            f'{tuple(foreground_label.shape)} and {tuple(background_label.shape)}'
        )
    foreground = foreground_label.long()
    between = torch.full_like(foreground, IGNORE_INDEX)
    weak = torch.where(background_label == 0, foreground, between)
    return torch.where(foreground > 0, foreground, weak)


def ignore_padding(pseudo_label: Tensor, valid: Tensor) -> Tensor:
    """Set the label of padded pixels to 255.

    Args:
        pseudo_label: (N, H, W).
        valid: (N, 1, H, W) 0/1, 1 for real pixels.

    Returns:
        (N, H, W) in the dtype of ``pseudo_label``.

    Raises:
        ValueError: if the sizes differ.
    """
    expected = (pseudo_label.shape[0], 1, *pseudo_label.shape[1:])
    if tuple(valid.shape) != expected:
        raise ValueError(
            f'valid must be {expected} for labels of shape '
            f'{tuple(pseudo_label.shape)}, got {tuple(valid.shape)}'
        )
    return pseudo_label.masked_fill(valid[:, 0] <= 0, IGNORE_INDEX)


def top_class(
    seg_logits: Tensor, image_label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Most probable class of each pixel and its softmax probability, detached.

    Args:
        seg_logits: (N, C, H, W).
        image_label: (N, K) 0/1; the softmax is taken over background and these
            classes only. None takes it over all C.

    Returns:
        label (N, H, W) int64 and probability (N, H, W) in [1/C, 1], float32 (float64
        for float64 logits).
    """
    logits = seg_logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if image_label is not None:
        logits = restrict_to_image_classes(logits, image_label)
    best, label = logits.max(dim=1)
    # One map instead of C: the largest softmax value is exp(max - logsumexp).
    return label, (best - logits.logsumexp(dim=1)).exp()


def confident_labels(
    seg_logits: Tensor,
    image_label: Tensor,
    pseudo_label: Tensor,
    *,
    threshold: float,
    restrict: bool = True,
) -> Tensor:
    """Replace labels by the network's class where it is confident (WeCLIP+).

    Pixels whose largest softmax probability is above ``threshold`` take the argmax,
    also those labelled 255 before: call ``ignore_padding`` afterwards.

    Args:
        seg_logits: (N, C, H, W) on the grid of the labels.
        image_label: (N, K) 0/1 with K = C - 1.
        pseudo_label: (N, H, W).
        threshold: probability in [0, 1]; a pixel at exactly this value is kept.
        restrict: take softmax and argmax over background and the image's classes.
            False is the published rule, which can paint classes that the image does
            not show.

    Returns:
        (N, H, W) int64.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    _check_scores(seg_logits, image_label)
    expected = (seg_logits.shape[0], *seg_logits.shape[2:])
    if tuple(pseudo_label.shape) != expected:
        raise ValueError(
            f'pseudo_label must be {expected} for logits of shape '
            f'{tuple(seg_logits.shape)}, got {tuple(pseudo_label.shape)}'
        )
    label, probability = top_class(seg_logits, image_label if restrict else None)
    return torch.where(probability > threshold, label, pseudo_label.long())


def resize_label(
    pseudo_label: Tensor, size: tuple[int, int], *, strict_reference: bool = False
) -> Tensor:
    """Take one label per cell of a coarser (or finer) grid.

    Args:
        pseudo_label: (N, H, W) with values up to 255.
        size: (h, w).
        strict_reference: False takes the pixel at the centre of each cell, True the
            one at its top left corner as the published code does.

    Returns:
        (N, h, w) int64.
    """
    if tuple(pseudo_label.shape[1:]) == tuple(size):
        return pseudo_label.long()
    mode = 'nearest' if strict_reference else 'nearest-exact'
    resized = F.interpolate(pseudo_label[:, None].float(), tuple(size), mode=mode)
    return resized[:, 0].long()


def _check_scores(scores: Tensor, image_label: Tensor) -> None:
    if scores.ndim != 4:
        raise ValueError(f'scores must be (N, C, H, W), got {tuple(scores.shape)}')
    n, c = scores.shape[:2]
    if tuple(image_label.shape) != (n, c - 1):
        raise ValueError(
            f'image_label must be {(n, c - 1)} for scores of shape '
            f'{tuple(scores.shape)}, got {tuple(image_label.shape)}'
        )
    if c > IGNORE_INDEX:
        raise ValueError(f'labels hold at most 255 classes, got {c}')


def most_frequent(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The most frequent label under each pixel of a coarser grid.

    Args:
        labels: (N, H, W) with values up to 255.
        size: (h, w), not larger.

    Returns:
        (N, h, w) in the same dtype; of labels that are equally frequent the smallest.
        A pixel is asked at regular places, which are all of them at whole ratios.
    """
    rows, columns = (
        -(-old // new) for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    places = resize_label(labels, (size[0] * rows, size[1] * columns))
    places = places.unflatten(2, (size[1], columns)).unflatten(1, (size[0], rows))
    return places.transpose(2, 3).flatten(3).mode(3).values.to(labels.dtype)
