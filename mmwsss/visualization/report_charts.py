"""Turns what is known of a run into what the report's templates draw."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime

from mmwsss.apis.stages import format_seconds
from mmwsss.visualization.curves import round_range, smoothed, svg_path, thinned
from mmwsss.visualization.report_runs import (
    NUM_COLORS,
    SPLIT_TITLES,
    Group,
    Run,
    tool_of,
)

MAX_CURVES = 18
# More are folded away.
CURVES_IN_SIGHT = 6
# A larger table of mix-ups cannot be read; the list of the worst ones can.
MAX_MATRIX_CLASSES = 32
NUM_MIX_UPS = 8
NUM_PHOTO_BINS = 10
# The way of a run: what is compared at a glance, and the class that colours it.
STEPS = (
    ('train/raw_cams', 'Raw CAMs', 'What the frozen encoders see', 'raw'),
    ('train/refined', 'Refined labels', 'What refinement makes of it', 'refined'),
    ('val/segmentor', 'Segmentor', 'What the network learned from it', 'segmentor'),
)
# On unseen photos all three are on the same ground.
BAR_KEYS = (
    ('val/raw_cams', 'raw CAMs', 'raw'),
    ('val/refined', 'refined labels', 'refined'),
    ('val/segmentor', 'segmentor', 'segmentor'),
)
_CONFUSION_TITLES = {
    'segmentor': 'Segmentor',
    'labels': 'Pseudo labels',
    'refined': 'Refined labels',
}


def steps(run: Run) -> list[dict]:
    """The three large numbers of a one-stage run."""
    numbers, found = run.by_key, []
    for key, title, note, color in STEPS:
        if key in numbers and numbers[key]['miou'] is not None:
            number = numbers[key]
            photos = SPLIT_TITLES[number['split']].lower()
            tags = number['policy'].split(';')[0]
            found.append(
                {
                    'title': title,
                    'note': note,
                    'color': color,
                    'miou': number['miou'],
                    'where': f'{number["images"]:,} {photos}, {tags}',
                }
            )
    return found


def number_cards(run: Run) -> list[dict]:
    """The numbers of metrics.json by set of photos."""
    cards = []
    for split, title in SPLIT_TITLES.items():
        rows = [n for n in run.numbers if n['split'] == split]
        if rows:
            without = run.metrics['without_mask'].get(split, 0)
            scored = f'{rows[0]["images"]:,} photos scored'
            note = f'{scored}, {without:,} without a mask' if without else scored
            cards.append({'title': title, 'note': note, 'rows': rows})
    return cards


def step_bars(run: Run) -> dict:
    """Per class the three steps of a one-stage run, on one set of photos."""
    numbers, split = run.by_key, 'val'
    keys = [entry for entry in BAR_KEYS if entry[0] in numbers]
    if not keys:
        split = 'train'
        keys = [(key.replace('val/', 'train/'), t, c) for key, t, c in BAR_KEYS]
        keys = [entry for entry in keys if entry[0] in numbers]
    if not keys:
        return {}
    rows, left_out = [], []
    for i, name in enumerate(run.metrics['classes']):
        values = [numbers[key]['per_class'][i]['iou'] for key, _, _ in keys]
        if all(value is None for value in values):
            left_out.append(name)
            continue
        bars = [
            {'value': v, 'color': c} for v, (_, _, c) in zip(values, keys, strict=True)
        ]
        rows.append({'name': name, 'bars': bars})
    rows.sort(key=lambda row: row['bars'][-1]['value'] or 0.0)
    return {
        'rows': rows,
        'legend': [{'title': title, 'color': color} for _, title, color in keys],
        'left_out': left_out,
        'split': SPLIT_TITLES[split].lower(),
    }


def confusion_panels(run: Run) -> list[dict]:
    """Per set of photos and step: a matrix in percent of a true class's pixels."""
    classes, panels = run.metrics.get('classes', []), []
    for split in ('val', 'train'):
        matrices = run.metrics.get('confusion', {}).get(split, {})
        for step, title in _CONFUSION_TITLES.items():
            if step in matrices and any(map(sum, matrices[step])):
                shares = [_shares(row) for row in matrices[step]]
                panels.append(
                    {
                        'key': f'{split}/{step}',
                        'title': f'{title}, {SPLIT_TITLES[split].lower()}',
                        'heads': classes,
                        'rows': _matrix_rows(classes, shares),
                        'mix_ups': _mix_ups(classes, shares),
                    }
                )
    return panels


