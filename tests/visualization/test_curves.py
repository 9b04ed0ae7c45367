import itertools
import json

import pytest

from mmwsss.visualization.curves import (
    MAX_POINTS,
    read_scalars,
    round_range,
    smoothed,
    svg_path,
    thinned,
)


def test_read_scalars_joins_the_logs_of_a_resumed_run(tmp_path):
    logs = {
        '20260101_000000': [{'loss': 3.0, 'step': 1}, {'loss': 9.0, 'step': 2}],
        '20260101_010000': [{'loss': 2.0, 'step': 2}, {'mIoU': 5, 'step': 3}],
    }
    for name, lines in logs.items():
        folder = tmp_path / name / 'vis_data'
        folder.mkdir(parents=True)
        text = '\n'.join(map(json.dumps, lines)) + '\n{"loss": 4, "st'
        (folder / 'scalars.json').write_text(text)
    assert read_scalars(tmp_path) == {'loss': [(1, 3.0), (2, 2.0)], 'mIoU': [(3, 5.0)]}


def test_read_scalars_drops_nan(tmp_path):
    folder = tmp_path / 'a' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"loss": NaN, "step": 1}\n7\n')
    assert read_scalars(tmp_path) == {}


def test_smoothed_keeps_a_constant_and_follows_a_step():
    assert smoothed([4.0] * 9, span=5) == pytest.approx([4.0] * 9)
    step = smoothed([0.0] * 50 + [1.0] * 50, span=5)
    assert step[49] == 0
    assert step[-1] == pytest.approx(1, abs=1e-6)


def test_thinned_keeps_both_ends():
    points = [(i, i) for i in range(10_000)]
    few = thinned(points)
    assert len(few) == MAX_POINTS
    assert (few[0], few[-1]) == (points[0], points[-1])


def test_svg_path_points_upwards():
    path = svg_path([(0, 0), (5, 10)], x_range=(0, 5), y_range=(0, 10))
    assert path == 'M0.00 100.00 L100.00 0.00'
    assert svg_path([(1, 1)], x_range=(1, 1), y_range=(1, 1)) == 'M0.00 100.00'


@pytest.mark.parametrize(
    ('low', 'high'), [(0, 1), (0.0312, 0.0418), (12, 97), (-3, 4), (5, 5), (0, 0)]
)
def test_round_range_encloses_with_few_even_ticks(low, high):
    ticks = round_range(low, high)
    assert ticks[0] <= low
    assert high <= ticks[-1]
    assert 2 <= len(ticks) <= 6
    gaps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(gaps) == 1
