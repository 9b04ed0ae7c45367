"""Boundary-aware losses: the band around label borders, and a pairwise energy.

In the band both streams of a decoder are drawn together and learn the labels that can
be trusted; the energy draws neighbours of like colour together. Both are after
published ideas (see each function), both are ratios of sums in the three pieces that
``losses`` describes, and both give gradients to every stream.

The functions work on whatever grid they are given; choose one fine enough for a
border to have a place.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from .local_affinity import _par_kernel, _taps
from .losses import _check_logits_and_label, _full_precision, _pixel_weight

Index = tuple[EllipsisType, slice, slice]
ENERGY_DILATIONS = (1, 2, 4, 8)


# ---------------------------------------------------------------------------- band
@torch.no_grad()
def boundary_band(
    pseudo_label: Tensor,
    valid: Tensor | None = None,
    *,
    width: int = 2,
    bridge: int = 0,
    ignore_index: int = 255,
) -> Tensor:
    """Mark the pixels near a border between two labels.

    An edge pixel has one of its four neighbours in another label; ignored pixels are
    no edge and make none. The band is all valid pixels within a Chebyshev distance of
    ``width`` from an edge pixel, ignored ones included.

    Args:
        pseudo_label: (N, H, W).
        valid: (N, 1, H, W) 0/1; padding makes no edge and is never in the band. None
            takes every pixel as real.
        width: 0 marks the edge pixels alone.
        bridge: labels grow this many pixels into ignored ones before edges are
            sought, so that two labels on both sides of an ignored strip of up to
            2 * bridge pixels have a border (in its middle).
        ignore_index: label without supervision.

    Returns:
        (N, H, W) float32, 0 or 1.

    Raises:
        ValueError: if the shapes do not belong together or a length is negative.
    """
    if pseudo_label.ndim != 3:
        raise ValueError(
            f'pseudo_label must be (N, H, W), got {tuple(pseudo_label.shape)}'
        )
    if width < 0 or bridge < 0:
        raise ValueError(
            f'width and bridge must not be negative, got width={width}, bridge={bridge}'
        )
    real = _real_pixels(pseudo_label, valid)
    # -1 loses every maximum, so ignored pixels never grow into labels.
    label = torch.where(real & (pseudo_label != ignore_index), pseudo_label.long(), -1)
    for _ in range(bridge):
        label = torch.where(label < 0, _dilate(label.float(), 1).long(), label)
    band = _dilate(_edges(label).float(), width)
    return band * real


def _real_pixels(pseudo_label: Tensor, valid: Tensor | None) -> Tensor:
    """(N, H, W) bool."""
    if valid is None:
        return torch.ones_like(pseudo_label, dtype=torch.bool)
    expected = (pseudo_label.shape[0], 1, *pseudo_label.shape[1:])
    if tuple(valid.shape) != expected:
        raise ValueError(
            f'valid must be {expected} for labels of shape '
            f'{tuple(pseudo_label.shape)}, got {tuple(valid.shape)}'
        )
    return valid[:, 0] > 0


def _edges(label: Tensor) -> Tensor:
    """(N, H, W) bool: pixels with a neighbour of another label; -1 has none."""
    edge = torch.zeros_like(label, dtype=torch.bool)
    for dim in (1, 2):
        length = label.shape[dim] - 1
        before, after = label.narrow(dim, 0, length), label.narrow(dim, 1, length)
        differ = (before != after) & (before >= 0) & (after >= 0)
        edge.narrow(dim, 0, length).logical_or_(differ)
        edge.narrow(dim, 1, length).logical_or_(differ)
    return edge


def _dilate(maps: Tensor, radius: int) -> Tensor:
    """Maximum over the square of this radius, rows first and then columns."""
    side = 2 * radius + 1
    maps = F.max_pool2d(maps[:, None], (side, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(maps, (1, side), stride=1, padding=(0, radius))[:, 0]


# ------------------------------------------------------------------- boundary loss
def symmetric_kl(
    logits_a: Tensor, logits_b: Tensor, *, temperature: float = 2.0
) -> Tensor:
    """T^2 (KL(p || q) + KL(q || p)) / 2 of two predictions, at every pixel.

    p and q are the softmax of the logits divided by T; the factor T^2 keeps the size
    of the gradients (Hinton et al., 2015).

    Args:
        logits_a: (N, C, H, W).
        logits_b: (N, C, H, W).
        temperature: T > 0.

    Returns:
        (N, H, W) >= 0, differentiable in both.

    Raises:
        ValueError: if the shapes differ or T is not positive.
    """
    if logits_a.shape != logits_b.shape:
        raise ValueError(
            f'both streams must have one shape, got {tuple(logits_a.shape)} and '
            f'{tuple(logits_b.shape)}'
        )
    if not temperature > 0:
        raise ValueError(f'temperature must be positive, got {temperature}')
    log_p = (_full_precision(logits_a) / temperature).log_softmax(dim=1)
    log_q = (_full_precision(logits_b) / temperature).log_softmax(dim=1)
    # In this form no term is negative, whatever the rounding.
    distance = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1)
    return 0.5 * temperature**2 * distance


def boundary_loss(
    stream_logits: Sequence[Tensor],
    pseudo_label: Tensor,
    band: Tensor,
    *,
    weight: Tensor | None = None,
    temperature: float = 2.0,
    consistency_weight: float = 0.5,
    label_weight: float = 1.0,
    ignore_index: int = 255,
) -> Tensor:
    """Make the streams agree, and the prediction follow the labels, near borders.

    consistency_weight * mean over the band of the symmetric KL between the streams
    (mean over their pairs), plus label_weight * sum(w CE) / sum(w) over the labelled
    band pixels, CE that of the streams' averaged logits. Two branches that agree
    near borders are the idea of BECO (Rong et al., CVPR 2023) and RSL, whose
    temperature and width of the band are the defaults; here both terms reach every
    stream (a published variant computes them without gradient). An empty band or one
    without labels contributes 0.

    Args:
        stream_logits: S >= 1 tensors (N, C, H, W); one stream has no consistency.
        pseudo_label: (N, H, W) in [0, C) or ``ignore_index``.
        band: (N, H, W) >= 0, as ``boundary_band`` makes it.
        weight: (N, H, W) >= 0 of each label, carries no gradient; 0 where the label
            is not reliable enough. None weighs all 1. Consistency needs no label and
            takes no weight.
        temperature: of the symmetric KL.
        consistency_weight: factor on the first term.
        label_weight: factor on the second.
        ignore_index: label without supervision.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: if there is no stream or the shapes do not belong together.
    """
    sums = boundary_sums(
        stream_logits,
        pseudo_label,
        band,
        weight=weight,
        temperature=temperature,
        ignore_index=ignore_index,
    )
    return boundary_from_sums(
        sums, consistency_weight=consistency_weight, label_weight=label_weight
    )


def boundary_sums(
    stream_logits: Sequence[Tensor],
    pseudo_label: Tensor,
    band: Tensor,
    *,
    weight: Tensor | None = None,
    temperature: float = 2.0,
    ignore_index: int = 255,
) -> Tensor:
    """Local sums (4,): band KL, band; band w CE, band w."""
    if not stream_logits:
        raise ValueError('need one stream or more, got 0')
    # The mean of no more than a few streams; stacking them would copy all.
    total = reduce(torch.add, map(_full_precision, stream_logits))
    mean_logits = total / len(stream_logits)
    _check_logits_and_label(mean_logits, pseudo_label, weight)
    if band.shape != pseudo_label.shape:
        raise ValueError(
            f'band must be {tuple(pseudo_label.shape)} as the labels, got '
            f'{tuple(band.shape)}'
        )
    band = band.detach().to(mean_logits.dtype)
    label = pseudo_label.long()
    cross_entropy = F.cross_entropy(
        mean_logits, label, ignore_index=ignore_index, reduction='none'
    )
    weight = _pixel_weight(label, ignore_index, weight, dtype=band.dtype)
    # where, not a product: a NaN weight outside the band must not count.
    weight = torch.where(band > 0, band * weight, band)
    distance = _mean_symmetric_kl(stream_logits, temperature)
    return torch.stack(
        [
            torch.zeros_like(band).sum()
            if distance is None
            else (band * distance).sum(),
            band.sum(),
            (weight * cross_entropy).sum(),
            weight.sum(),
        ]
    )


def boundary_from_sums(
    sums: Tensor, *, consistency_weight: float = 0.5, label_weight: float = 1.0
) -> Tensor:
    """Loss from the sums (4,) of all processes."""
    consistency, labels = _ratios(sums.view(2, 2)).unbind(0)
    return consistency_weight * consistency + label_weight * labels


def _mean_symmetric_kl(
    stream_logits: Sequence[Tensor], temperature: float
) -> Tensor | None:
    """(N, H, W), or None for one stream."""
    pairs = list(combinations(stream_logits, 2))
    if not pairs:
        return None
    distances = (symmetric_kl(a, b, temperature=temperature) for a, b in pairs)
    return reduce(torch.add, distances) / len(pairs)


# ------------------------------------------------------------------ pairwise energy
def pairwise_energy(
    seg_logits: Tensor,
    image: Tensor,
    *,
    gate: Tensor | None = None,
    dilations: Sequence[int] = ENERGY_DILATIONS,
    w1: float = 0.3,
) -> Tensor:
    """Potts energy of a prediction: neighbours of like colour want one class.

    sum_i g_i sum_n g_n a_in (1 - p_i . p_n) / sum_i g_i with p the softmax and a_in
    the colour kernel of PAR, whose rows sum to 1. The relaxed Potts energy as a loss is
    that of Tang et al. (ECCV 2018); the local kernel stands in for their dense
    bilateral filter, which needs a compiled extension. A neighbour outside the image
    is no neighbour.

    Args:
        seg_logits: (N, C, h, w).
        image: (N, 3, h, w) on the same grid, RGB in [0, 1]; no gradient.
        gate: (N, h, w) >= 0, how far a pixel takes part, 0 not at all (padding); no
            gradient. A pair counts by the product of its ends. None takes 1.
        dilations: of the 3x3 neighbourhoods, pixels.
        w1: width of the colour kernel, in local standard deviations.

    Returns:
        Scalar in [0, max gate].

    Raises:
        ValueError: if the shapes do not belong together, a dilation is below 1 or w1
            is not positive.
    """
    return pairwise_energy_from_sums(
        pairwise_energy_sums(seg_logits, image, gate=gate, dilations=dilations, w1=w1)
    )


def pairwise_energy_sums(
    seg_logits: Tensor,
    image: Tensor,
    *,
    gate: Tensor | None = None,
    dilations: Sequence[int] = ENERGY_DILATIONS,
    w1: float = 0.3,
) -> Tensor:
    """Local sums (2,): energy of the pairs, and gates."""
    _check_energy(seg_logits, image, gate, dilations, w1)
    probability = _full_precision(seg_logits).softmax(dim=1)
    if gate is None:
        gate = torch.ones_like(probability[:, 0])
    gate = gate.detach().to(probability.dtype)
    kernel = _colour_kernel(image.to(probability.dtype), tuple(dilations), w1)
    numbers = {tap: number for number, tap in enumerate(_taps(tuple(dilations)))}
    energy = probability.new_zeros(())
    for (dy, dx), number in numbers.items():
        # Each unordered pair once, with what both ends want of each other.
        if (dy, dx) < (0, 0):
            continue
        here, there = _ends(gate.shape[1:], dy, dx)
        wanted = kernel[:, number][here] + kernel[:, numbers[-dy, -dx]][there]
        agreement = (probability[here] * probability[there]).sum(dim=1)
        energy = energy + (wanted * gate[here] * gate[there] * (1 - agreement)).sum()
    return torch.stack([energy, gate.sum()])


def pairwise_energy_from_sums(sums: Tensor) -> Tensor:
    """Loss from the sums (2,) of all processes."""
    return _ratios(sums[None])[0]


@torch.no_grad()
def _colour_kernel(image: Tensor, dilations: tuple[int, ...], w1: float) -> Tensor:
    """(N, taps, h, w), rows sum to 1."""
    # Far neighbours are rare enough by their number; no position term.
    with torch.autocast(image.device.type, enabled=False):
        return _par_kernel(image, dilations, w1, 0.0)


def _ends(size: Sequence[int], dy: int, dx: int) -> tuple[Index, Index]:
    """Index of the pixels that have this neighbour inside, and of the neighbours."""
    height, width = size
    rows = slice(max(0, -dy), max(0, height - max(0, dy)))
    columns = slice(max(0, -dx), max(0, width - max(0, dx)))
    shifted_rows = slice(max(0, dy), max(0, height + min(0, dy)))
    shifted_columns = slice(max(0, dx), max(0, width + min(0, dx)))
    return (..., rows, columns), (..., shifted_rows, shifted_columns)


def _ratios(sums: Tensor) -> Tensor:
    """(M, 2) of value and count -> (M,); nothing counted gives 0."""
    value, count = sums.unbind(1)
    return value / torch.where(count > 0, count, torch.ones_like(count))


def _check_energy(
    seg_logits: Tensor,
    image: Tensor,
    gate: Tensor | None,
    dilations: Sequence[int],
    w1: float,
) -> None:
    if seg_logits.ndim != 4:
        raise ValueError(
            f'seg_logits must be (N, C, h, w), got {tuple(seg_logits.shape)}'
        )
    n, _, h, w = seg_logits.shape
    for name, value, expected in (
        ('image', image, (n, 3, h, w)),
        ('gate', gate, (n, h, w)),
    ):
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f'{name} must be {expected} for logits of shape '
                f'{tuple(seg_logits.shape)}, got {tuple(value.shape)}'
            )
    if not dilations or min(dilations) < 1 or len(set(dilations)) < len(dilations):
        raise ValueError(
            f'dilations must be positive and distinct, got {tuple(dilations)}'
        )
    if not w1 > 0:
        raise ValueError(f'w1 must be positive, got {w1}')
