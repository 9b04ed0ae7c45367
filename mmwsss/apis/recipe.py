"""An ablation: one experiment with parts added one by one, several seeds, one table.

A recipe names the experiment's config, parts (changes of that config) and rows (lists
of parts). Every row is trained and scored once per seed through the plain tools; what
is done is skipped, what was interrupted goes on.
"""

import copy
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmwsss.apis.stages import Stage, available_cores, run_stages
from mmwsss.errors import InputError
from mmwsss.files import read_json, write_json

# Of metrics.json: key, split and heading of the table's columns.
COLUMNS = {
    'val/segmentor': 'Segmentor, val',
    'train/labels': 'Pseudo-labels, train',
    'train/refined': 'Refined, train',
    'train/raw_cams': 'Raw CAMs, train',
}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What a recipe file says.

    Attributes:
        config: The experiment that all rows start from.
        work_dir: Receives a folder per run, ``ablation.json`` and ``ablation.md``.
        common: Changes of the config that all rows share, a smaller budget, say.
        parts: Part name -> changes of the config, merged as MMEngine merges.
        rows: Row name -> the parts it has, in order.
        seeds: Seeds of the runs.
    """

    config: Path
    work_dir: Path
    common: dict
    parts: Mapping[str, dict]
    rows: Mapping[str, Sequence[str]]
    seeds: Sequence[int]

    def runs(self) -> dict[str, tuple[str, int]]:
        """Run name (also its folder) -> row and seed; seed by seed."""
        return {
            run_name(row, seed): (row, seed) for seed in self.seeds for row in self.rows
        }


def run_name(row: str, seed: int) -> str:
    """The folder of a run: the row's words and the seed."""
    words = re.findall('[a-z0-9]+', row.lower())
    return f'{"_".join(words)}/seed_{seed}'


def load_ablation(path: Path) -> Ablation:
    """Read a recipe file and check it."""
    if not path.is_file():
        raise InputError(f'the recipe {path} does not exist')
    content = {'common': {}, **Config.fromfile(str(path)).to_dict()}
    missing = [k for k in Ablation.__annotations__ if k not in content]
    if missing:
        raise InputError(f'the recipe {path} does not set {missing[0]}')
    parts, rows = content['parts'], content['rows']
    for row, names in rows.items():
        unknown = [name for name in names if name not in parts]
        if unknown:
            raise InputError(
                f'row {row!r} of {path} has the part {unknown[0]!r}, but the parts '
                f'are {sorted(parts)}'
            )
    slugs = [run_name(row, 0) for row in rows]
    if len(set(slugs)) < len(slugs):
        raise InputError(f'two rows of {path} differ in signs only: {list(rows)}')
    if '/seed_0' in slugs:
        raise InputError(
            f'a row of {path} has no letter from a to z and no digit in its name, so '
            f'its runs have no folder: {list(rows)}'
        )
    if not rows or not content['seeds']:
        raise InputError(f'{path} has no runs: give it rows and seeds')
    config = Path(content['config'])
    if not config.is_file():
        raise InputError(f'{path} starts from {config}, which does not exist')
    return Ablation(
        config=config,
        work_dir=Path(content['work_dir']),
        common=content['common'],
        parts=parts,
        rows=rows,
        # One seed named twice is still one run.
        seeds=tuple(dict.fromkeys(content['seeds'])),
    )


def write_run_config(ablation: Ablation, run: str) -> Path:
    """Write the config of one run and return its path."""
    if run not in ablation.runs():
        raise InputError(f'{run!r} is none of the runs {list(ablation.runs())}')
    row, seed = ablation.runs()[run]
    config = Config.fromfile(str(ablation.config))
    parts = [ablation.common, *(ablation.parts[p] for p in ablation.rows[row])]
    # Merging takes _delete_ out of what it merges.
    for part in copy.deepcopy(parts):
        _append_hooks(config, part.get('add_hooks', []))
        config.merge_from_dict({k: v for k, v in part.items() if k != 'add_hooks'})
    config.merge_from_dict({'randomness.seed': seed})
    folder = ablation.work_dir / run
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'config.py'
    if not path.is_file() or path.read_text() != config.pretty_text:
        path.write_text(config.pretty_text)
    return path


def _append_hooks(config: Config, hooks: Sequence[dict]) -> None:
    # Merging would replace the list, and with it the hooks that the config has.
    config.custom_hooks = [*config.get('custom_hooks', []), *hooks]


