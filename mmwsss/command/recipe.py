"""``mmwsss recipe``: what tools/run_recipe.py does, by name."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmwsss.command.common import ConfigName, Run, dry_run_option, verb
from mmwsss.command.found import RECIPES, resources

if TYPE_CHECKING:
    from mmwsss.apis.recipe import Recipe


@verb(
    'recipe',
    example='mmwsss recipe orand_msrc --dry-run\nmmwsss recipe orand_msrc --jobs 3',
)
@click.argument('recipe', type=ConfigName(folder=RECIPES), metavar='RECIPE')
@click.option('--run', 'run_name', help='Only this run, named as its folder.')
@click.option(
    '--from',
    'redo',
    metavar='STAGE',
    help='Begin this stage, and all that need it, from scratch.',
)
@click.option(
    '--only', metavar='STAGE', help='No other stage; what it needs must be done.'
)
@click.option(
    '--jobs',
    default=1,
    show_default=True,
    help='Runs at a time; they share the cores.',
)
@click.option('--table', is_flag=True, help='Only the summary of what is done.')
@dry_run_option
def command(
    recipe: Path,
    run_name: str | None,
    redo: str | None,
    only: str | None,
    jobs: int,
    table: bool,
    dry_run: bool,
) -> None:
    """Run all stages of RECIPE, a name from `mmwsss configs` or a file.

    Run again, it goes on where it stopped; a stage runs again when its inputs changed.
    """
    from mmwsss.apis.recipe import check_stage_names, load_recipe
    from mmwsss.apis.recipe_runs import format_plan, run_all, run_one
    from mmwsss.apis.recipe_summary import format_summary, summarize

    root = resources()
    content = load_recipe(recipe, root=root)
    check_stage_names(content, [redo, only])
    chosen = dict(root=root, redo=redo, only=only)
    if dry_run:
        print(format_plan(content, run=run_name, **chosen))
        print('dry run: nothing was written')
        return
    if table:
        print(format_summary(summarize(content, root=root)))
        return
    with Run('recipe', folder=content.work_dir) as run:
        runs = [run_name] if run_name else list(content.runs())
        before = _records(content, runs)
        try:
            if run_name:
                run_one(content, run_name, **chosen)
            else:
                options = {'--from': redo, '--only': only}
                words = [w for name, x in options.items() if x for w in (name, x)]
                run_all(content, root=root, jobs=jobs, options=words)
        finally:
            _count(run, before, _records(content, runs), only=only)
        if not run_name:
            print(format_summary(summarize(content, root=root)))


Records = dict[tuple[str, str], dict]


def _records(recipe: 'Recipe', runs: list[str]) -> Records:
    """What ``stages.json`` says: run and stage -> entry."""
    from mmwsss.apis.recipe_runs import RECORD
    from mmwsss.apis.stages import read_record

    return {
        (name, stage): entry
        for name in runs
        for stage, entry in read_record(recipe.work_dir / name / RECORD).items()
    }


def _count(run: Run, before: Records, after: Records, *, only: str | None) -> None:
    for (name, stage), entry in after.items():
        if only not in (None, stage):
            continue
        item = f'{name}: {stage}'
        if not entry.get('finished'):
            run.failed(item, reason=entry.get('state', 'not done'))
        elif before.get((name, stage)) == entry:
            run.skipped(item)
        else:
            run.ok(item)
