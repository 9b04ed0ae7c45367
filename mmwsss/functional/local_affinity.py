"""PAMR and PAR: propagation along a local colour affinity.

Sources: PAMR, Araslanov and Roth, CVPR 2020; PAR, Ru et al. (AFA), CVPR 2022. The
formulas are those of the released code (spec sipe sections 5 and 6). Form: the kernel
is streamed tap by tap (no (N, 3, 48, H, W) tensor), the scores are padded once and
shifted views are accumulated for a few channels at a time, which stay in cache.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
# 7 channels of 320 x 320 float32 are 2.9 MB: measured best on CPU.
CHUNK_PIXELS = 7 * 320 * 320


@torch.no_grad()
def pamr(
    image: Tensor,
    scores: Tensor,
    *,
    num_iters: int = 10,
    dilations: Sequence[int] = DILATIONS,
    eps: float = 1e-8,
) -> Tensor:
    """Pixel-adaptive mask refinement.

    kernel = softmax over the taps of mean_c -|x_i - x_n| / (eps + 0.1 std_i), with
    std_i over all 3 x 3 taps of every dilation, the centre included each time. Rows
    sum to 1, so range and sum over the classes are kept.

    Args:
        image: (N, 3, H, W), RGB in [0, 1].
        scores: (N, C, h, w); another size is first resized to the image
            (align_corners=True, as published).
        num_iters: propagation steps.
        dilations: of the 3x3 neighbourhoods, pixels; borders are replicated.
        eps: see the formula.

    Returns:
        (N, C, H, W) in the dtype of scores, computed in float32 or wider. No gradient.
    """
    _check(image, scores, num_iters, dilations)
    with torch.autocast(image.device.type, enabled=False):
        image, working = _widened(image, scores)
        kernel = _pamr_kernel(image, tuple(dilations), eps)
        refined = _propagate(image, working, kernel, tuple(dilations), num_iters)
    return refined.to(scores.dtype)


@torch.no_grad()
def par(
    image: Tensor,
    scores: Tensor,
    *,
    num_iters: int = 10,
    dilations: Sequence[int] = DILATIONS,
    w1: float = 0.3,
    w2: float = 0.01,
    normalize: bool = False,
) -> Tensor:
    """Pixel-adaptive refinement with a squared colour and a position term.

    kernel = softmax mean_c -(|x_i - x_n| / (std_i + 1e-8) / w1)^2
    + w2 softmax -(dist_n / (std(dist) + 1e-8) / w1)^2, with std_i over the neighbours
    without the centre. Rows sum to 1 + w2 as published.

    Args:
        image: (N, 3, H, W), RGB in [0, 1].
        scores: (N, C, h, w); another size is first resized to the image
            (align_corners=True, as published).
        num_iters: propagation steps.
        dilations: of the 3x3 neighbourhoods, pixels; borders are replicated.
        w1: width of both terms.
        w2: weight of the position term.
        normalize: divide the kernel by 1 + w2.

    Returns:
        (N, C, H, W) in the dtype of scores, computed in float32 or wider. No gradient.
    """
    _check(image, scores, num_iters, dilations)
    if not w1 > 0:
        raise ValueError(f'w1 must be positive, got {w1}')
    with torch.autocast(image.device.type, enabled=False):
        image, working = _widened(image, scores)
        kernel = _par_kernel(image, tuple(dilations), w1, w2)
        if normalize:
            kernel /= 1 + w2
        refined = _propagate(image, working, kernel, tuple(dilations), num_iters)
    return refined.to(scores.dtype)


def _check(
    image: Tensor, scores: Tensor, num_iters: int, dilations: Sequence[int]
) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f'image must be (N, 3, H, W), got {tuple(image.shape)}')
    if scores.ndim != 4 or scores.shape[0] != image.shape[0]:
        raise ValueError(
            f'scores must be ({image.shape[0]}, C, h, w), got {tuple(scores.shape)}'
        )
    if not dilations or min(dilations) < 1:
        raise ValueError(f'dilations must be positive, got {tuple(dilations)}')
    if num_iters < 0:
        raise ValueError(f'num_iters must be 0 or more, got {num_iters}')


def _widened(image: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where one of them is."""
    dtype = torch.promote_types(image.dtype, scores.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return image.to(dtype), scores.to(dtype)


def _taps(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """(dy, dx) of the 8 neighbours of every dilation."""
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return [(y * d, x * d) for d in dilations for y, x in around]


def _pad(maps: Tensor, margin: int) -> Tensor:
    """Replicate the border, also where the margin exceeds the image."""
    return F.pad(maps, (margin,) * 4, mode='replicate')


def _shifted(padded: Tensor, tap: tuple[int, int], margin: int, size) -> Tensor:
    top, left = margin + tap[0], margin + tap[1]
    return padded[..., top : top + size[0], left : left + size[1]]


def _deviation(
    image: Tensor, padded: Tensor, taps: list, margin: int, centres: int
) -> Tensor:
    """Unbiased standard deviation over the taps and copies of the centre.

    Two passes, mean first: a difference of sums cancels where one pixel sticks out
    of an almost flat neighbourhood, and PAR then loses its weights there.
    """
    size, count = image.shape[-2:], len(taps) + centres
    mean = image * centres
    for tap in taps:
        mean += _shifted(padded, tap, margin, size)
    mean /= count
    squares = (image - mean).square_().mul_(centres)
    for tap in taps:
        difference = _shifted(padded, tap, margin, size) - mean
        squares.addcmul_(difference, difference)
    return squares.div_(count - 1).sqrt_()


def _pamr_kernel(image: Tensor, dilations: tuple[int, ...], eps: float) -> Tensor:
    taps, margin = _taps(dilations), max(dilations)
    padded = _pad(image, margin)
    deviation = _deviation(image, padded, taps, margin, centres=len(dilations))
    scale = (0.1 * deviation + eps).reciprocal_().div_(-3)
    n, _, height, width = image.shape
    kernel = image.new_empty(n, len(taps), height, width)
    for number, tap in enumerate(taps):
        difference = _shifted(padded, tap, margin, (height, width)) - image
        torch.sum(difference.abs_().mul_(scale), 1, out=kernel[:, number])
    return _softmax_(kernel)


def _par_kernel(
    image: Tensor, dilations: tuple[int, ...], w1: float, w2: float
) -> Tensor:
    taps, margin = _taps(dilations), max(dilations)
    padded = _pad(image, margin)
    deviation = _deviation(image, padded, taps, margin, centres=0)
    scale = (deviation + 1e-8).mul_(w1).reciprocal_()
    n, _, height, width = image.shape
    kernel = image.new_empty(n, len(taps), height, width)
    for number, tap in enumerate(taps):
        difference = _shifted(padded, tap, margin, (height, width)) - image
        torch.sum(difference.mul_(scale).square_(), 1, out=kernel[:, number])
    _softmax_(kernel.div_(-3))
    distance = [(y * y + x * x) ** 0.5 for y, x in taps]
    distance = torch.tensor(distance, dtype=kernel.dtype)
    position = (-((distance / (distance.std() + 1e-8) / w1) ** 2)).softmax(0)
    # Made on the host: one copy, which the device need not wait for.
    position = position.to(kernel, non_blocking=True)
    return kernel.add_(position[:, None, None], alpha=w2)


def _softmax_(kernel: Tensor) -> Tensor:
    """Softmax over the taps, in place: the kernel is the largest tensor here."""
    kernel -= kernel.amax(1, keepdim=True)
    kernel.exp_()
    kernel /= kernel.sum(1, keepdim=True)
    return kernel


def _propagate(
    image: Tensor,
    scores: Tensor,
    kernel: Tensor,
    dilations: tuple[int, ...],
    num_iters: int,
) -> Tensor:
    size = image.shape[-2:]
    if scores.shape[-2:] != size:
        scores = F.interpolate(scores, size, mode='bilinear', align_corners=True)
    if image.device.type != 'cpu':
        return _iterate(scores, kernel, dilations, num_iters)
    # On a CPU: image by image and a few channels at a time, so that both the kernel
    # and the channels stay in cache. Channels without any score stay zero whatever
    # the kernel is (absent classes are most of them); finding them out is free here,
    # on a GPU it would wait for the device.
    refined = torch.zeros(scores.shape, dtype=scores.dtype)
    step = max(1, CHUNK_PIXELS // (size[0] * size[1]))
    for number in range(scores.shape[0]):
        occupied = scores[number].flatten(1).any(1).nonzero().squeeze(1)
        # Of no channel at all, split would make one empty chunk.
        for channels in occupied.split(step) if len(occupied) else ():
            refined[number, channels] = _iterate(
                scores[number, channels][None],
                kernel[number : number + 1],
                dilations,
                num_iters,
            )[0]
    return refined


def _iterate(
    scores: Tensor, kernel: Tensor, dilations: tuple[int, ...], num_iters: int
) -> Tensor:
    taps, margin = _taps(dilations), max(dilations)
    for _ in range(num_iters):
        padded = _pad(scores, margin)
        scores = torch.zeros_like(scores)
        for tap, weight in zip(taps, kernel.unbind(1), strict=True):
            scores.addcmul_(
                _shifted(padded, tap, margin, scores.shape[-2:]), weight[:, None]
            )
    return scores