def run_one(ablation: Ablation, run: str, *, root: Path) -> None:
    """Train and score one run."""
    config = write_run_config(ablation, run)
    folder = config.parent
    work_dir, results = folder / 'run', folder / 'evaluation'
    tools = root / 'tools'
    stages = [
        Stage(
            name='train',
            command=[
                sys.executable,
                str(tools / 'train.py'),
                str(config),
                '--work-dir',
                str(work_dir),
            ],
            inputs=[config],
            outputs=[work_dir / 'last_checkpoint'],
            resume=['--resume'],
            stale=[work_dir / 'last_checkpoint'],
        ),
        Stage(
            name='score',
            command=[
                sys.executable,
                str(tools / 'evaluate.py'),
                str(config),
                str(work_dir),
                '--out',
                str(results),
            ],
            outputs=[results / 'metrics.json'],
        ),
    ]
    run_stages(stages, folder / 'stages.json')


def run_all(ablation: Ablation, recipe: Path, *, root: Path, jobs: int) -> None:
    """All runs, ``jobs`` at a time, each a process of its own with a log file.

    On SIGTERM the running ones are ended and no other is started.

    Raises:
        InputError: Runs failed; names them and the first one's log. The other runs
            are finished first.
    """
    if jobs < 1:
        raise InputError(f'--jobs must be 1 or more, got {jobs}')
    threads = str(max(1, available_cores() // jobs))
    command = [sys.executable, str(root / 'tools' / 'run_recipe.py'), str(recipe)]
    runs, finished, lock = list(ablation.runs()), [], threading.Lock()
    children: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def work(run: str) -> str | None:
        log = ablation.work_dir / run / 'log.txt'
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as stream:
            with lock:
                if stopped.is_set():
                    return run
                child = subprocess.Popen(
                    [*command, '--only', run],
                    env={'OMP_NUM_THREADS': threads, **os.environ},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
                children.add(child)
                if stopped.is_set():  # between the check and here
                    child.terminate()
            code = child.wait()
        with lock:
            children.discard(child)
            finished.append(run)
            state = 'done' if code == 0 else f'FAILED, see {log}'
            print(f'[{len(finished)}/{len(runs)}] {run}: {state}', flush=True)
        return None if code == 0 else run

    def stop(signum, frame) -> None:
        # Without the lock, which the main thread may hold.
        stopped.set()
        for child in tuple(children):
            child.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            failed = [run for run in pool.map(work, runs) if run]
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped.is_set():
        raise KeyboardInterrupt
    if failed:
        raise InputError(
            f'{len(failed)} of {len(runs)} runs failed, the first is {failed[0]}; its '
            f'messages are in {ablation.work_dir / failed[0] / "log.txt"}; the same '
            'command goes on with what is missing'
        )


def summarize(ablation: Ablation) -> dict:
    """Mean and spread of every row over the seeds that are done.

    Returns:
        row -> column -> ``{'values', 'mean', 'spread'}`` in percent mIoU; ``spread``
        is the standard deviation over the seeds (n - 1), None for one seed.
    """
    table = {}
    for row in ablation.rows:
        found = [_run_numbers(ablation, run_name(row, s)) for s in ablation.seeds]
        table[row] = {
            key: _statistics([numbers[key] for numbers in found if key in numbers])
            for key in COLUMNS
        }
    write_json(ablation.work_dir / 'ablation.json', table)
    (ablation.work_dir / 'ablation.md').write_text(format_table(table))
    return table


def _run_numbers(ablation: Ablation, run: str) -> dict[str, float]:
    path = ablation.work_dir / run / 'evaluation' / 'metrics.json'
    if not path.is_file():
        return {}
    numbers = {n['key']: n['miou'] for n in read_json(path)['numbers']}
    # None stands where no photo has a decided pixel.
    return {key: value for key, value in numbers.items() if value is not None}


def _statistics(values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        'values': values,
        'mean': statistics.fmean(values) if values else None,
        'spread': spread,
    }


def format_table(table: Mapping[str, dict]) -> str:
    """Markdown: mean and spread per row, and the change against the first row."""
    lines = [
        '| row | seeds | ' + ' | '.join(COLUMNS.values()) + ' | change, val |',
        '|---|---|' + '---|' * (len(COLUMNS) + 1),
    ]
    first = next(iter(table.values()))['val/segmentor']['mean']
    for row, columns in table.items():
        cells = [_cell(columns[key]) for key in COLUMNS]
        own = columns['val/segmentor']
        known = own['mean'] is not None and first is not None
        change = f'{own["mean"] - first:+.2f}' if known else ''
        lines.append(
            f'| {row} | {len(own["values"])} | ' + ' | '.join(cells) + f' | {change} |'
        )
    return '\n'.join(lines) + '\n'


def _cell(numbers: dict) -> str:
    mean, spread = numbers['mean'], numbers['spread']
    if mean is None or math.isnan(mean):
        return ''
    return f'{mean:.2f}' if spread is None else f'{mean:.2f} ± {spread:.2f}'
