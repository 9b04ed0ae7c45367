"""How far a pseudo-label may be trusted, and what follows from it.

Three signals rate "this cell is class c" for every class at once: agreement with the
network's past predictions, confidence and agreement of the decoder's streams, and
agreement with similar cells nearby. They are blended into one reliability, which the
class-wise gates turn into repaired labels and pixel weights.

Sources: uncertainty from entropy and disagreement, after RSL; class-wise gates, after
FreeMatch (Wang et al., ICLR 2023); the share of past agreement and the blend weights
.30 / .35 / .35, after the public configuration of the reliability filter built on
WeCLIP+ (TPAMI 2025). Differences: the softmax runs over the image's classes only, the
history is smoothed towards 0.5, cosine affinity decides which neighbours vote.

Conventions: channel 0 is background, class k of ``image_label`` is channel k + 1, 255
means ignore. Maps lie on the decoder's grid (N, C, h, w), labels and reliability on
pixels (N, H, W). Nothing in here carries a gradient; half precision is taken to
float32, float64 stays. Only ``reliability_bins`` waits for the device.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pseudo_label import IGNORE_INDEX, restrict_to_image_classes

NEUTRAL = 0.5
BLEND_MODES = ('weighted', 'geometric', 'rank')
# Neighbours whose affinities add up to less are all unlike the cell: with the default
# power none of them has a cosine above 0.03, which is noise.
_LEAST_AFFINITY = 1e-6


# --------------------------------------------------------------------------- signals
@torch.no_grad()
def temporal_agreement(
    histogram: Tensor, image_label: Tensor, *, prior: float = 0.5
) -> Tensor:
    """Smoothed share of past predictions that gave each class.

    (H_c + a) / (sum_c H_c + 2 a) with a = ``prior``. A cell never visited has 0.5 for
    each of the image's classes, which speaks neither for nor against a label.

    Args:
        histogram: (N, C, h, w) >= 0, possibly decayed counts of past predictions;
            counts of absent classes are not read.
        image_label: (N, K) 0/1 with K = C - 1.
        prior: a > 0, visits in favour and visits against that are taken for granted.

    Returns:
        (N, C, h, w) in [0, 1], absent classes 0.

    Raises:
        ValueError: if the shapes do not belong together or the prior is not positive.
    """
    if not 0 < prior < math.inf:
        raise ValueError(f'prior must be positive and finite, got {prior}')
    counts = _full_precision(histogram)
    counts = restrict_to_image_classes(counts, image_label, fill=0.0)
    visits = counts.sum(dim=1, keepdim=True)
    share = (counts + prior) / (visits + 2 * prior)
    return restrict_to_image_classes(share, image_label, fill=0.0)


@torch.no_grad()
def stream_confidence(stream_logits: Sequence[Tensor], image_label: Tensor) -> Tensor:
    """Confidence and mutual agreement of several predictions of one image (RSL).

    u = 0.5 mean_s H(p_s) / log(n) + 0.5 (1 - exp(-D)), with p_s the softmax of stream
    s over the n classes allowed in the image (background and present ones) and D the
    mean over the pairs of streams of 0.5 KL(p|q) + 0.5 KL(q|p). A single stream has
    no D: u = H(p) / log(n). With n = 1 background is certain, u = 0.

    The value of class c is (1 - u) pbar_c / max_c pbar_c with pbar the mean of the
    p_s: the most probable class gets 1 - u, the others proportionally less.

    Args:
        stream_logits: at least one (N, C, h, w), all of one shape.
        image_label: (N, K) 0/1 with K = C - 1.

    Returns:
        (N, C, h, w) in [0, 1], absent classes 0.

    Raises:
        ValueError: if there is no stream or the shapes do not belong together.
    """
    shapes = [tuple(logits.shape) for logits in stream_logits]
    if not shapes or len(set(shapes)) > 1:
        raise ValueError(f'streams must exist and have one shape, got {shapes}')
    streams = [_allowed_log_softmax(logits, image_label) for logits in stream_logits]
    probabilities, log_probabilities = zip(*streams, strict=True)

    allowed = 1 + (image_label > 0).sum(dim=1)  # (N,)
    most = allowed.to(probabilities[0].dtype).log()[:, None, None, None]
    most = torch.where(most > 0, most, torch.ones_like(most))  # n = 1: H is 0 anyway
    entropy = sum(
        -(p * log_p).sum(dim=1, keepdim=True)
        for p, log_p in zip(probabilities, log_probabilities, strict=True)
    )
    uncertainty = entropy / len(streams) / most
    if len(streams) > 1:
        apart = _mean_divergence(probabilities, log_probabilities)
        uncertainty = 0.5 * uncertainty + 0.5 * (1 - (-apart).exp())

    mean = sum(probabilities) / len(streams)
    share = mean / mean.amax(dim=1, keepdim=True)
    return (1 - uncertainty).clamp(0, 1) * share


@torch.no_grad()
def structural_consistency(
    features: Tensor,
    label: Tensor,
    num_classes: int,
    *,
    radius: int = 2,
    power: float = 4,
    valid: Tensor | None = None,
) -> Tensor:
    """Share of each class among the labels of similar cells nearby.

    sum_j A_ij [y_j = c] / sum_j A_ij over the cells j != i within a Chebyshev radius,
    A_ij = relu(cos(f_i, f_j)) ** power. A neighbour votes if it lies inside the map,
    is valid and has a label; the cell's own label is not asked. Where hardly any
    affinity remains (sum below 1e-6: no neighbour, none with a label, none alike) the
    value is neutral, 0.5 for every class. Classes that the image does not show are
    not known here: ``blend_reliability`` removes them.

    Args:
        features: (N, D, h, w), of a frozen encoder.
        label: (N, h, w) in [0, C), anything else (255) does not vote.
        num_classes: C, background included.
        radius: in cells, at least 1.
        power: sharpness of the affinity, positive.
        valid: (N, 1, h, w) 0/1; padding does not vote. None counts every cell.

    Returns:
        (N, C, h, w) in [0, 1]; over the classes it adds up to 1 except where neutral.

    Raises:
        ValueError: if the shapes do not belong together or radius, power or
            num_classes is too small.
    """
    _check_structure(features, label, num_classes, radius, power, valid)
    unit = F.normalize(_full_precision(features), dim=1)
    classes = torch.arange(num_classes, device=label.device)
    ballot = label[:, None] == classes[:, None, None]  # (N, C, h, w)
    if valid is not None:
        ballot = ballot & (valid > 0)
    ballot = ballot.to(unit.dtype)

    votes = torch.zeros_like(ballot)
    for dy, dx in _half_window(radius, features.shape[-2:]):
        here, there = _overlap(unit, dy, dx)
        affinity = (here * there).sum(dim=1, keepdim=True).relu() ** power
        # One affinity serves both directions of the pair.
        votes_here, votes_there = _overlap(votes, dy, dx)
        ballot_here, ballot_there = _overlap(ballot, dy, dx)
        votes_here += affinity * ballot_there
        votes_there += affinity * ballot_here
    total = votes.sum(dim=1, keepdim=True)
    like = total >= _LEAST_AFFINITY
    share = votes / torch.where(like, total, torch.ones_like(total))
    return torch.where(like, share, torch.full_like(share, NEUTRAL))


def _allowed_log_softmax(logits: Tensor, image_label: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the allowed classes and its logarithm, both 0 for the others."""
    logits = restrict_to_image_classes(_full_precision(logits), image_label)
    log_probability = logits.log_softmax(dim=1)
    # 0 in place of -inf, so that 0 log 0 is 0 in the entropy and the divergence.
    return log_probability.exp(), restrict_to_image_classes(
        log_probability, image_label, fill=0.0
    )