def _shares(row: Sequence[int]) -> list[float] | None:
    total = sum(row)
    return [100 * count / total for count in row] if total else None


def _matrix_rows(
    classes: Sequence[str], shares: Sequence[list[float] | None]
) -> list[dict]:
    if len(classes) > MAX_MATRIX_CLASSES:
        return []
    return [
        {'name': classes[i], 'index': i, 'cells': row}
        for i, row in enumerate(shares)
        if row
    ]


def _mix_ups(
    classes: Sequence[str], shares: Sequence[list[float] | None]
) -> list[dict]:
    found = [
        {'truth': classes[i], 'taken': classes[j], 'share': share}
        for i, row in enumerate(shares)
        for j, share in enumerate(row or ())
        if i != j and share >= 0.05
    ]
    return sorted(found, key=lambda entry: -entry['share'])[:NUM_MIX_UPS]


def photo_histograms(run: Run) -> list[dict]:
    """How many photos the segmentor gets how well."""
    charts = []
    for split, title in SPLIT_TITLES.items():
        scores = list(run.metrics.get('photo_scores', {}).get(split, {}).values())
        if scores:
            width = 100 / NUM_PHOTO_BINS
            counts = [0] * NUM_PHOTO_BINS
            for score in scores:
                counts[min(int(score // width), NUM_PHOTO_BINS - 1)] += 1
            columns = [
                {'low': f'{i * width:g}', 'count': n, 'height': 100 * n / max(counts)}
                for i, n in enumerate(counts)
            ]
            charts.append(
                {
                    'title': title,
                    'columns': columns,
                    'photos': len(scores),
                    'median': statistics.median(scores),
                }
            )
    return charts


def reliability_charts(run: Run) -> list[dict]:
    """Per set of photos: how many pixels a bin holds and how many are right."""
    charts = []
    for split, title in SPLIT_TITLES.items():
        table = run.metrics.get('reliability', {}).get(split)
        if not table or not table['pixels']:
            continue
        most = max(entry['pixels'] for entry in table['bins'])
        columns = [
            {
                'low': f'{entry["low"]:g}',
                'high': f'{entry["high"]:g}',
                'correct': entry['correct'],
                'share': 100 * entry['pixels'] / table['pixels'],
                # Of the largest bin, so that the small ones can be seen.
                'height': 100 * entry['pixels'] / most,
            }
            for entry in table['bins']
        ]
        charts.append(
            {
                'title': title,
                'columns': columns,
                'correct': table['correct'],
                'separation': table['separation'],
            }
        )
    return charts


def timeline(run: Run) -> dict:
    """The stages one after the other; pauses between them are left out."""
    if not run.stages:
        return {}
    whole = sum(entry['seconds'] for entry in run.stages.values()) or 1
    numbers, rows, before = run.by_key, [], 0.0
    for name, entry in run.stages.items():
        seconds, state = entry['seconds'], entry['state']
        score = numbers.get(f'stage/{name}')
        if score is None and tool_of(entry) == 'evaluate.py':
            score = numbers.get('val/segmentor')
        rows.append(
            {
                'name': name,
                'tool': tool_of(entry),
                'left': 100 * before / whole,
                'width': 100 * seconds / whole,
                'time': format_seconds(seconds) if seconds else '',
                'memory': entry.get('peak_memory_mib'),
                'finished': _moment(entry.get('finished')),
                'done': state == 'done',
                'state': 'running when last noted' if state == 'running' else state,
                'miou': score['miou'] if score else None,
            }
        )
        before += seconds
    moments = [row['finished'] for row in rows if row['finished']]
    return {
        'rows': rows,
        'done': sum(row['done'] for row in rows),
        'time': format_seconds(before),
        'last': max(moments, default=None),
    }


def _moment(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return datetime.strptime(text, '%Y-%m-%dT%H:%M:%S%z').strftime('%Y-%m-%d %H:%M')
    except ValueError:
        return text


def sweep_chart(run: Run) -> dict:
    """All sweeps of one run in one chart, with the thresholds that were chosen."""
    lines, legend = [], []
    for title, sweep in run.sweeps.items():
        points = sweep_points(sweep)
        if not points or len(lines) == NUM_COLORS:
            continue
        color = f'c{len(lines)}'
        lines.append({'points': points, 'color': color})
        best = max(points, key=lambda point: point[1])
        legend.append({'title': title, 'color': color, 'best': best})
    if not lines:
        return {}
    chart = line_chart(lines, y_low=0.0)
    low, high = chart['x_range']
    chosen = {sweep['chosen'] for sweep in run.sweeps.values()}
    # One choice for all lines is marked; several would cross out the chart.
    mark = chosen.pop() if len(chosen) == 1 else None
    place = None if mark is None else 100 * (mark - low) / ((high - low) or 1)
    left_out = sum(bool(sweep_points(s)) for s in run.sweeps.values()) - len(lines)
    return {
        **chart,
        'legend': legend,
        'chosen': mark,
        'place': place,
        'left_out': left_out,
    }


def sweep_points(sweep: Mapping) -> list[tuple[float, float]]:
    """(threshold, mIoU in percent) of each threshold that has one."""
    pairs = zip(sweep['thresholds'], sweep['miou'], strict=True)
    return [(x, y) for x, y in pairs if y is not None]


def training_charts(groups: Sequence[Group]) -> list[dict]:
    """Logged scalars, the scores first; a line for each run."""
    names = {
        (training, name)
        for group in groups
        for run in group.runs
        for training, scalars in run.scalars.items()
        for name, points in scalars.items()
        if len(points) > 1 and _rank(name) is not None
    }
    order = [t for group in groups for run in group.runs for t in run.scalars]
    names = sorted(names, key=lambda n: (_rank(n[1]), order.index(n[0]), n[1]))
    return [_training_chart(groups, *name) for name in names[:MAX_CURVES]]


def _training_chart(groups: Sequence[Group], training: str, name: str) -> dict:
    single = len(groups) == 1 and len(groups[0].runs) == 1
    lines, last = [], []
    for group in groups:
        color = 'segmentor' if single else group.color
        for run in group.runs:
            points = run.scalars.get(training, {}).get(name, [])
            if len(points) > 1:
                own = _curve(name, points, color, with_raw=single)
                lines += own
                last.append(own[-1]['points'][-1][1])
    return {
        'title': f'{training} · {name}' if training else name,
        'last': f'{last[0]:.4g}' if single else None,
        **line_chart(lines),
    }


def _curve(
    name: str, points: list[tuple[int, float]], color: str, *, with_raw: bool
) -> list[dict]:
    """A loss is smoothed, and where there is one run also shown as logged."""
    if 'loss' not in name or len(points) < 10:
        return [{'points': thinned(points), 'color': color}]
    logged = [step for step, _ in points]
    values = smoothed([v for _, v in points], span=max(5, len(points) // 20))
    line = thinned(list(zip(logged, values, strict=True)))
    raw = {'points': thinned(points), 'color': color, 'faint': True}
    return [*([raw] if with_raw else []), {'points': line, 'color': color}]


def _rank(name: str) -> int | None:
    """Scores first, the fixed probe, loss and its parts, shares; None = not drawn."""
    short = name.rsplit('/', 1)[-1]
    if short in ('mIoU', 'aAcc'):
        return 0 if short == 'mIoU' else 2
    if name.startswith('probe/'):
        return 1
    if 'loss' in name:
        return 3 if name == 'loss' else 4
    return 5 if name.startswith(('wsss/', 'label.')) else None


def line_chart(
    lines: Sequence[dict],
    *,
    y_low: float | None = None,
    y_high: float | None = None,
    x_range: tuple[float, float] | None = None,
) -> dict:
    """Scale lines of points to a chart; the labels stand outside the SVG as text.

    An SVG that is stretched to a phone's width would shrink its text with it.
    """
    xs = [x for line in lines for x, _ in line['points']]
    ys = [y for line in lines for _, y in line['points'] if not line.get('faint')]
    low = min(ys) if y_low is None else y_low
    ticks = round_range(low, max(ys) if y_high is None else y_high)
    x_range, y_range = x_range or (min(xs), max(xs)), (ticks[0], ticks[-1])
    height = ticks[-1] - ticks[0]
    return {
        'paths': [
            {
                'd': svg_path(line['points'], x_range=x_range, y_range=y_range),
                'color': line['color'],
                'faint': line.get('faint', False),
            }
            for line in lines
        ],
        'ticks': [
            {'text': f'{tick:g}', 'place': round(100 * (tick - ticks[0]) / height, 2)}
            for tick in ticks
        ],
        'x_range': x_range,
    }
