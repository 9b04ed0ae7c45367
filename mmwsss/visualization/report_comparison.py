"""What the report of several runs shows: numbers, differences, classes, times."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from mmwsss.apis.stages import format_seconds
from mmwsss.visualization.report_charts import line_chart, sweep_points
from mmwsss.visualization.report_runs import SPLIT_TITLES, Group

_THRESHOLD = re.compile(r'threshold \d[\d.]*')


def class_panels(groups: Sequence[Group]) -> list[dict]:
    """Per number: IoU of every class, a bar for each group, a dot for each seed."""
    panels = []
    titles = _number_titles(groups)
    # What a recipe has come to so far is of more interest than where it began.
    latest = [key for key in reversed(titles) if key.startswith('stage/')]
    for key in [*(key for key in titles if key not in latest), *latest]:
        title = titles[key]
        tables = [
            [run.by_key[key]['per_class'] for run in group.runs if key in run.by_key]
            for group in groups
        ]
        rows = _class_rows(groups, tables)
        if rows:
            panels.append({'key': key, 'title': title, 'rows': rows})
    return panels


def _class_rows(groups: Sequence[Group], tables: Sequence[list]) -> list[dict]:
    names = [entry['name'] for own in tables for table in own for entry in table]
    rows = []
    for name in dict.fromkeys(names):
        bars = []
        for group, own in zip(groups, tables, strict=True):
            found = [e['iou'] for table in own for e in table if e['name'] == name]
            numbers = _statistics(found)
            bars.append({'color': group.color, 'group': group.name, **numbers})
        if any(bar['mean'] is not None for bar in bars):
            rows.append({'name': name, 'bars': bars})
    return sorted(rows, key=lambda row: row['bars'][0]['mean'] or 0.0)


def _number_titles(groups: Sequence[Group]) -> dict[str, str]:
    """Titles of all numbers, what is told of unseen photos first."""
    titles = {}
    for group in groups:
        for run in group.runs:
            for number in run.numbers:
                titles.setdefault(number['key'], number['long_title'])
    order = ('val/segmentor', 'val/', 'train/', 'stage/')
    rank = {key: [key.startswith(o) for o in order].index(True) for key in titles}
    return {key: titles[key] for key in sorted(titles, key=rank.__getitem__)}


def number_table(groups: Sequence[Group]) -> dict:
    """All numbers of all groups, and their differences from the first group.

    Runs of one seed see the same photos in the same order, so a difference is the mean
    of those at equal seeds where both groups have seeds, with its own spread. Of a
    single group the runs themselves are the columns.
    """
    single = len(groups) == 1
    rows = []
    for key, title in _number_titles(groups).items():
        tables = [[run.by_key.get(key) for run in group.runs] for group in groups]
        values = [
            {
                run.seed: table['miou']
                for run, table in zip(group.runs, own, strict=True)
                if table and table['miou'] is not None
            }
            for group, own in zip(groups, tables, strict=True)
        ]
        policies = {table['policy'] for own in tables for table in own if table}
        cells = [
            {**_statistics(own.values()), 'change': _change(own, values[0], i)}
            for i, own in enumerate(values)
        ]
        if single:
            runs = [_statistics([values[0].get(run.seed)]) for run in groups[0].runs]
            cells = [{**cell, 'change': None} for cell in runs] + cells
        rows.append({'title': title, 'policy': _policy(policies), 'cells': cells})
    heads = [{'name': group.name, 'color': group.color} for group in groups]
    if single:
        seeds = [{'name': f'seed {r.seed}', 'color': ''} for r in groups[0].runs]
        heads = [*seeds, {'name': 'mean', 'color': groups[0].color}]
    return {'heads': heads, 'rows': rows, 'changes': not single}


def _policy(policies: set[str]) -> str:
    """One sentence for all runs; where they differ in the threshold it says so."""
    if len(policies) > 1:
        policies = {_THRESHOLD.sub('threshold of each run', p) for p in policies}
    return ' / '.join(sorted(policies))


def _change(
    values: Mapping[int | None, float], first: Mapping[int | None, float], position: int
) -> dict | None:
    if not position or not values or not first:
        return None
    common = [seed for seed in values if seed in first]
    if common:
        return _statistics([values[seed] - first[seed] for seed in common])
    # No seed in common: nothing can be said about the spread of the difference.
    mean = statistics.fmean(values.values()) - statistics.fmean(first.values())
    return {'mean': mean, 'spread': None, 'values': [mean]}


def _statistics(values: Iterable[float | None]) -> dict:
    known = [value for value in values if value is not None]
    return {
        'mean': statistics.fmean(known) if known else None,
        'spread': statistics.stdev(known) if len(known) > 1 else None,
        'values': known,
    }


def sweep_panels(groups: Sequence[Group]) -> list[dict]:
    """Sweeps of a comparison: one chart for each store, a line for each run."""
    titles = [t for group in groups for run in group.runs for t in run.sweeps]
    panels = []
    for title in dict.fromkeys(titles):
        lines = [
            {'points': sweep_points(run.sweeps[title]), 'color': group.color}
            for group in groups
            for run in group.runs
            if title in run.sweeps
        ]
        lines = [line for line in lines if line['points']]
        if lines:
            chart = line_chart(lines, y_low=0.0)
            panels.append({'key': title, 'title': title, 'chart': chart})
    return panels


def calibration_panels(groups: Sequence[Group]) -> list[dict]:
    """Reliability of a comparison: correct pixels of a bin, a line for each run."""
    panels = []
    for split, title in SPLIT_TITLES.items():
        lines = []
        for group in groups:
            for run in group.runs:
                table = run.metrics.get('reliability', {}).get(split)
                points = [
                    ((entry['low'] + entry['high']) / 2, entry['correct'])
                    for entry in (table['bins'] if table else ())
                    if entry['correct'] is not None
                ]
                if points:
                    lines.append({'points': points, 'color': group.color})
        if lines:
            chart = line_chart(lines, y_low=0.0, y_high=100.0, x_range=(0.0, 1.0))
            panels.append({'key': split, 'title': title, 'chart': chart})
    return panels


def time_table(groups: Sequence[Group]) -> dict:
    """Working time of every stage, the mean over a group's seeds."""
    names = [n for group in groups for run in group.runs for n in run.stages]
    rows = []
    for name in dict.fromkeys(names):
        cells = []
        for group in groups:
            own = [run.stages[name] for run in group.runs if name in run.stages]
            done = [entry['seconds'] for entry in own if entry['state'] == 'done']
            cells.append(
                {
                    'time': format_seconds(statistics.fmean(done)) if done else '',
                    'done': len(done),
                    'runs': len(group.runs),
                }
            )
        rows.append({'name': name, 'cells': cells})
    heads = [{'name': group.name, 'color': group.color} for group in groups]
    return {'heads': heads, 'rows': rows} if rows else {}