def _mean_divergence(
    probabilities: Sequence[Tensor], log_probabilities: Sequence[Tensor]
) -> Tensor:
    """(N, 1, h, w): symmetric KL divergence, mean over the pairs of streams."""
    pairs = list(combinations(range(len(probabilities)), 2))
    divergences = (
        (
            (probabilities[a] - probabilities[b])
            * (log_probabilities[a] - log_probabilities[b])
        ).sum(dim=1, keepdim=True)
        for a, b in pairs
    )
    return 0.5 * reduce(torch.add, divergences) / len(pairs)


def _half_window(radius: int, size: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) within the radius that a map of this size has, one of each +- pair."""
    rows, columns = min(radius, size[0] - 1), min(radius, size[1] - 1)
    after = [(0, dx) for dx in range(1, columns + 1)]
    below = [
        (dy, dx) for dy in range(1, rows + 1) for dx in range(-columns, columns + 1)
    ]
    return after + below


def _overlap(maps: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Views of the cells that have a neighbour at (dy, dx), and of those neighbours."""
    h, w = maps.shape[-2:]
    left, right = max(-dx, 0), w - max(dx, 0)
    here = maps[..., : h - dy, left:right]
    return here, maps[..., dy:, left + dx : right + dx]


# ----------------------------------------------------------------------------- blend
@torch.no_grad()
def blend_reliability(
    temporal: Tensor | None,
    confidence: Tensor,
    structure: Tensor,
    image_label: Tensor,
    *,
    weights: Sequence[float] = (0.3, 0.35, 0.35),
    mode: str = 'weighted',
    valid: Tensor | None = None,
) -> Tensor:
    """Blend the three signals into the reliability of each class in each cell.

    'weighted': arithmetic mean; 'geometric': geometric mean, so that one signal of 0
    vetoes; 'rank': arithmetic mean of each signal's rank, (values below + half of
    those equal) / number, among the values of the valid cells and allowed classes of
    the batch. Ranks make signals of unlike spread comparable, and depend on what else
    is in the batch (of this process).

    Args:
        temporal: (N, C, h, w) in [0, 1] of ``temporal_agreement``; None where no
            history is kept, the other weights are then scaled up.
        confidence: the same, of ``stream_confidence``.
        structure: the same, of ``structural_consistency``.
        image_label: (N, K) 0/1 with K = C - 1.
        weights: of the three signals in this order, >= 0; only their ratio counts.
        mode: 'weighted', 'geometric' or 'rank'.
        valid: (N, 1, h, w) 0/1, cells whose values make up the ranks. All cells get a
            reliability, also the others.

    Returns:
        (N, C, h, w) in [0, 1], absent classes 0.

    Raises:
        ValueError: if the shapes do not belong together, the mode is unknown, or the
            weights are not three non-negative numbers with a positive one in use.
    """
    signals = _weighted_signals(temporal, confidence, structure, weights)
    if mode not in BLEND_MODES:
        raise ValueError(f'mode must be one of {BLEND_MODES}, got {mode!r}')
    _check_cells(valid, confidence)
    one = torch.ones_like(_full_precision(confidence))
    counted = restrict_to_image_classes(one, image_label, fill=0.0) > 0
    if valid is not None:
        counted = counted & (valid > 0)

    if mode == 'rank':
        signals = [(_ranks(signal, counted), weight) for signal, weight in signals]
    if mode == 'geometric':
        powers = (signal.clamp(min=0) ** weight for signal, weight in signals)
        blend = reduce(torch.mul, powers)
    else:
        blend = reduce(torch.add, (signal * weight for signal, weight in signals))
    return restrict_to_image_classes(blend.clamp(0, 1), image_label, fill=0.0)


