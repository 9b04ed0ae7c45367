"""Reads the folders that a report is about: numbers, stages, training logs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmwsss.apis.stages import read_record
from mmwsss.errors import InputError, tool
from mmwsss.files import read_json
from mmwsss.visualization.curves import read_scalars

METRICS = 'metrics.json'
STAGES = 'stages.json'
SPLIT_TITLES = {'train': 'Training photos', 'val': 'Validation photos'}
# Colours of the page's style sheet; more runs share them.
NUM_COLORS = 12
_SEED = re.compile(r'seed_(\d+)')
_LOGS = '*/vis_data/scalars.json'

Scalars = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run; every part may be missing.

    Attributes:
        folder: The run's folder, or that of its numbers; absolute.
        shown: The same as the user has named it.
        result_dir: Where ``metrics.json`` and the pictures are.
        metrics: Its content.
        stages: What ``stages.json`` says.
        numbers: Score tables with ``key``, ``title`` and ``policy``: those of
            ``metrics.json``, then those that stages wrote.
        sweeps: Title -> ``thresholds``, ``miou`` and the ``chosen`` threshold or None.
        scalars: Name of a training, '' for the only one -> its logged scalars.
    """

    folder: Path
    shown: Path
    result_dir: Path | None = None
    metrics: dict = field(default_factory=dict)
    stages: dict = field(default_factory=dict)
    numbers: Sequence[dict] = ()
    sweeps: Mapping[str, dict] = field(default_factory=dict)
    scalars: Mapping[str, Scalars] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The folder whose name tells the run: ``evaluation`` tells nothing."""
        inside = self.folder.name == 'evaluation'
        return self.folder.parent if inside else self.folder

    @property
    def seed(self) -> int | None:
        """The seed of a recipe's run, by its folder's name."""
        match = _SEED.fullmatch(self.home.name)
        return int(match[1]) if match else None

    @property
    def group(self) -> Path:
        """Runs that differ in the seed alone have one group."""
        return self.home if self.seed is None else self.home.parent

    @property
    def by_key(self) -> dict[str, dict]:
        """The numbers by their keys."""
        return {number['key']: number for number in self.numbers}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of different seeds, or a single run.

    Attributes:
        name: Shown to the user, unique on the page.
        color: Name of a colour of the page's style sheet.
        runs: In the order of their seeds.
    """

    name: str
    color: str
    runs: Sequence[Run]

    def run_names(self) -> list[str]:
        """Name of each run, unique on the page."""
        if len(self.runs) == 1:
            return [self.name]
        return [f'{self.name}, seed {run.seed}' for run in self.runs]


# ------------------------------------------------------------------------ the folders
def find_runs(folders: Sequence[Path], *, run_dir: Path | None = None) -> list[Run]:
    """Read the runs in some folders.

    Args:
        folders: Each is a run's folder (``stages.json``, ``evaluation/metrics.json``
            or training logs), what tools/evaluate.py wrote, or a recipe's folder with
            ``seed_N`` or ``ROW/seed_N`` inside.
        run_dir: Work directory with the training log, for a single run; by default
            the one that the record names.

    Raises:
        InputError: A folder holds nothing to report.
    """
    found = [path for folder in folders for path in _runs_in(Path(folder))]
    found = {path.resolve(): path for path in found}
    if run_dir is not None and len(found) > 1:
        raise InputError(
            f'a work directory can be named for one run, but there are {len(found)}'
        )
    return [
        read_run(path, shown=shown, run_dir=run_dir) for path, shown in found.items()
    ]


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f'{folder} is no folder; name one that a run has written to')
    if _is_run(folder):
        return [folder]
    seeds = [*folder.glob('seed_*'), *folder.glob('*/seed_*')]
    seeds = [path for path in seeds if _SEED.fullmatch(path.name) and _is_run(path)]
    if not seeds:
        raise InputError(
            f'{folder} holds no {METRICS}, no {STAGES}, no training log and no folders '
            f'seed_N of a recipe; make numbers with: {tool("evaluate")} CONFIG '
            f'CHECKPOINT --out {folder}'
        )
    return sorted(seeds)


def _is_run(folder: Path) -> bool:
    files = (METRICS, f'evaluation/{METRICS}', STAGES)
    return any((folder / f).is_file() for f in files) or any(folder.glob(_LOGS))


def read_run(folder: Path, *, shown: Path, run_dir: Path | None) -> Run:
    """Read one run, finished or not; the arguments are as for ``find_runs``."""
    result_dir = next(
        (d for d in (folder, folder / 'evaluation') if (d / METRICS).is_file()), None
    )
    metrics = read_json(result_dir / METRICS) if result_dir else {}
    if result_dir and not {'numbers', 'classes', 'run'} <= set(metrics):
        raise InputError(
            f'{result_dir / METRICS} was not written by {tool("evaluate")}; name the '
            'folder that was its --out'
        )
    trained = Path(run_dir) if run_dir else _trained(folder, metrics)
    homes = [trained, trained.parent, folder, folder.parent]
    home = next((h for h in homes if (h / STAGES).is_file()), folder)
    stages = _stages(home / STAGES)
    scores = _named_classes(list(_stage_scores(stages, home)))
    return Run(
        folder=folder,
        shown=shown,
        result_dir=result_dir,
        metrics=metrics,
        stages=stages,
        numbers=[*_own_numbers(metrics), *scores],
        sweeps={**_own_sweeps(metrics), **_stage_sweeps(scores)},
        scalars=_scalars(stages, home) or {'': read_scalars(trained)},
    )


