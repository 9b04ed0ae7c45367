"""Class masks joined with class-free segments, and scores that follow a new label.

Segments come from any generator, for example Segment Anything: they know where things
end, but not what they are. Rules after "SAM-enhanced pseudo labels" and SEPL (Chen et
al., 2023), written from their formulas. Different here: in both rules a segment goes to
one class alone, the one that it fits best.
"""

import torch
from torch import Tensor

COMBINATIONS = ('or', 'and', 'replace')


def merge_segments_iou(
    masks: Tensor,
    segments: Tensor,
    *,
    min_iou: float = 0.3,
    max_area: float = 0.5,
    combine: str = 'replace',
) -> Tensor:
    """Take the segments that are much like a class mask.

    A segment m is kept for the class with the best IoU(m, P_k) if that is above
    ``min_iou`` and |m| / HW <= ``max_area`` (a segment of the whole photo says
    nothing). A class that no segment is kept for stays as it is.

    Args:
        masks: (K, H, W) bool, P_k.
        segments: (M, H, W) bool, they may overlap; M = 0 is legal.
        min_iou: 0.3 to 0.4 as published.
        max_area: share of the photo.
        combine: what becomes of P_k and the union U_k of its segments: 'or' gives
            P | U, 'and' P & U, 'replace' U.

    Returns:
        (K, H, W) bool; classes may overlap where their segments do.

    Raises:
        ValueError: if shapes, dtypes or ``combine`` are wrong.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f'combine must be one of {COMBINATIONS}, got {combine!r}')
    shared, segment_area, mask_area = _areas(masks, segments)
    union = segment_area[:, None] + mask_area - shared
    iou = shared / union.clamp(min=1)
    small = segment_area <= max_area * segments.shape[1] * segments.shape[2]
    kept = _best_class_alone((iou > min_iou) & small[:, None], iou)
    joined = _unions(segments, kept, masks)
    merged = {'or': masks | joined, 'and': masks & joined, 'replace': joined}[combine]
    found = kept.any(0)[:, None, None]
    return torch.where(found, merged, masks)


def merge_segments_sepl(
    masks: Tensor,
    segments: Tensor,
    *,
    min_inside: float = 0.5,
    min_share: float = 0.85,
) -> Tensor:
    """Take the segments that lie in a class mask or hold most of it (SEPL).

    A segment m is kept for the class k that it shares most pixels with if
    |m & P_k| / |m| > ``min_inside`` or |m & P_k| / |P_k| >= ``min_share``. The result
    is the union of a class's segments, and of P_k what no segment covers at all.

    Args:
        masks: (K, H, W) bool, P_k.
        segments: (M, H, W) bool, they may overlap; M = 0 is legal.
        min_inside: share of the segment.
        min_share: share of the class mask.

    Returns:
        (K, H, W) bool; classes may overlap where their segments do.

    Raises:
        ValueError: if shapes or dtypes are wrong.
    """
    shared, segment_area, mask_area = _areas(masks, segments)
    inside = shared / segment_area[:, None].clamp(min=1) > min_inside
    holds = (shared / mask_area.clamp(min=1) >= min_share) & (shared > 0)
    kept = _best_class_alone(inside | holds, shared)
    uncovered = masks & ~segments.any(0) if len(segments) else masks
    return _unions(segments, kept, masks) | uncovered


def _areas(masks: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of each segment in each mask (M, K), of segments (M,), of masks (K,)."""
    for name, values in (('masks', masks), ('segments', segments)):
        if values.ndim != 3 or values.dtype != torch.bool:
            raise ValueError(
                f'{name} must be three-dimensional and bool, got '
                f'{tuple(values.shape)} {values.dtype}'
            )
    if masks.shape[1:] != segments.shape[1:]:
        raise ValueError(
            f'masks and segments must have one height and width, got '
            f'{tuple(masks.shape[1:])} and {tuple(segments.shape[1:])}'
        )
    # One by one: all products at once would be gigabytes for a large photo.
    rows = [(masks & segment).flatten(1).sum(1) for segment in segments]
    empty = torch.zeros(0, len(masks), device=masks.device)
    shared = torch.stack(rows).float() if rows else empty
    of_segments, of_masks = (v.flatten(1).sum(1).float() for v in (segments, masks))
    return shared, of_segments, of_masks


def _best_class_alone(wanted: Tensor, fit: Tensor) -> Tensor:
    """(M, K) bool with at most one True a row: the wanted class that fits best."""
    if not wanted.numel():
        return wanted
    fit = fit.masked_fill(~wanted, -1)
    best = torch.zeros_like(wanted).scatter_(1, fit.argmax(1, keepdim=True), True)
    return best & wanted


def _unions(segments: Tensor, kept: Tensor, masks: Tensor) -> Tensor:
    """(K, H, W) union of the segments of each class."""
    unions = torch.zeros_like(masks)
    for number, of_class in enumerate(kept.unbind(1)):
        if len(segments):
            unions[number] = segments[of_class].any(0)
    return unions


def winning_label(masks: Tensor, scores: Tensor) -> Tensor:
    """One label from class masks that may overlap.

    Args:
        masks: (K, H, W) bool.
        scores: (K, H, W), which decide where masks overlap.

    Returns:
        (H, W) int64, 0 where no class is; of equal scores the lower class.
    """
    if masks.shape != scores.shape:
        raise ValueError(
            f'masks and scores must have one shape, got {tuple(masks.shape)} and '
            f'{tuple(scores.shape)}'
        )
    if not len(masks):
        return masks.new_zeros(masks.shape[1:], dtype=torch.int64)
    best = scores.masked_fill(~masks, float('-inf')).max(0).indices + 1
    return best * masks.any(0)


def follow_label(scores: Tensor, label: Tensor) -> Tensor:
    """Scores whose best class is a given label, changed as little as possible.

    Where it is not, the label's class takes the best score and the class that had it
    the label's. So scores stay what a later step expects of them: their sum over the
    classes and their range are kept, but for ties, where another class is set to 0.

    Args:
        scores: (N, C, H, W) >= 0.
        label: (N, H, W) in 0..C-1.

    Returns:
        (N, C, H, W), whose argmax is the label.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if scores.ndim != 4 or label.shape != scores[:, 0].shape:
        raise ValueError(
            'scores must be (N, C, H, W) and label (N, H, W), got '
            f'{tuple(scores.shape)} and {tuple(label.shape)}'
        )
    best, before = scores.max(1, keepdim=True)
    wanted = label[:, None]
    own = scores.gather(1, wanted)
    # Nothing but zeros has no best class.
    best = best.clamp(min=torch.finfo(scores.dtype).tiny)
    moved = scores.scatter(1, before, own)
    tied = (moved >= best) & (before != wanted)
    return moved.masked_fill(tied, 0).scatter(1, wanted, best)
