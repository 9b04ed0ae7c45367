"""PAMR and PAR: propagation along a local colour affinity.

Sources: PAMR, Araslanov and Roth, CVPR 2020; PAR, Ru et al. (AFA), CVPR 2022. The
formulas are those of the released code (spec sipe sections 5 and 6). Form: the kernel
is streamed tap by tap (no (N, 3, 48, H, W) tensor), the scores are padded once and
shifted views are accumulated, for so many images and channels at a time that they
stay in cache. Channels without any score take no part. On a GPU each propagation step
is one kernel (``kernels.local_affinity``).
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
# Measured best on CPU, of float32: 7 channels of 320 x 320 (2.9 MB) of a large image,
# and as many small images as have 1 MB of channels.
CHUNK_PIXELS = 7 * 320 * 320
GROUP_PIXELS = 2**18
Taps = Sequence[tuple[int, int]]  # (dy, dx) of each neighbour
Kernel = Callable[[Tensor], Tensor]  # (N, 3, H, W) -> (N, taps, H, W)
Propagate = Callable[[Tensor, Tensor, Taps, int], Tensor]


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

        def kernel_of(some: Tensor) -> Tensor:
            return _pamr_kernel(some, tuple(dilations), eps)

        refined = _refine(image, working, kernel_of, tuple(dilations), num_iters)
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

        def kernel_of(some: Tensor) -> Tensor:
            kernel = _par_kernel(some, tuple(dilations), w1, w2)
            return kernel.div_(1 + w2) if normalize else kernel

        refined = _refine(image, working, kernel_of, tuple(dilations), num_iters)
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
    """Both in float32, or in float64 where one of them is, with whole planes."""
    dtype = torch.promote_types(image.dtype, scores.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return image.to(dtype).contiguous(), scores.to(dtype).contiguous()


def _taps(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """(dy, dx) of the 8 neighbours of every dilation."""
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return [(y * d, x * d) for d in dilations for y, x in around]


def _pad(maps: Tensor, margin: int) -> Tensor:
    """Replicate the border, also where the margin exceeds the image."""
    return F.pad(maps, (margin,) * 4, mode='replicate')


def _shifted(
    padded: Tensor, tap: tuple[int, int], margin: int, size: Sequence[int]
) -> Tensor:
    top, left = margin + tap[0], margin + tap[1]
    return padded[..., top : top + size[0], left : left + size[1]]


def _deviation(
    image: Tensor, padded: Tensor, taps: Taps, margin: int, centres: int
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
    difference = torch.empty_like(image)
    for tap in taps:
        torch.sub(_shifted(padded, tap, margin, size), mean, out=difference)
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
    lengths = [(y * y + x * x) ** 0.5 for y, x in taps]
    distance = torch.tensor(lengths, dtype=kernel.dtype)
    position = (-((distance / (distance.std() + 1e-8) / w1) ** 2)).softmax(0)
    # Made on the host: one copy, which the device need not wait for.
    position = position.to(kernel, non_blocking=True)
    return kernel.add_(position[:, None, None], alpha=w2)


def _softmax_(kernel: Tensor) -> Tensor:
    """Softmax over the taps, in place: the kernel is the largest tensor here."""
    kernel -= kernel.amax(1, keepdim=True)
    kernel.exp_()
    kernel *= kernel.sum(1, keepdim=True).reciprocal_()
    return kernel


def _refine(
    image: Tensor,
    scores: Tensor,
    kernel_of: Kernel,
    dilations: tuple[int, ...],
    num_iters: int,
) -> Tensor:
    taps = _taps(dilations)
    if image.device.type == 'cpu':
        return _refine_in_cache(image, scores, kernel_of, taps, num_iters)
    return _refine_at_once(image, scores, kernel_of, taps, num_iters)


def _refine_at_once(
    image: Tensor, scores: Tensor, kernel_of: Kernel, taps: Taps, num_iters: int
) -> Tensor:
    """For a GPU: few and large operations, and nothing to wait for."""
    propagate = (_fused() if image.is_cuda else None) or _propagate
    return propagate(_resized(scores, image), kernel_of(image), taps, num_iters)


def _refine_in_cache(
    image: Tensor, scores: Tensor, kernel_of: Kernel, taps: Taps, num_iters: int
) -> Tensor:
    """For a CPU: a few images and channels at a time, the empty ones never."""
    # Absent classes are most of them, and a channel without any score stays zero
    # whatever the kernel is. On a GPU finding them out would wait for the device.
    occupied = scores.flatten(2).any(2)  # (N, C)
    pixels = image.shape[-2] * image.shape[-1]
    refined = scores.new_zeros(*scores.shape[:2], *image.shape[-2:])
    for images, channels in _groups(occupied, pixels):
        kernel = kernel_of(image[images])
        for some in channels.split(max(1, CHUNK_PIXELS // pixels), 1):
            place = images[:, None], some
            chunk = _resized(scores[place], image)
            refined[place] = _propagate(chunk, kernel, taps, num_iters)
    return refined


def _groups(occupied: Tensor, pixels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (n,) with equally many occupied channels, and which those are (n, C')."""
    numbers = occupied.sum(1)
    for number in numbers.unique().tolist():
        if number == 0:
            continue
        images = (numbers == number).nonzero().squeeze(1)
        # Their kernels are made at once too, of images of three channels.
        at_once = max(1, GROUP_PIXELS // (pixels * max(3, number)))
        for some in images.split(at_once):
            yield some, occupied[some].nonzero()[:, 1].view(len(some), number)


def _resized(scores: Tensor, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size, mode='bilinear', align_corners=True)


@functools.cache
def _fused() -> Propagate | None:
    """``_propagate`` in one kernel for each step; None where it does not work."""
    try:
        from .kernels.local_affinity import propagate

        one = torch.ones(1, 1, 1, 1, device='cuda')
        propagate(one, one, [(0, 0)], 1)
    except Exception as error:
        # No Triton, no compiler for its launcher, a GPU it does not know: it has many
        # ways to say so, and none of them need stop a training.
        warnings.warn(
            'PAMR and PAR run in their slower form on this GPU, since Triton does not '
            f'work here: {type(error).__name__}: {error}',
            stacklevel=2,
        )
        return None
    return propagate


def _propagate(scores: Tensor, kernel: Tensor, taps: Taps, num_iters: int) -> Tensor:
    if num_iters == 0:
        return scores
    margin, size = max(max(map(abs, tap)) for tap in taps), scores.shape[-2:]
    padded = _pad(scores, margin)
    # Views of one buffer, which serve all iterations.
    views = [_shifted(padded, tap, margin, size) for tap in taps]
    weights = [weight[:, None] for weight in kernel.unbind(1)]
    centre = _shifted(padded, (0, 0), margin, size)
    result = torch.empty_like(centre)
    for step in range(num_iters):
        if step > 0:
            centre.copy_(result)
            _fill_border_(padded, margin)
        torch.mul(views[0], weights[0], out=result)
        for view, weight in zip(views[1:], weights[1:], strict=True):
            result.addcmul_(view, weight)
    return result


def _fill_border_(padded: Tensor, margin: int) -> None:
    """Replicate the edges of what lies within the margin, in place."""
    rows = padded[..., margin:-margin, :]
    rows[..., :margin] = rows[..., margin : margin + 1]
    rows[..., -margin:] = rows[..., -margin - 1 : -margin]
    padded[..., :margin, :] = rows[..., :1, :]
    padded[..., -margin:, :] = rows[..., -1:, :]
