"""Rows, table and JSON of what was measured."""

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

import mmwsss
from mmwsss.apis.benchmark.case import CHECKOUT, Budget, Case, Cost
from mmwsss.apis.benchmark.measure import Measurement
from mmwsss.apis.stages import available_cores

PACKAGES = (
    'torch', 'numpy', 'open_clip_torch',
    'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain',
    'mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain',
)  # fmt: skip
COLUMNS = (
    'case', 'cores', 'ms', 'CPU ms', 'images/s', 'MB', 'naive ms', 'naive MB',
    'times faster', 'difference', 'bound ms', 'times the bound', 'budget',
)  # fmt: skip


# ------------------------------------------------------------------------- the machine
def machine(device: str) -> dict:
    """What a reader has to know to judge the numbers."""
    found = {'mmwsss': mmwsss.__version__, 'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found['torch'] = torch.__version__
    gpu = torch.cuda.get_device_name() if device == 'cuda' else None
    return {
        'date': date.today().isoformat(),
        'cpu': cpu_name(),
        'gpu': gpu,
        'cuda': torch.version.cuda if gpu else None,
        'cores': available_cores(),
        'load': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        'versions': found,
        'commit': commit(),
    }


def cpu_name() -> str:
    """The processor as Linux calls it, elsewhere its architecture."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [x.partition(':')[2].strip() for x in lines if x.startswith('model name')]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The checkout's commit, with a plus where files were changed; None without git."""
    try:
        found, changed = (
            subprocess.run(
                ['git', '-C', str(CHECKOUT), *words],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for words in (
                ['rev-parse', 'HEAD'],
                ['status', '--porcelain', '--untracked-files=no'],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + '+' * bool(changed)


# ------------------------------------------------------------------------------- rows
def make_row(
    case: Case,
    *,
    cores: int,
    device: str,
    fast: Measurement,
    naive: Measurement | None,
    difference: tuple[float, float] | None,
    rates: Mapping[str, float],
) -> dict:
    """Everything about a case on so many cores, ready for JSON.

    Args:
        case: that was measured.
        cores: threads or processes.
        device: 'cpu' or 'cuda'.
        fast: of the package's form.
        naive: of the naive form, None where it was not measured.
        difference: of their results, absolute and relative.
        rates: bytes and operations per second of this machine with so many cores:
            'bytes', 'operations', and 'half_operations' on a GPU.
    """
    seconds, images = fast.median, case.images()
    row = {
        'case': case.name,
        'what': case.what,
        'group': case.group,
        'device': device,
        'cores': cores,
        'seconds': seconds,
        'all_seconds': fast.seconds,
        'all_seconds_with_start': fast.with_start,
        'cpu_seconds': None if case.processes else median(fast.cpu_seconds),
        'images': images,
        'images_per_second': images / seconds if images else None,
        'extra_mb': fast.extra_mb,
        'peak_mb': fast.peak_mb,
    }
    row |= _naive_part(case, device, fast, naive, difference)
    half = case.half_precision and device == 'cuda'
    row |= _bound_part(fast.cost, seconds, rates, half=half)
    if case.iterations:
        row['training_hours'] = seconds * case.iterations / 3600
    row['budget'] = check_budget(case.budget, row)
    return row


def _naive_part(case, device, fast, naive, difference) -> dict:
    if naive is None:
        return {}
    half = case.half_precision and device == 'cuda'
    absolute, relative = difference
    return {
        'naive_seconds': naive.median,
        'naive_all_seconds': naive.seconds,
        'naive_cpu_seconds': None if case.processes else median(naive.cpu_seconds),
        'naive_extra_mb': naive.extra_mb,
        'naive_peak_mb': naive.peak_mb,
        'times_faster': naive.median / fast.median,
        # JSON has no infinity.
        'difference': absolute if math.isfinite(absolute) else None,
        'relative_difference': relative if math.isfinite(relative) else None,
        'agrees': relative <= (case.half_tolerance if half else case.tolerance),
    }


def _bound_part(
    cost: Cost | None, seconds: float, rates: Mapping[str, float], *, half: bool
) -> dict:
    if cost is None:
        return {}
    unit = rates.get('half_operations' if half else 'operations')
    row = {'bytes': cost.bytes, 'operations': cost.operations}
    if unit is None or 'bytes' not in rates:
        return row
    bound = max(cost.bytes / rates['bytes'], cost.operations / unit)
    return {**row, 'bound_seconds': bound, 'times_bound': seconds / bound}


def check_budget(budget: Budget | None, row: Mapping) -> dict | None:
    """Each promise with its limit, what was measured and whether it is kept.

    A promise for another device or number of threads, or about something that was not
    measured, is neither kept nor broken: None.
    """
    if budget is None:
        return None
    applies = budget.device == row['device'] and budget.threads in (None, row['cores'])
    checked = {}
    for name in ('times_faster', 'extra_mb', 'peak_mb', 'seconds'):
        limit, value = getattr(budget, name), row.get(name)
        if limit is None:
            continue
        kept = None
        if applies and value is not None:
            kept = value >= limit if name == 'times_faster' else value <= limit
        checked[name] = {'limit': limit, 'measured': value, 'kept': kept}
    return {'device': budget.device, 'threads': budget.threads, 'promises': checked}


# ------------------------------------------------------------------------------ table
def markdown_table(rows: Sequence[Mapping]) -> str:
    """A line for each row, for people and for the docs."""
    lines = [
        '| ' + ' | '.join(COLUMNS) + ' |',
        '|---|' + '---:|' * (len(COLUMNS) - 2) + '---|',
    ]
    return '\n'.join([*lines, *map(table_line, rows)])


def table_line(row: Mapping) -> str:
    """One row."""
    if 'error' in row:
        blank = ' |' * (len(COLUMNS) - 3)
        return f'| {row["case"]} | {row["cores"]} |{blank} failed: {row["error"]} |'
    wrong = '' if row.get('agrees', True) else ' WRONG'
    memory = row['extra_mb'] if row['extra_mb'] is not None else row['peak_mb']
    cells = (
        row['case'],
        str(row['cores']),
        _number(row['seconds'], 1000),
        _number(row['cpu_seconds'], 1000),
        _number(row['images_per_second']),
        _number(memory) + ('' if row['extra_mb'] is not None else ' in all'),
        _number(row.get('naive_seconds'), 1000),
        _number(row.get('naive_extra_mb')),
        _number(row.get('times_faster')),
        _difference(row) + wrong,
        _number(row.get('bound_seconds'), 1000),
        _number(row.get('times_bound')),
        _promises(row),
    )
    return '| ' + ' | '.join(cells) + ' |'


def _number(value: float | None, factor: float = 1.0) -> str:
    """Three digits that count, without an exponent."""
    if value is None:
        return ''
    value *= factor
    if value == 0:
        return '0'
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f'{value:,.{digits}f}'


def _difference(row: Mapping) -> str:
    if 'agrees' not in row:
        return ''
    value = row['difference']
    return 'not finite' if value is None else f'{value:.1e}'


def _promises(row: Mapping) -> str:
    """What was promised here, and whether it is kept."""
    words = {
        'times_faster': lambda x: f'{x:g} times faster',
        'extra_mb': lambda x: f'{x:g} MB on top',
        'peak_mb': lambda x: f'{x:g} MB in all',
        'seconds': lambda x: f'{1000 * x:g} ms',
    }
    promises = (row['budget'] or {}).get('promises', {})
    parts = [
        f'{words[name](one["limit"])}: {"kept" if one["kept"] else "MISSED"}'
        for name, one in promises.items()
        if one['kept'] is not None
    ]
    if 'training_hours' in row:
        parts.append(f'whole training {_number(row["training_hours"])} h')
    return '; '.join(parts)
