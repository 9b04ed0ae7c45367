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


def color_words(image: Tensor, *, levels: int = 3) -> Tensor:
    """Which of ``levels ** 3`` colours each pixel has, by the photo's own quantiles.

    Each channel is cut so that its levels are equally frequent in the image, so the
    words do not depend on its exposure and contrast.

    Args:
        image: (N, 3, H, W), finite.
        levels: of each channel, 2 or more.

    Returns:
        (N, H, W) int64 in [0, levels ** 3).

    Raises:
        ValueError: if the image has no pixels or another shape, or for one level.
    """
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f'image must be (N, 3, H, W), got {tuple(image.shape)}')
    if levels < 2:
        raise ValueError(f'levels must be at least 2, got {levels}')
    flat = image.flatten(2).float()
    ordered = flat.sort(dim=2).values
    # A cut is a value that occurs, so that equal pixels never part.
    places = [flat.shape[2] * level // levels for level in range(1, levels)]
    cuts = ordered[:, :, places]
    level = (flat[..., None] >= cuts[:, :, None]).sum(3)
    weights = torch.tensor([levels**2, levels, 1], device=image.device)
    words = (level * weights[:, None]).sum(1)
    return words.view(image.shape[0], *image.shape[2:])


def threshold_information(
    words: Tensor,
    scores: Tensor,
    *,
    thresholds: Tensor,
    num_words: int,
    places: Tensor | None = None,
    num_places: int = 1,
) -> Tensor:
    """How much a cut of the scores says about the words, at each threshold.

    The mutual information of two facts about a pixel drawn at random: whether its
    score is above the threshold, and its word. A mask that follows an object's
    appearance says more than one that is too large or too small, so the best
    threshold can be told without a mask. Words in place of grey values, and an area
    that a score proposes in place of a contour, it is the criterion of Kim et al., "A
    nonparametric statistical method for image segmentation using information theory
    and curve evolution", IEEE TIP 2005.

    Sky and ground have their own colours in most photos, so a mask of all that lies
    below the horizon says much. With ``places`` only that counts which the words say
    beside the pixel's place: the mutual information given the place.

    Args:
        words: (N, H, W) int64 in [0, num_words).
        scores: (N, H, W), for example the best CAM of each pixel.
        thresholds: (T,) increasing.
        num_words: number of words.
        places: (N, H, W) int64 in [0, num_places), for example bands of rows; None
            for the same place everywhere.
        num_places: number of places.

    Returns:
        (N, T) float64 in nats, at least 0; 0 where all pixels are on one side.

    Raises:
        ValueError: if shapes do not belong together, thresholds do not increase or a
            word is out of range.
    """
    if words.ndim != 3 or words.shape != scores.shape or not words.numel():
        raise ValueError(
            'words and scores must both be (N, H, W), got '
            f'{tuple(words.shape)} and {tuple(scores.shape)}'
        )
    if thresholds.ndim != 1 or not bool((thresholds.diff() > 0).all()):
        raise ValueError(f'thresholds must increase, got {thresholds.tolist()}')
    _check_range('words', words, num_words)
    # Step s holds the scores above s thresholds.
    step = torch.bucketize(scores.contiguous(), thresholds.to(scores), right=False)
    steps = len(thresholds) + 1
    if places is None:
        return _information(words, num_words, step, steps)
    if places.shape != words.shape:
        raise ValueError(
            f'places must be {tuple(words.shape)} as the words, got '
            f'{tuple(places.shape)}'
        )
    _check_range('places', places, num_places)
    both = words * num_places + places
    # The chain rule: what both say, less what the place says by itself.
    joint = _information(both, num_words * num_places, step, steps)
    return (joint - _information(places, num_places, step, steps)).clamp(min=0)


def _check_range(name: str, values: Tensor, count: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise ValueError(f'{name} must lie in [0, {count}), got {low} to {high}')


def _information(words: Tensor, num_words: int, step: Tensor, steps: int) -> Tensor:
    """Mutual information (N, steps - 1) of words and being above so many steps."""
    images = len(words)
    index = (step * num_words + words).flatten(1)
    counts = torch.zeros(
        images, steps * num_words, dtype=torch.float64, device=words.device
    )
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    counts = counts.view(images, steps, num_words)
    above = counts.flip(1).cumsum(1).flip(1)[:, 1:]
    total = counts.sum(1, keepdim=True)
    pixels = words[0].numel()
    shares = torch.stack([above, total - above]) / pixels  # (2, N, T, num_words)
    sides = shares.sum(3, keepdim=True)
    expected = sides * (total / pixels)
    ratio = torch.where(shares > 0, shares / expected.clamp(min=1e-300), 1.0)
    found = (shares * ratio.log()).sum((0, 3)).clamp(min=0)
    # Rounding would leave a trace where there is nothing to tell.
    return found.masked_fill((sides == 0).any(0)[..., 0], 0)
