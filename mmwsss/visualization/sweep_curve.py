"""MIoU, precision and recall against the threshold, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmwsss.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart in grey and by the colour-blind, too.
_LINES = {
    'miou': ('mIoU', '#0072b2', '-'),
    'precision': ('precision', '#d55e00', '--'),
    'recall': ('recall', '#009e73', '-.'),
}
# Fewer thresholds than these are shown as points.
_FEW = 30


def sweep_figure(
    sweep: Sequence[Mapping[str, float | None]],
    *,
    thresholds: Mapping[str, float],
    levels: Mapping[str, float],
    title: str,
) -> 'Figure':
    """Draw a sweep without a display and without matplotlib's global state.

    Args:
        sweep: ``threshold`` and, in percent or None, ``miou``, ``precision`` and
            ``recall`` of each threshold.
        thresholds: Name -> threshold that gets an upright line.
        levels: Name -> mIoU in percent that gets a level line.
        title: Above the picture.
    """
    # Slow to import, and a score needs no picture.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = [row['threshold'] for row in sweep]
    marker = '.' if len(sweep) < _FEW else ''
    for key, (name, color, style) in _LINES.items():
        values = [float('nan') if row[key] is None else row[key] for row in sweep]
        axes.plot(places, values, style, color=color, marker=marker, label=name)
    for place in sorted(set(thresholds.values())):
        names = [name for name, value in thresholds.items() if value == place]
        axes.axvline(place, color='0.6', linewidth=1)
        axes.annotate(
            f' {", ".join(names)} {place:g}',
            (place, 0.01),
            xycoords=('data', 'axes fraction'),
            rotation=90,
            fontsize=8,
        )
    for name, level in levels.items():
        axes.axhline(level, color='#0072b2', linewidth=1, linestyle=':', label=name)
    axes.set(xlim=(0, 1), ylim=(0, 100), xlabel='threshold', ylabel='%')
    axes.set_title(title, fontsize=9, wrap=True)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def write_sweep_curve(path: Path, figure: 'Figure') -> None:
    """Write the picture as a PNG.

    Raises:
        InputError: The file cannot be written.
    """
    with whole_file(path) as stream:
        figure.savefig(stream, format='png', dpi=120)
