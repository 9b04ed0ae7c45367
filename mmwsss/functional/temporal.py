"""Frames of a clip: pooled scores, CAMs pooled over time, and a gate by motion.

A clip's label says that an object is in one frame at least, not in which (multiple
instance learning). A camera that stands still gives for free what a photo cannot: what
never moves, a chimney say, is not smoke.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIL_MODES = ('max', 'lse', 'topk', 'mean')
REDUCTIONS = ('max', 'mean')


# ------------------------------------------------------------------ scores of a clip
def mil_pool(
    scores: Tensor,
    valid: Tensor | None = None,
    *,
    mode: str = 'lse',
    sharpness: float = 4.0,
    k: int = 2,
) -> Tensor:
    """Scores of clips from those of their frames.

    'max' takes the best frame, 'mean' all, 'topk' the mean of the k best (of all where
    there are fewer), 'lse' log(mean(exp(r s))) / r, between mean (r -> 0) and max (r ->
    infinity), so that every frame has a gradient.

    Args:
        scores: (B, T, K) logits of T frames.
        valid: (B, T) bool, at least one True a row; None for all of them.
        mode: see above.
        sharpness: r of 'lse', positive.
        k: of 'topk', 1 or more.

    Returns:
        (B, K).

    Raises:
        ValueError: if shapes do not belong together or an argument is out of range.
    """
    if scores.ndim != 3 or not scores.shape[1]:
        raise ValueError(
            f'scores must be (B, T, K) with T >= 1, got {tuple(scores.shape)}'
        )
    if valid is not None and valid.shape != scores.shape[:2]:
        raise ValueError(
            f'valid must be {tuple(scores.shape[:2])}, got {tuple(valid.shape)}'
        )
    if not sharpness > 0:
        raise ValueError(f'sharpness must be positive, got {sharpness}')
    if k < 1:
        raise ValueError(f'k must be 1 or more, got {k}')
    if mode not in MIL_MODES:
        raise ValueError(f'mode must be one of {MIL_MODES}, got {mode!r}')
    if valid is None:
        valid = scores.new_ones(scores.shape[:2], dtype=torch.bool)
    left_out = ~valid[:, :, None]
    count = valid.sum(1)[:, None]  # (B, 1)
    if mode == 'mean':
        return scores.masked_fill(left_out, 0).sum(1) / count
    lowest = scores.masked_fill(left_out, float('-inf'))
    if mode == 'max':
        return lowest.amax(1)
    if mode == 'lse':
        total = (lowest * sharpness).logsumexp(1)
        return (total - count.to(total.dtype).log()) / sharpness
    best = lowest.topk(min(k, scores.shape[1]), dim=1).values
    taken = torch.arange(best.shape[1], device=scores.device) < count
    best = best.masked_fill(~taken[:, :, None], 0)
    return best.sum(1) / taken.sum(1, keepdim=True)


# ----------------------------------------------------------------------- CAMs in time
def temporal_pool(cams: Tensor, *, window: int = 3, reduce: str = 'max') -> Tensor:
    """Each frame's CAMs with those of its neighbours in time.

    'max' finds an object that some of the frames miss (temporal CAMs of video WSSS),
    'mean' calms maps that flicker. At the ends the window is shorter.

    Args:
        cams: (T, K, h, w) >= 0, frames of one clip in order.
        window: frames that are pooled, odd; 1 changes nothing.
        reduce: 'max' or 'mean'.

    Returns:
        (T, K, h, w).

    Raises:
        ValueError: if the shape is wrong or an argument is out of range.
    """
    _check_clip(cams, 'cams')
    _check_reduction(reduce)
    if window < 1 or window % 2 == 0:
        raise ValueError(f'window must be odd and positive, got {window}')
    reach = window // 2
    return torch.stack(
        [
            reduce_frames(cams[max(t - reach, 0) : t + reach + 1], reduce)
            for t in range(len(cams))
        ]
    )


def reduce_frames(cams: Tensor, reduce: str) -> Tensor:
    """One map (K, h, w) of frames (T, K, h, w), 'max' or 'mean'."""
    return cams.amax(0) if reduce == 'max' else cams.mean(0)


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """Fetch each cell's value from where its flow points to, bilinear.

    Args:
        maps: (N, K, h, w).
        flow: (N, 2, h, w), rows then columns, in cells: what is at p here is at
            p + flow(p) in ``maps``.

    Returns:
        (N, K, h, w); 0 for what comes from outside the map.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    expected = (len(maps), 2, *maps.shape[2:])
    if maps.ndim != 4 or tuple(flow.shape) != expected:
        raise ValueError(
            f'maps must be (N, K, h, w) and flow (N, 2, h, w), got '
            f'{tuple(maps.shape)} and {tuple(flow.shape)}'
        )
    height, width = maps.shape[2:]
    rows = torch.arange(height, device=maps.device, dtype=maps.dtype)[:, None]
    columns = torch.arange(width, device=maps.device, dtype=maps.dtype)
    flow = flow.to(maps.dtype)
    # grid_sample counts from -1 to 1 between the outer edges of the cells.
    y = (2 * (rows + flow[:, 0]) + 1) / height - 1
    x = (2 * (columns + flow[:, 1]) + 1) / width - 1
    return F.grid_sample(maps, torch.stack([x, y], -1), align_corners=False)