def _weighted_signals(
    temporal: Tensor | None,
    confidence: Tensor,
    structure: Tensor,
    weights: Sequence[float],
) -> list[tuple[Tensor, float]]:
    """(signal, weight) of the signals in use, weights adding up to 1."""
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f'weights must be three numbers >= 0, got {weights}')
    named = zip(
        ('temporal', 'confidence', 'structure'),
        (temporal, confidence, structure),
        weights,
        strict=True,
    )
    used = []
    for name, signal, weight in named:
        if signal is None:
            continue
        if signal.shape != confidence.shape:
            raise ValueError(
                f'{name} must be {tuple(confidence.shape)} like confidence, got '
                f'{tuple(signal.shape)}'
            )
        if weight > 0:
            used.append((_full_precision(signal), weight))
    total = sum(weight for _, weight in used)
    if not total > 0:
        raise ValueError(f'no signal with a positive weight, got weights {weights}')
    return [(signal, weight / total) for signal, weight in used]


def _ranks(signal: Tensor, counted: Tensor) -> Tensor:
    """Position of every value in the distribution of the counted ones, in [0, 1]."""
    # Values that do not count go to infinity: no value lies above them, and no mask
    # has to be turned into indices, for which a GPU would have to wait.
    ordered = signal.masked_fill(~counted, float('inf')).flatten().sort().values
    values = signal.contiguous()
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    number = counted.sum()
    rank = (below + up_to).to(signal.dtype) / (2 * number).clamp(min=1)
    return torch.where(number > 0, rank, torch.full_like(rank, NEUTRAL))


