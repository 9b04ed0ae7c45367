"""Thresholds that a map gives itself."""

import torch
from torch import Tensor


def otsu_threshold(maps: Tensor, *, bins: int = 256) -> Tensor:
    """The cut of each map into two groups with the most variance between them.

    Values above the threshold are the foreground. Among equally good cuts the lowest
    is taken. A map of one value has nothing to cut: its threshold is that value, so
    that all of it is background. Otsu, "A threshold selection method from gray-level
    histograms", IEEE Trans. SMC 1979.

    Args:
        maps: (..., H, W), finite.
        bins: equal steps between the least and the largest value of each map, which
            the threshold is one of.

    Returns:
        (...) in the dtype of ``maps``.

    Raises:
        ValueError: for maps without pixels or with fewer than two bins.
    """
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f'maps must be (..., H, W), got {tuple(maps.shape)}')
    if bins < 2:
        raise ValueError(f'bins must be at least 2, got {bins}')
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]).double()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - low) / bins
    # A value on an edge belongs below it, as the foreground is above the threshold.
    index = ((flat - low) / step.clamp(min=1e-300)).ceil().long().sub(1)
    index = index.clamp(0, bins - 1)
    count = flat.new_zeros(len(flat), bins).scatter_add_(1, index, flat * 0 + 1)
    value = flat.new_zeros(len(flat), bins).scatter_add_(1, index, flat - low)
    below, sum_below = count.cumsum(1)[:, :-1], value.cumsum(1)[:, :-1]
    above, total = flat.shape[1] - below, value.sum(1, keepdim=True)
    # Between-group variance up to a factor; an empty group has none.
    gap = total * below - flat.shape[1] * sum_below
    spread = gap.square() / (below * above).clamp(min=1)
    cut = torch.where((below > 0) & (above > 0), spread, 0).argmax(1, keepdim=True)
    return (low + (cut + 1) * step).view(maps.shape[:-2]).to(maps.dtype)
