"""Writes the report of a scored run: one HTML file with everything inside it."""

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from mmwsss.errors import InputError
from mmwsss.files import read_json, write_text
from mmwsss.visualization.curves import (
    read_scalars,
    round_range,
    smoothed,
    svg_path,
    thinned,
)

MAX_CURVES = 15
TILE_SIDE_PX = 320
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
SPLIT_TITLES = {
    'train': 'Training photos',
    'val': 'Validation photos',
}


def write_report(result_dir: str | Path, *, run_dir: str | Path | None = None) -> Path:
    """Write ``report.html`` beside ``metrics.json``.

    Args:
        result_dir: What :func:`mmwsss.apis.evaluate.evaluate_run` wrote.
        run_dir: Work directory with the training log and ``stages.json``; default:
            the folder of the checkpoint.

    Returns:
        The path of the report.
    """
    result_dir = Path(result_dir)
    if not (result_dir / 'metrics.json').is_file():
        raise InputError(
            f'{result_dir} holds no metrics.json; make it with: '
            f'python tools/evaluate.py CONFIG CHECKPOINT --out {result_dir}'
        )
    metrics = read_json(result_dir / 'metrics.json')
    run_dir = Path(run_dir or metrics['run'].get('run_dir') or result_dir)
    html = _template().render(
        run=metrics['run'],
        name=Path(metrics['run']['config'] or result_dir.name).stem,
        intro=_intro(metrics),
        steps=_steps(metrics),
        numbers=_grouped_numbers(metrics),
        bars=_class_bars(metrics),
        sweep=_sweep_chart(metrics),
        reliability=_reliability_charts(metrics),
        curves=_training_charts(run_dir),
        galleries=_galleries(metrics, result_dir),
        facts=_facts(metrics, run_dir),
    )
    path = result_dir / 'report.html'
    write_text(path, html)
    return path


def _template() -> object:
    source = resources.files('mmwsss.visualization') / 'templates' / 'report.html.j2'
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['score'] = _score
    return environment.from_string(source.read_text(encoding='utf-8'))


def _score(value: float | None, digits: int = 2) -> str:
    return 'none' if value is None else f'{value:.{digits}f}'


def _by_key(metrics: dict) -> dict[str, dict]:
    return {number['key']: number for number in metrics['numbers']}


def _intro(metrics: dict) -> str:
    scored = {
        split: count - metrics['without_mask'].get(split, 0)
        for split, count in metrics['photos'].items()
    }
    sets = [f'{n:,} {SPLIT_TITLES[s].lower()}' for s, n in scored.items() if n]
    objects = len(metrics['classes']) - 1
    return (
        f'Trained with image labels only. Scored against the masks of '
        f'{" and ".join(sets) or "no photos"}, {objects} object '
        f'{"class" if objects == 1 else "classes"} and background.'
    )


def _steps(metrics: dict) -> list[dict]:
    numbers = _by_key(metrics)
    found = []
    for key, title, note, color in STEPS:
        if key in numbers and numbers[key]['miou'] is not None:
            number = numbers[key]
            photos = SPLIT_TITLES[number['split']].lower()
            tags = number['policy'].split(';')[0]
            where = f'{number["images"]:,} {photos}, {tags}'
            found.append(
                {
                    'title': title,
                    'note': note,
                    'color': color,
                    'miou': number['miou'],
                    'where': where,
                }
            )
    return found


def _grouped_numbers(metrics: dict) -> list[dict]:
    groups = []
    for split, title in SPLIT_TITLES.items():
        rows = [n for n in metrics['numbers'] if n['split'] == split]
        if rows:
            without = metrics['without_mask'].get(split, 0)
            scored = f'{rows[0]["images"]:,} photos scored'
            note = f'{scored}, {without:,} without a mask' if without else scored
            groups.append({'title': title, 'note': note, 'rows': rows})
    return groups


def _class_bars(metrics: dict) -> dict:
    numbers = _by_key(metrics)
    keys = [entry for entry in BAR_KEYS if entry[0] in numbers]
    split = 'val'
    if not keys:
        split = 'train'
        keys = [(key.replace('val/', 'train/'), t, c) for key, t, c in BAR_KEYS]
        keys = [entry for entry in keys if entry[0] in numbers]
    if not keys:
        return {}
    rows, left_out = [], []
    for i, name in enumerate(metrics['classes']):
        values = [numbers[key]['per_class'][i]['iou'] for key, _, _ in keys]
        if all(value is None for value in values):
            left_out.append(name)
            continue
        bars = [
            {'value': v, 'color': c} for v, (_, _, c) in zip(values, keys, strict=True)
        ]
        rows.append({'name': name, 'bars': bars})
    rows.sort(key=lambda row: row['bars'][-1]['value'] or 0.0)
    legend = [{'title': title, 'color': color} for _, title, color in keys]
    return {
        'rows': rows,
        'legend': legend,
        'left_out': left_out,
        'split': SPLIT_TITLES[split].lower(),
    }


