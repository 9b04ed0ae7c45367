"""Scalar functions of training progress; plain Python floats, no state.

``progress`` is iter / max_iters in [0, 1]. Fractions let one config serve 30,000
iterations on VOC and 80,000 on COCO.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence


def piecewise_linear(progress: float, points: Sequence[Sequence[float]]) -> float:
    """Interpolate linearly between points; constant outside them.

    Args:
        progress: position, usually in [0, 1].
        points: (progress, value) pairs with non-decreasing progress. Two points at
            one progress make a jump; the later value holds from there on.

    Returns:
        The value at ``progress``.

    Raises:
        ValueError: if ``points`` is empty or not sorted, or a number is NaN.

    Example:
        >>> piecewise_linear(0.25, [(0.0, 0.0), (0.5, 3.0)])
        1.5
    """
    _check_number('progress', progress)
    _check_points(points)
    position = bisect_right([p for p, _ in points], progress)
    if position == 0:
        return float(points[0][1])
    if position == len(points):
        return float(points[-1][1])
    (left, start), (right, end) = points[position - 1], points[position]
    return start + (end - start) * (progress - left) / (right - left)


def piecewise_constant(progress: float, points: Sequence[Sequence[float]]) -> float:
    """Take the value of the last point that is reached; the first one's before it.

    Args:
        progress: position, usually in [0, 1].
        points: (progress, value) pairs with non-decreasing progress. Of two points at
            one progress the later holds.

    Returns:
        The value at ``progress``.

    Raises:
        ValueError: if ``points`` is empty or not sorted, or a number is NaN.

    Example:
        >>> piecewise_constant(0.3, [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
        0.75
    """
    _check_number('progress', progress)
    _check_points(points)
    position = bisect_right([p for p, _ in points], progress)
    return float(points[max(position - 1, 0)][1])


def cosine(
    progress: float,
    *,
    start: float,
    end: float,
    begin: float = 0.0,
    finish: float = 1.0,
) -> float:
    """Go from ``start`` to ``end`` along half a cosine between begin and finish.

    Args:
        progress: position, usually in [0, 1].
        start: value up to ``begin``.
        end: value from ``finish`` on.
        begin: progress at which the change starts.
        finish: progress at which it is complete, after ``begin``.

    Returns:
        The value at ``progress``.

    Raises:
        ValueError: unless begin < finish, or if progress is NaN.
    """
    _check_number('progress', progress)
    if not begin < finish:
        raise ValueError(f'begin must come before finish, got {begin} and {finish}')
    share = min(max((progress - begin) / (finish - begin), 0.0), 1.0)
    # Blending by weights, so that both ends are hit exactly.
    done = 0.5 * (1.0 - math.cos(math.pi * share))
    return (1.0 - done) * start + done * end


def warmup_poly(
    iteration: int,
    *,
    max_iters: int,
    warmup_iters: int = 50,
    warmup_ratio: float = 1e-6,
    power: float = 1.0,
) -> float:
    """Learning rate factor of WeCLIP(+): linear warm-up, then polynomial decay.

    During warm-up: 1 - (1 - t / warmup_iters) (1 - warmup_ratio). After it:
    (1 - t / max_iters)^power, counted from iteration 0, so that the factor at the end
    of warm-up drops to a little less than 1, as published.

    Args:
        iteration: t >= 0; from max_iters on the factor is 0.
        max_iters: length of the training, at least 1.
        warmup_iters: length of the warm-up, 0 for none.
        warmup_ratio: factor at iteration 0.
        power: of the decay.

    Returns:
        Factor in [0, 1].

    Raises:
        ValueError: if ``iteration`` is negative or ``max_iters`` below 1.
    """
    if iteration < 0:
        raise ValueError(f'iteration must not be negative, got {iteration}')
    if max_iters < 1:
        raise ValueError(f'max_iters must be at least 1, got {max_iters}')
    if iteration < warmup_iters:
        return 1.0 - (1.0 - iteration / warmup_iters) * (1.0 - warmup_ratio)
    return max(1.0 - iteration / max_iters, 0.0) ** power


def _check_points(points: Sequence[Sequence[float]]) -> None:
    if not points:
        raise ValueError(f'points must hold at least one pair, got {points!r}')
    for pair in points:
        if len(pair) != 2:
            raise ValueError(f'each point is a (progress, value) pair, got {pair!r}')
        _check_number('a point', pair[0])
        _check_number('a point', pair[1])
    places = [p for p, _ in points]
    if places != sorted(places):
        raise ValueError(f'points must be sorted by progress, got {points!r}')


def _check_number(name: str, value: float) -> None:
    if math.isnan(value):
        raise ValueError(f'{name} must be a number, got {value}')
