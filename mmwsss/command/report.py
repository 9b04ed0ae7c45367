"""``mmwsss report``: what tools/report.py does."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    dry_run_option,
    overwrite_option,
    refuse_existing,
    show_plan,
    verb,
)
from mmwsss.errors import InputError


@verb(
    'report',
    example='mmwsss report work_dirs/evaluation\n'
    'mmwsss report work_dirs/first work_dirs/second --out comparison.html',
)
@click.argument('folders', type=FILE, nargs=-1, required=True)
@click.option(
    '--out', type=FILE, help='The page; default: report.html in the one folder.'
)
@click.option(
    '--run', 'run_dir', type=FILE, help='Work directory with the training log.'
)
@click.option(
    '--max-photos', type=int, help='Photos shown of each set, all runs together.'
)
@overwrite_option('the page that is there')
@dry_run_option
def command(
    folders: tuple[Path, ...],
    out: Path | None,
    run_dir: Path | None,
    max_photos: int | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Write one HTML page about a run, or one that compares several.

    FOLDERS are what `mmwsss evaluate` wrote, runs' folders, or that of a recipe.
    """
    from mmwsss.visualization.report import write_report
    from mmwsss.visualization.report_gallery import MAX_PHOTOS

    if out is None and len(folders) > 1:
        raise InputError('a page about several folders needs a name; give --out FILE')
    page = out or folders[0] / 'report.html'
    refuse_existing(page, overwrite=overwrite)
    if dry_run:
        show_plan(
            reads={'runs': ', '.join(map(str, folders))},
            writes={'page': page},
            to_make=1,
        )
        return
    with Run('report', folder=page.parent) as run:
        written = write_report(
            folders,
            out=page,
            run_dir=run_dir,
            max_photos=MAX_PHOTOS if max_photos is None else max_photos,
        )
        print(f'written: {written}')
        run.ok(str(written))