def _stages(record: Path) -> dict[str, dict]:
    """The stages; earlier records told a finished one by the time alone."""
    return {
        name: {
            'seconds': 0.0,
            'state': 'done' if entry.get('finished') else 'begun',
            **entry,
        }
        for name, entry in read_record(record).items()
    }


def _trained(folder: Path, metrics: Mapping) -> Path:
    """The work directory whose checkpoint was scored."""
    if any(folder.glob(_LOGS)):
        return folder
    named = metrics.get('run', {}).get('run_dir')
    found = _below(folder, named) if named else None
    if found is None and any(folder.parent.glob(_LOGS)):
        found = folder.parent
    return found or folder


def _below(folder: Path, text: str) -> Path | None:
    """Find a path that was noted in another working directory or has been moved."""
    path = Path(text)
    for base in (folder, folder.parent):
        for i in range(len(path.parts)):
            # An absolute path stands for itself.
            candidate = base.joinpath(*path.parts[i:])
            if candidate.exists():
                return candidate
    return path if path.exists() else None


# -------------------------------------------------------------------------- the parts
def _own_numbers(metrics: dict) -> Iterator[dict]:
    for number in metrics.get('numbers', ()):
        split = SPLIT_TITLES[number['split']].split()[0].lower()
        yield {**number, 'long_title': f'{number["title"]}, {split}'}


def _option(entry: Mapping, name: str) -> str | None:
    command = entry.get('command', [])
    return command[command.index(name) + 1] if name in command[:-1] else None


def tool_of(entry: Mapping) -> str:
    """Name of the tool that a stage calls."""
    scripts = [word for word in entry.get('command', ()) if word.endswith('.py')]
    return Path(scripts[0]).name if scripts else ''


def _stage_scores(stages: Mapping[str, dict], home: Path) -> Iterator[dict]:
    for name, entry in stages.items():
        written = _option(entry, '--json')
        path = _below(home, written) if written else None
        table = read_json(path) if path else {}
        if 'miou' in table and 'per_class' in table:
            yield {
                **table,
                'key': f'stage/{name}',
                'split': 'stage',
                'title': name,
                'long_title': name,
                'policy': table.get('policy') or table.get('images_from', ''),
            }


def _named_classes(scores: list[dict]) -> list[dict]:
    """Give the classes the names that other scores of the run know.

    Label maps know their classes by number alone; CAM stores know the names, too.
    """
    names = {}
    for score in scores:
        own = [entry['name'] for entry in score['per_class']]
        if own[1:] != [f'class {i}' for i in range(1, len(own))]:
            names.setdefault(len(own), own)
    return [
        {
            **score,
            'per_class': [
                {**entry, 'name': name}
                for entry, name in zip(score['per_class'], known, strict=True)
            ],
        }
        if (known := names.get(len(score['per_class'])))
        else score
        for score in scores
    ]


def _own_sweeps(metrics: dict) -> dict[str, dict]:
    numbers = {n['key']: n for n in metrics.get('numbers', ())}
    chosen = numbers.get('train/raw_cams', {}).get('threshold')
    return {
        f'Raw CAMs, {SPLIT_TITLES[split].lower()}': {**sweep, 'chosen': chosen}
        for split, sweep in metrics.get('sweeps', {}).items()
    }


def _stage_sweeps(scores: Sequence[dict]) -> dict[str, dict]:
    found = {}
    for score in scores:
        rows = score.get('sweep') or []
        sweep = {
            'thresholds': [row['threshold'] for row in rows],
            'miou': [row['miou'] for row in rows],
            'chosen': score.get('threshold'),
        }
        # A store may be scored once more, to compare it at another threshold.
        if rows and sweep not in found.values():
            found[score['title']] = sweep
    return found


def _scalars(stages: Mapping[str, dict], home: Path) -> dict[str, Scalars]:
    found = {}
    for name, entry in stages.items():
        work_dir = _option(entry, '--work-dir')
        if tool_of(entry) == 'train.py' and work_dir:
            path = _below(home, work_dir)
            scalars = read_scalars(path) if path else {}
            if scalars:
                found[name] = scalars
    # With one training its name tells nothing.
    return {'': next(iter(found.values()))} if len(found) == 1 else found


# ------------------------------------------------------------------------- the groups
def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put the runs that differ in the seed alone together, in order of appearance."""
    by_path: dict[Path, list[Run]] = {}
    for run in runs:
        by_path.setdefault(run.group, []).append(run)
    names = _short_names(list(by_path))
    return [
        Group(
            name=name,
            color=f'c{i % NUM_COLORS}',
            runs=sorted(own, key=lambda run: run.seed or 0),
        )
        for i, (name, own) in enumerate(zip(names, by_path.values(), strict=True))
    ]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Last parts of each path, as many as it takes to tell them apart."""
    names = []
    for path in paths:
        for count in range(1, len(path.parts) + 1):
            name = '/'.join(path.parts[-count:])
            same = [p for p in paths if '/'.join(p.parts[-count:]) == name]
            if len(same) == 1:
                break
        names.append(name)
    return names
