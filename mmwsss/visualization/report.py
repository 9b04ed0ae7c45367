"""Writes the report of a run or of several: one HTML file with everything inside."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmwsss.errors import InputError, tool
from mmwsss.files import write_text
from mmwsss.visualization import report_charts as charts
from mmwsss.visualization import report_comparison as comparison
from mmwsss.visualization.report_gallery import MAX_PHOTOS, gallery
from mmwsss.visualization.report_runs import (
    SPLIT_TITLES,
    Group,
    Run,
    find_runs,
    grouped,
)

# More runs than these are compared in rows, side by side they would leave the page.
MAX_COLUMNS = 3
# By this a report is told from any other file that --out might name.
_SIGN = '· mmwsss report</title>'


def write_report(
    folders: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    run_dir: str | Path | None = None,
    max_photos: int = MAX_PHOTOS,
) -> Path:
    """Write one page about a run, or one that compares several.

    Args:
        folders: One or more folders, each as for
            :func:`mmwsss.visualization.report_runs.find_runs`: a run's folder,
            finished or not, what :func:`mmwsss.apis.evaluate.evaluate_run` wrote, or a
            recipe's folder, whose runs are compared.
        out: The page; ``report.html`` in the folder if there is one.
        run_dir: Work directory with the training log and ``stages.json``, where that
            is not the folder of the checkpoint.
        max_photos: Photos shown of each set, all runs together.

    Returns:
        The path of the page.

    Raises:
        InputError: Nothing to report, a broken picture, or ``out`` is another file.
    """
    one = isinstance(folders, str | Path)
    folders = [Path(folders)] if one else [Path(folder) for folder in folders]
    if max_photos < 0:
        raise InputError(f'the number of photos must be 0 or more, got {max_photos}')
    if out is None and len(folders) != 1:
        raise InputError(
            'a comparison of several folders belongs to none of them; say where the '
            'page goes, for example --out comparison.html'
        )
    path = folders[0] / 'report.html' if out is None else Path(out)
    _check_page(path)
    runs = find_runs(folders, run_dir=None if run_dir is None else Path(run_dir))
    groups = grouped(runs)
    photos = gallery(groups, max_photos=max_photos)
    content = _of_one(runs[0]) if len(runs) == 1 else _of_several(groups)
    html = (
        _environment()
        .get_template('report.html.j2')
        .render(
            **content,
            training=charts.training_charts(groups),
            curves_in_sight=charts.CURVES_IN_SIGHT,
            gallery=photos,
            left_out=_left_out(runs, photos),
        )
    )
    write_text(path, html)
    return path


def _check_page(path: Path) -> None:
    """Raise InputError for a file that is no report, so that nothing is lost."""
    if path.is_dir():
        raise InputError(f'{path} is a folder; name a file for the page')
    if path.is_file():
        with path.open('rb') as stream:
            begin = stream.read(2000).decode('utf-8', errors='replace')
        if _SIGN not in begin:
            raise InputError(
                f'{path} is there and is no report; give another --out or remove it'
            )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader('mmwsss.visualization'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['score'] = _score
    environment.filters['change'] = _change
    return environment


def _score(value: float | None, digits: int = 2) -> str:
    return 'none' if value is None else f'{value:.{digits}f}'


def _change(value: float) -> str:
    # A minus as wide as the plus, so that columns of them align.
    return f'{value:+.2f}'.replace('-', '\N{MINUS SIGN}')


def _of_one(run: Run) -> dict:
    return {
        'kind': 'run',
        'name': _name(run),
        'intro': _intro(run),
        'steps': charts.steps(run),
        'numbers': charts.number_cards(run),
        'scores': [n for n in run.numbers if n['split'] == 'stage'],
        'bars': charts.step_bars(run),
        # Where there are three steps they are shown side by side.
        'panels': [] if run.metrics else comparison.class_panels(grouped([run])),
        'confusion': charts.confusion_panels(run),
        'sweep': charts.sweep_chart(run),
        'reliability': charts.reliability_charts(run),
        'histograms': charts.photo_histograms(run),
        'timeline': charts.timeline(run),
        'facts': _facts(run),
    }


def _of_several(groups: Sequence[Group]) -> dict:
    runs = [run for group in groups for run in group.runs]
    names = [group.name for group in groups]
    return {
        'kind': 'comparison',
        'max_columns': MAX_COLUMNS,
        'name': f'{groups[0].name}, {len(runs)} seeds'
        if len(groups) == 1
        else ', '.join(names)
        if len(names) <= MAX_COLUMNS
        else f'Comparison of {len(names)} runs',
        'groups': groups,
        'table': comparison.number_table(groups),
        'panels': comparison.class_panels(groups),
        'sweeps': comparison.sweep_panels(groups),
        'calibration': comparison.calibration_panels(groups),
        'times': comparison.time_table(groups),
        'seeds': any(len(group.runs) > 1 for group in groups),
    }


def _name(run: Run) -> str:
    config = run.metrics.get('run', {}).get('config')
    if config and Path(config).stem != 'config':
        return Path(config).stem
    return '/'.join(run.home.parts[-2:]) if run.seed is not None else run.home.name


def _intro(run: Run) -> str:
    if not run.metrics:
        return 'What this run has written so far.'
    scored = {
        split: count - run.metrics['without_mask'].get(split, 0)
        for split, count in run.metrics['photos'].items()
    }
    sets = [f'{n:,} {SPLIT_TITLES[s].lower()}' for s, n in scored.items() if n]
    objects = len(run.metrics['classes']) - 1
    return (
        f'Trained with image labels only. Scored against the masks of '
        f'{" and ".join(sets) or "no photos"}, {objects} object '
        f'{"class" if objects == 1 else "classes"} and background.'
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    about = run.metrics.get('run', {})
    versions = about.get('versions', {})
    facts = [
        ('Folder', run.shown),
        ('Config', about.get('config')),
        ('Checkpoint', about.get('checkpoint')),
        ('Iteration', about.get('iteration')),
        ('Seed', about.get('seed', run.seed)),
        ('Scored', about.get('date')),
        ('Device', about.get('device')),
        ('Versions', ', '.join(f'{k} {v}' for k, v in versions.items())),
    ]
    if not run.stages:
        for split, seconds in run.metrics.get('seconds', {}).items():
            facts.append((f'Time to score {split}', f'{seconds:,.0f} s'))
    return [(key, str(value)) for key, value in facts if value not in (None, '')]


def _left_out(runs: Sequence[Run], photos: dict) -> list[tuple[str, str]]:
    """What has no section on this page, and why."""
    score = f'score a checkpoint with {tool("evaluate")}'
    reasons = {
        'Numbers and classes': (
            any(run.numbers for run in runs),
            f'nothing has been scored yet; {score}.',
        ),
        'Confusion': (
            len(runs) > 1 or any(run.metrics.get('confusion') for run in runs),
            f'no confusion was recorded; {score}.',
        ),
        'Threshold sweep': (
            any(sweep['miou'] for run in runs for sweep in run.sweeps.values()),
            'no CAMs have been scored at several thresholds.',
        ),
        'Reliability': (
            any(run.metrics.get('reliability') for run in runs),
            'no scored model estimates the reliability of its labels.',
        ),
        'Training curves': (
            any(any(run.scalars.values()) for run in runs),
            'no training log was found; name its work directory with --run.',
        ),
        'Timeline': (
            any(run.stages for run in runs),
            f'there is no stages.json, which {tool("run_recipe")} writes.',
        ),
        'Photos': (bool(photos), _why_no_photos(runs)),
    }
    return [(name, why) for name, (there, why) in reasons.items() if not there]


def _why_no_photos(runs: Sequence[Run]) -> str:
    pictures = [any(run.metrics.get('pictures', {}).values()) for run in runs]
    if sum(pictures) > 1:
        return 'the runs have drawn no photo in common.'
    return f'no pictures were drawn; {tool("evaluate")} draws them.'
