"""Training curves from mmengine's scalar logs, and paths for inline SVG."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

MAX_POINTS = 240


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Read every scalar logged in a work directory, as (step, value) lists.

    A resumed run has one log per start; where two of them tell the same step, the
    later start counts. Broken lines (a killed process) are left out.
    """
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(Path(run_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if not isinstance(entry, dict) or 'step' not in entry:
                continue
            step = entry.pop('step')
            for name, value in entry.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    curves.setdefault(name, {})[int(step)] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def smoothed(values: Sequence[float], *, span: int) -> list[float]:
    """Exponential mean over about ``span`` values, unbiased at the beginning."""
    keep = 1 - 2 / (span + 1)
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, first and last kept."""
    if len(points) <= MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def svg_path(
    points: Sequence[tuple[float, float]],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    """Path through points on a 100 x 100 canvas, y upwards."""
    width = x_range[1] - x_range[0] or 1.0
    height = y_range[1] - y_range[0] or 1.0
    places = []
    for x, y in points:
        right = 100 * (x - x_range[0]) / width
        down = 100 - 100 * (y - y_range[0]) / height
        places.append(f'{right:.2f} {down:.2f}')
    return 'M' + ' L'.join(places) if places else ''


def round_range(low: float, high: float, *, ticks: int = 3) -> list[float]:
    """Tick values at round numbers that enclose [low, high]."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    raw = (high - low) / ticks
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