# ------------------------------------------------------------------ from map to pixel
@torch.no_grad()
def sample_class_maps(maps: Tensor, label: Tensor) -> Tensor:
    """Value of each pixel's own class, bilinearly from maps on a coarser grid.

    The same as picking the label's channel from ``F.interpolate(maps, (H, W),
    mode='bilinear', align_corners=False)``, without making its (N, C, H, W).

    Args:
        maps: (N, C, h, w).
        label: (N, H, W); the value is 0 where it is not in [0, C) (255).

    Returns:
        (N, H, W) within the range of the maps (and 0), float32 or float64.

    Raises:
        ValueError: if the shapes do not belong together or the maps are empty.
    """
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ValueError(f'maps must be (N, C, h, w), got {tuple(maps.shape)}')
    if label.ndim != 3 or len(label) != len(maps):
        raise ValueError(f'label must be ({len(maps)}, H, W), got {tuple(label.shape)}')
    _, num_classes, h, w = maps.shape
    values = _full_precision(maps)
    inside, own = _own_class(label, num_classes)
    top, bottom, down = _bilinear_steps(label.shape[1], h, like=values)
    left, right, across = _bilinear_steps(label.shape[2], w, like=values)
    flat, plane = values.flatten(1), own * (h * w)

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        index = plane + (rows * w)[:, None] + columns
        return flat.gather(1, index.flatten(1)).view_as(plane)

    # lerp stays between its ends, a sum of four products may exceed 1 by rounding.
    upper = torch.lerp(read(top, left), read(top, right), across)
    lower = torch.lerp(read(bottom, left), read(bottom, right), across)
    return torch.lerp(upper, lower, down[:, None]).masked_fill(~inside, 0.0)