def _chart(
    lines: Sequence[dict], *, y_low: float | None = None, y_high: float | None = None
) -> dict:
    """Scale lines of points to a chart; the labels stand outside the SVG as text.

    An SVG that is stretched to a phone's width would shrink its text with it.
    """
    xs = [x for line in lines for x, _ in line['points']]
    ys = [y for line in lines for _, y in line['points'] if not line.get('faint')]
    low = min(ys) if y_low is None else y_low
    ticks = round_range(low, max(ys) if y_high is None else y_high)
    x_range, y_range = (min(xs), max(xs)), (ticks[0], ticks[-1])
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


def _sweep_chart(metrics: dict) -> dict:
    lines, legend = [], []
    for split, color in (('train', 'refined'), ('val', 'segmentor')):
        sweep = metrics['sweeps'].get(split)
        if not sweep:
            continue
        pairs = zip(sweep['thresholds'], sweep['miou'], strict=True)
        points = [(x, y) for x, y in pairs if y is not None]
        if points:
            lines.append({'points': points, 'color': color})
            legend.append({'title': SPLIT_TITLES[split].lower(), 'color': color})
    if not lines:
        return {}
    chosen = _by_key(metrics).get('train/raw_cams', {}).get('threshold')
    chart = _chart(lines, y_low=0.0)
    low, high = chart['x_range']
    place = None if chosen is None else 100 * (chosen - low) / ((high - low) or 1)
    return {**chart, 'legend': legend, 'chosen': chosen, 'place': place}


def _reliability_charts(metrics: dict) -> list[dict]:
    """Per set of photos: how many pixels a bin holds and how many are right."""
    charts = []
    for split, title in SPLIT_TITLES.items():
        table = metrics.get('reliability', {}).get(split)
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


def _training_charts(run_dir: Path) -> list[dict]:
    scalars = read_scalars(run_dir) if run_dir.is_dir() else {}
    names = [n for n in scalars if len(scalars[n]) > 1 and _rank(n) is not None]
    charts = []
    for name in sorted(names, key=lambda n: (_rank(n), n))[:MAX_CURVES]:
        points = scalars[name]
        lines = [{'points': thinned(points), 'color': 'segmentor'}]
        last = points[-1][1]
        if 'loss' in name and len(points) >= 10:
            steps = [step for step, _ in points]
            values = smoothed([v for _, v in points], span=max(5, len(points) // 20))
            lines[0]['faint'] = True
            line = thinned(list(zip(steps, values, strict=True)))
            lines.append({'points': line, 'color': 'segmentor'})
            last = values[-1]
        charts.append({'title': name, 'last': f'{last:.4g}', **_chart(lines)})
    return charts


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


def _galleries(metrics: dict, result_dir: Path) -> list[dict]:
    galleries = []
    for split, key, what in (
        ('val', 'prediction', 'segmentor'),
        ('train', 'refined', 'refined label'),
    ):
        pictures = metrics['pictures'].get(split) or []
        cards = [
            {
                'id': picture['id'],
                'classes': ', '.join(picture['classes']) or 'no object',
                'iou': picture['iou'].get(key),
                'columns': _columns(len(picture['tiles'])),
                'tiles': [
                    {'title': tile['title'], **_inline(result_dir / tile['file'])}
                    for tile in picture['tiles']
                ],
            }
            for picture in pictures
        ]
        cards.sort(key=lambda card: (card['iou'] is None, card['iou']))
        if cards:
            galleries.append(
                {'title': SPLIT_TITLES[split], 'what': what, 'cards': cards}
            )
    return galleries


def _columns(num_tiles: int) -> int:
    """Six to eight in a row; more tiles are spread over even rows."""
    rows = -(-num_tiles // 8)
    return max(6, -(-num_tiles // rows)) if num_tiles else 1


def _inline(path: Path) -> dict:
    try:
        with Image.open(path) as image:
            picture = image.convert('RGB')
    except OSError:
        raise InputError(
            f'the picture {path} is missing or broken; run tools/evaluate.py again'
        ) from None
    picture.thumbnail((TILE_SIDE_PX, TILE_SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, format='WEBP', quality=82, method=4)
    text = base64.b64encode(stream.getvalue()).decode()
    return {
        'source': f'data:image/webp;base64,{text}',
        'width': picture.width,
        'height': picture.height,
    }


def _facts(metrics: dict, run_dir: Path) -> list[tuple[str, str]]:
    run = metrics['run']
    facts = [
        ('Config', run['config']),
        ('Checkpoint', run['checkpoint']),
        ('Iteration', run.get('iteration')),
        ('Seed', run.get('seed')),
        ('Scored', run['date']),
        ('Device', run['device']),
        ('Versions', ', '.join(f'{k} {v}' for k, v in run['versions'].items())),
    ]
    stages = run_dir / 'stages.json'
    record = read_json(stages) if stages.is_file() else {}
    times = [
        (f'Time to {name}', f'{entry["seconds"]:,.0f} s')
        for name, entry in record.items()
        if entry.get('finished')
    ]
    for split, seconds in {} if times else metrics['seconds'].items():
        times.append((f'Time to score {split}', f'{seconds:,.0f} s'))
    shown = [(name, value) for name, value in facts if value not in (None, '')]
    return [(name, str(value)) for name, value in shown] + times