# ----------------------------------------------------------------------------- motion
def still_image(frames: Tensor) -> Tensor:
    """What a clip of a standing camera shows without what moves: the median.

    Args:
        frames: (T, 3, H, W) RGB in [0, 1].

    Returns:
        (3, H, W); of an even number of frames the mean of the two in the middle.
    """
    _check_clip(frames, 'frames')
    ordered = frames.sort(0).values
    return (ordered[(len(frames) - 1) // 2] + ordered[len(frames) // 2]) / 2


def motion_map(
    frames: Tensor, still: Tensor, *, kappa: float = 0.3, blur: float = 2.0
) -> Tensor:
    """Where frames differ from the still image: min(|I - B|_1 / kappa, 1), blurred.

    Args:
        frames: (N, 3, H, W) RGB in [0, 1].
        still: (3, H, W), B of ``still_image``.
        kappa: sum over the channels of a difference that is motion for sure.
        blur: standard deviation of the Gaussian, in pixels; 0 for none.

    Returns:
        (N, 1, H, W) in [0, 1].

    Raises:
        ValueError: if the shapes do not belong together or a number is out of range.
    """
    if frames.ndim != 4 or frames.shape[1:] != still.shape:
        raise ValueError(
            'frames must be (N, 3, H, W) and still (3, H, W), got '
            f'{tuple(frames.shape)} and {tuple(still.shape)}'
        )
    if not kappa > 0:
        raise ValueError(f'kappa must be positive, got {kappa}')
    if not blur >= 0:
        raise ValueError(f'blur must be 0 or more, got {blur}')
    difference = (frames - still).abs().sum(1, keepdim=True)
    return _blurred((difference / kappa).clamp(max=1), blur)


def _blurred(maps: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of (N, 1, H, W); at the border over what is inside."""
    reach = math.ceil(3 * deviation)
    if not reach:
        return maps
    places = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    weight = (-(places**2) / (2 * deviation**2)).exp()

    def along_both(values: Tensor) -> Tensor:
        values = F.conv2d(values, weight.view(1, 1, -1, 1), padding=(reach, 0))
        return F.conv2d(values, weight.view(1, 1, 1, -1), padding=(0, reach))

    inside = along_both(torch.ones_like(maps[:1]))
    return (along_both(maps) / inside).clamp(0, 1)


def motion_gate(cams: Tensor, motion: Tensor, *, strength: float = 0.5) -> Tensor:
    """Lower CAMs where nothing moves: cam * ((1 - strength) + strength * motion).

    Args:
        cams: (N, K, h, w) >= 0.
        motion: (N, 1, h, w) in [0, 1].
        strength: 0 changes nothing, 1 leaves nothing of what stands still.

    Returns:
        (N, K, h, w); not normalised again.

    Raises:
        ValueError: if the shapes do not belong together or strength is out of range.
    """
    expected = (len(cams), 1, *cams.shape[2:])
    if cams.ndim != 4 or tuple(motion.shape) != expected:
        raise ValueError(
            f'cams must be (N, K, h, w) and motion (N, 1, h, w), got '
            f'{tuple(cams.shape)} and {tuple(motion.shape)}'
        )
    if not 0 <= strength <= 1:
        raise ValueError(f'strength must be in [0, 1], got {strength}')
    return cams * ((1 - strength) + strength * motion)


def _check_clip(values: Tensor, name: str) -> None:
    if values.ndim != 4 or not len(values):
        raise ValueError(
            f'{name} must be (T, channels, height, width) with T >= 1, got '
            f'{tuple(values.shape)}'
        )


def _check_reduction(reduce: str) -> None:
    if reduce not in REDUCTIONS:
        raise ValueError(f'reduce must be one of {REDUCTIONS}, got {reduce!r}')