def _bilinear_steps(
    pixels: int, cells: int, *, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cell before and after each pixel's centre, and how far it is between the two."""
    centre = torch.arange(pixels, dtype=like.dtype, device=like.device) + 0.5
    position = (centre * (cells / pixels) - 0.5).clamp(0, cells - 1)
    before = position.long()
    return before, (before + 1).clamp(max=cells - 1), position - before


# ----------------------------------------------------------------------------- gates
@torch.no_grad()
def update_class_means(
    means: Tensor,
    values: Tensor,
    label: Tensor,
    *,
    momentum: float,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Move each class's running mean towards the mean over the pixels it labels.

    m_c <- momentum m_c + (1 - momentum) mean of ``values`` where label = c
    (FreeMatch, there of the largest probability). A class without pixels keeps its
    mean.

    Args:
        means: (C,) so far.
        values: (N, H, W).
        label: (N, H, W) in [0, C) or ``ignore_index``.
        momentum: in [0, 1].
        ignore_index: label that does not count; others outside [0, C) do not either.

    Returns:
        (C,) in the dtype of ``means``.

    Raises:
        ValueError: if the shapes differ or the momentum is outside its range.
    """
    sums = update_class_means_sums(
        values, label, num_classes=len(means), ignore_index=ignore_index
    )
    return update_class_means_from_sums(means, sums, momentum=momentum)


@torch.no_grad()
def update_class_means_sums(
    values: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Local sums (2 * C,) float64: values of each class, then its number of pixels."""
    _check_pixels({'values': values, 'label': label})
    inside, own = _own_class(label, num_classes)
    inside = inside & (label != ignore_index)
    bin_index = own.masked_fill(~inside, num_classes).flatten(1)  # C: not counted
    # float32 would lose the small values of a batch with a million pixels.
    values = values.double().flatten(1)
    empty = values.new_zeros(len(label), num_classes + 1)
    total = empty.scatter_add(1, bin_index, values)
    count = empty.scatter_add(1, bin_index, torch.ones_like(values))
    return torch.cat([total.sum(0)[:num_classes], count.sum(0)[:num_classes]])


@torch.no_grad()
def update_class_means_from_sums(
    means: Tensor, sums: Tensor, *, momentum: float
) -> Tensor:
    """New means (C,) from the sums (2 * C,) of all processes."""
    if means.ndim != 1 or sums.numel() != 2 * means.numel():
        raise ValueError(
            f'sums must have twice the size of means (C,), got {tuple(sums.shape)} and '
            f'{tuple(means.shape)}'
        )
    if not 0 <= momentum <= 1:
        raise ValueError(f'momentum must lie in [0, 1], got {momentum}')
    total, count = sums.view(2, -1)
    batch_mean = total / count.clamp(min=1)
    moved = momentum * means + (1 - momentum) * batch_mean
    return torch.where(count > 0, moved, means.to(moved.dtype)).to(means.dtype)


@torch.no_grad()
def class_gates(
    means: Tensor, *, base: float, low: float = 0.40, high: float = 0.95
) -> Tensor:
    """Reliability that each class's label must reach: lower for weaker classes.

    clip(base (0.5 + 0.5 m_c / max m), low, high), after FreeMatch. Without any
    positive mean all classes get the gate of the strongest.

    Args:
        means: (C,) >= 0, of ``update_class_means``.
        base: gate of the strongest class before clipping.
        low: smallest gate.
        high: largest gate.

    Returns:
        (C,) in [low, high].

    Raises:
        ValueError: if means is not one-dimensional, base is NaN, or not
            0 <= low <= high <= 1.
    """
    if means.ndim != 1 or not len(means):
        raise ValueError(f'means must be (C,), got {tuple(means.shape)}')
    if math.isnan(base) or not 0 <= low <= high <= 1:
        raise ValueError(
            f'base must be a number and 0 <= low <= high <= 1, got base={base}, '
            f'low={low}, high={high}'
        )
    means = _full_precision(means)
    largest = means.max()
    ratio = means / torch.where(largest > 0, largest, torch.ones_like(largest))
    ratio = torch.where(largest > 0, ratio, torch.ones_like(ratio))
    return (base * (0.5 + 0.5 * ratio)).clamp(low, high)


@torch.no_grad()
def gate_labels(
    base_label: Tensor,
    network_label: Tensor,
    base_reliability: Tensor,
    network_reliability: Tensor,
    gates: Tensor,
    *,
    repair_below: float | None = None,
    ignore_below: float | None = None,
    drop_agreed_below: float | None = None,
) -> Tensor:
    """Repair, ignore or keep each pixel's label by the reliability of the candidates.

    Where both labels agree the label stays, or becomes 255 if its reliability is
    below ``drop_agreed_below``. Where they differ (also where the base ignores) the
    network's label is taken if its reliability reaches the gate of its class and that
    of the base label is below ``repair_below``; failing that, the base label becomes
    255 if its reliability is below ``ignore_below``, and stays otherwise. Where the
    network has no label (255, padding) the base stays.

    Args:
        base_label: (N, H, W) in [0, C) or 255.
        network_label: the same, restricted to the image's classes by the caller.
        base_reliability: (N, H, W) of the base label.
        network_reliability: (N, H, W) of the network's label.
        gates: (C,) of ``class_gates``.
        repair_below: limit for base labels to be repaired; None sets no limit. Where
            the base ignores, any label may be filled in.
        ignore_below: limit for disputed base labels; None keeps them.
        drop_agreed_below: limit for agreed labels; None keeps them.

    Returns:
        (N, H, W) int64; each pixel is the base label, the network's label or 255.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_pixels(
        {
            'base_label': base_label,
            'network_label': network_label,
            'base_reliability': base_reliability,
            'network_reliability': network_reliability,
        }
    )
    base, network = base_label.long(), network_label.long()
    decided, gate = _gate_of(network, gates)
    agreed = base == network
    trust = _full_precision(base_reliability)
    repaired = ~agreed & decided & (_full_precision(network_reliability) >= gate)
    if repair_below is not None:
        repaired &= (trust < repair_below) | (base == IGNORE_INDEX)
    label = torch.where(repaired, network, base)
    if ignore_below is not None:
        dropped = ~agreed & decided & ~repaired & (trust < ignore_below)
        label = label.masked_fill(dropped, IGNORE_INDEX)
    if drop_agreed_below is not None:
        label = label.masked_fill(agreed & (trust < drop_agreed_below), IGNORE_INDEX)
    return label


@torch.no_grad()
def reliability_weight(
    reliability: Tensor, label: Tensor, gates: Tensor, *, power: float = 2
) -> Tensor:
    """Factor of each pixel in the losses: 1 from its class's gate on, less below.

    clip(r / g_c, 0, 1) ** power with c the pixel's label; 0 at ignored pixels. A gate
    of 0 lets everything pass.

    Args:
        reliability: (N, H, W) of the label.
        label: (N, H, W) in [0, C); anything else (255) is ignored.
        gates: (C,) of ``class_gates``.
        power: steepness, positive.

    Returns:
        (N, H, W) in [0, 1].

    Raises:
        ValueError: if the shapes differ or the power is not positive.
    """
    _check_pixels({'reliability': reliability, 'label': label})
    if not 0 < power < math.inf:
        raise ValueError(f'power must be positive and finite, got {power}')
    decided, gate = _gate_of(label, gates)
    reliability = _full_precision(reliability)
    share = torch.where(
        reliability >= gate, torch.ones_like(gate), (reliability / gate).clamp(0, 1)
    )
    return (share**power).masked_fill(~decided, 0.0)


def _gate_of(label: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each pixel has a label, and the gate of its class."""
    if gates.ndim != 1 or not len(gates):
        raise ValueError(f'gates must be (C,), got {tuple(gates.shape)}')
    decided, own = _own_class(label, len(gates))
    return decided, _full_precision(gates)[own]


# ------------------------------------------------------------------------ evaluation
def reliability_bins(
    reliability: Tensor,
    pseudo_label: Tensor,
    target: Tensor,
    *,
    num_bins: int = 10,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Count pixels and correct pseudo-labels at each level of reliability.

    Bin b holds the reliabilities in [b / num_bins, (b + 1) / num_bins), the last one
    also 1. Counts add up over images and processes; the second column divided by the
    first is a reliability diagram. For evaluation: it waits for the device.

    Args:
        reliability: (N, H, W) in [0, 1] at the counted pixels.
        pseudo_label: (N, H, W).
        target: (N, H, W).
        num_bins: B >= 1.
        ignore_index: pixels with this value in the pseudo-label or the target do not
            count.

    Returns:
        (B, 2) int64: pixels, and those with pseudo_label = target.

    Raises:
        ValueError: if the shapes differ, num_bins is below 1, or a counted
            reliability is not in [0, 1].
    """
    _check_pixels(
        {'reliability': reliability, 'pseudo_label': pseudo_label, 'target': target}
    )
    if num_bins < 1:
        raise ValueError(f'num_bins must be at least 1, got {num_bins}')
    counted = (pseudo_label != ignore_index) & (target != ignore_index)
    level = _full_precision(reliability.detach())[counted]
    outside = level[~((level >= 0) & (level <= 1))]
    if outside.numel():
        raise ValueError(f'reliability must lie in [0, 1], got {outside[0].item()}')
    level = (level * num_bins).long().clamp(max=num_bins - 1)
    hit = (pseudo_label == target)[counted]
    pixels = torch.bincount(level, minlength=num_bins)
    return torch.stack([pixels, torch.bincount(level[hit], minlength=num_bins)], dim=1)


# ---------------------------------------------------------------------- shared parts
def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _own_class(label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Whether the label is a class, and an index that is safe where it is none."""
    label = label.long()
    inside = (label >= 0) & (label < num_classes)
    return inside, label.masked_fill(~inside, 0)


def _check_pixels(named: dict[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 3:
        raise ValueError(f'all must be (N, H, W) of one size, got {shapes}')


def _check_cells(valid: Tensor | None, maps: Tensor) -> None:
    expected = (maps.shape[0], 1, *maps.shape[2:])
    if valid is not None and tuple(valid.shape) != expected:
        raise ValueError(f'valid must be {expected}, got {tuple(valid.shape)}')


def _check_structure(
    features: Tensor,
    label: Tensor,
    num_classes: int,
    radius: int,
    power: float,
    valid: Tensor | None,
) -> None:
    if features.ndim != 4:
        raise ValueError(f'features must be (N, D, h, w), got {tuple(features.shape)}')
    expected = (features.shape[0], *features.shape[2:])
    if tuple(label.shape) != expected:
        raise ValueError(
            f'label must be {expected} for features of shape '
            f'{tuple(features.shape)}, got {tuple(label.shape)}'
        )
    _check_cells(valid, features)
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1, got {num_classes}')
    if radius < 1:
        raise ValueError(f'radius must be at least 1, got {radius}')
    if not 0 < power < math.inf:
        raise ValueError(f'power must be positive and finite, got {power}')
