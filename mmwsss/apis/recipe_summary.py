"""What a recipe's runs gave: a table over rows, and time and memory of every stage."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from mmwsss.apis.recipe import Recipe, filled, placeholders, run_name
from mmwsss.apis.recipe_runs import RECORD, plan_run
from mmwsss.apis.stages import format_seconds, read_record
from mmwsss.files import read_json, write_json, write_text

_SHOWN = ('state', 'seconds', 'peak_memory_mib', 'finished')


def summarize(recipe: Recipe, *, root: Path) -> dict:
    """Summarize what is there and write it to ``work_dir``, as JSON and as Markdown.

    Returns:
        ``rows``: row -> column -> ``{'values', 'mean', 'spread'}``; ``values`` is seed
        -> number for the seeds that have it, ``spread`` the standard deviation over
        them (n - 1), None for one seed. ``stages``: run -> stage -> state, seconds,
        peak memory in MiB and when it finished; the state is as in ``stages.json``, or
        ``'out of date'`` where it would run again, or ``'never run'``.
    """
    summary = {
        'rows': {row: _row(recipe, row) for row in recipe.rows},
        'stages': {run: _stages(recipe, run, root) for run in recipe.runs()},
    }
    write_json(recipe.work_dir / f'{recipe.summary}.json', summary)
    write_text(recipe.work_dir / f'{recipe.summary}.md', format_summary(summary))
    return summary


def _row(recipe: Recipe, row: str) -> dict:
    table = {}
    for heading, column in recipe.columns.items():
        numbers = {
            str(seed): _number(recipe, run_name(row, seed), *column)
            for seed in recipe.seeds
        }
        values = {seed: n for seed, n in numbers.items() if n is not None}
        table[heading] = {'values': values, **_statistics(list(values.values()))}
    return table


def _number(recipe: Recipe, run: str, file: str, keys: str) -> float | None:
    """The number at a path of keys in a run's JSON file, None if it is not there."""
    path = Path(filled(file, placeholders(recipe, run), f'a column of {recipe.path}'))
    if not path.is_file():
        return None
    found = read_json(path)
    for key in keys.split('.'):
        if isinstance(found, list):
            found = {entry['key']: entry for entry in found}
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    # None stands where no photo has a decided pixel.
    return found


def _statistics(values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        'mean': statistics.fmean(values) if values else None,
        'spread': spread,
    }


def _stages(recipe: Recipe, run: str, root: Path) -> dict:
    record = read_record(recipe.work_dir / run / RECORD)
    found = {}
    for name, reason in plan_run(recipe, run, root=root).items():
        entry = record.get(name, {'state': 'never run'})
        found[name] = {key: entry.get(key) for key in _SHOWN}
        if reason is not None and entry['state'] == 'done':
            found[name]['state'] = 'out of date'
    return found


# --------------------------------------------------------------------------- Markdown
def format_summary(summary: Mapping) -> str:
    """Both tables as Markdown."""
    tables = [_stage_table(summary['stages'])]
    if any(summary['rows'].values()):
        tables.insert(0, format_table(summary['rows']))
    return '\n'.join(tables)


def format_table(rows: Mapping[str, dict]) -> str:
    """Mean and spread per row, and the first column's change against the first row.

    Runs of one seed see the same photos in the same order, so the change is the mean
    of the differences at equal seeds, with their own spread.
    """
    first_row = next(iter(rows.values()))
    headings = list(first_row)
    main = headings[0]
    compared = len(rows) > 1
    change = [f'change, {main.rpartition(", ")[2]}'] if compared else []
    lines = [
        '| ' + ' | '.join(['row', 'seeds', *headings, *change]) + ' |',
        '|' + '---|' * (2 + len(headings) + len(change)),
    ]
    for row, columns in rows.items():
        seeds = max(len(numbers['values']) for numbers in columns.values())
        cells = [row or 'all', str(seeds), *(_cell(columns[key]) for key in headings)]
        if compared:
            cells.append(_change(columns[main]['values'], first_row[main]['values']))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _cell(numbers: Mapping) -> str:
    mean, spread = numbers['mean'], numbers['spread']
    if mean is None or math.isnan(mean):
        return ''
    return f'{mean:.2f}' if spread is None else f'{mean:.2f} ± {spread:.2f}'


def _change(values: Mapping, first: Mapping) -> str:
    changes = [values[seed] - first[seed] for seed in values if seed in first]
    if not changes or values is first:
        return ''
    numbers = _statistics(changes)
    return f'{numbers["mean"]:+.2f}' + (
        '' if numbers['spread'] is None else f' ± {numbers["spread"]:.2f}'
    )


def _stage_table(runs: Mapping[str, dict]) -> str:
    """Per stage over the runs: how many are done, mean time, largest peak memory."""
    lines = [
        '| stage | done | mean time | peak memory | not done |',
        '|---|---|---|---|---|',
    ]
    total = 0.0
    for name in next(iter(runs.values())):
        entries = {run: stages[name] for run, stages in runs.items()}
        done = [entry for entry in entries.values() if entry['state'] == 'done']
        total += sum(entry['seconds'] for entry in done)
        rest = [
            f'{run}: {entry["state"]}'
            for run, entry in entries.items()
            if entry['state'] != 'done'
        ]
        time = format_seconds(_mean(done, 'seconds')) if done else ''
        peak = f'{_largest(done, "peak_memory_mib"):.0f} MiB' if done else ''
        shown = '; '.join(rest[:3]) + (f'; {len(rest) - 3} more' if rest[3:] else '')
        lines.append(
            f'| {name} | {len(done)} of {len(entries)} | {time} | {peak} | {shown} |'
        )
    return '\n'.join([*lines, '', f'All together {format_seconds(total)}.']) + '\n'


def _mean(entries: list[dict], key: str) -> float:
    return statistics.fmean(entry[key] for entry in entries)


def _largest(entries: list[dict], key: str) -> float:
    return max(entry[key] for entry in entries)
