"""Run a recipe: all its stages for all rows and seeds; run again, it goes on.

    python tools/run_recipe.py configs/recipes/aesipe_msrc.py --dry-run
    python tools/run_recipe.py configs/recipes/aesipe_msrc.py --jobs 3
    python tools/run_recipe.py configs/recipes/aesipe_msrc.py --from 'make IR labels'
    python tools/run_recipe.py configs/recipes/aesipe_msrc.py --run seed_0 --only test

Numbers, time and memory stand in WORK_DIR/summary.md and WORK_DIR/summary.json, the
state of each run in its folder's stages.json, its messages in log.txt.
"""

import argparse
from pathlib import Path

from mmwsss.apis.cli import run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('recipe', type=Path)
    parser.add_argument(
        '--run', help='only this one, named as its folder, and in this process'
    )
    parser.add_argument(
        '--from',
        dest='redo',
        metavar='STAGE',
        help='begin this stage, and all that need it, from scratch',
    )
    parser.add_argument(
        '--only', metavar='STAGE', help='no other stage; what it needs must be done'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at a time; they share the cores'
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--dry-run', action='store_true', help='say what would run and why, and stop'
    )
    what.add_argument(
        '--table', action='store_true', help='only the summary of what is done'
    )
    return parser.parse_args()


def main() -> int:
    """Run what is missing and print the summary."""
    args = parse_args()
    # Late, so that a missing package is reported like any other mistake.
    from mmwsss.apis.recipe import check_stage_names, load_recipe
    from mmwsss.apis.recipe_runs import format_plan, run_all, run_one
    from mmwsss.apis.recipe_summary import format_summary, summarize

    root = Path(__file__).resolve().parents[1]
    recipe = load_recipe(args.recipe, root=root)
    check_stage_names(recipe, [args.redo, args.only])
    chosen = dict(root=root, redo=args.redo, only=args.only)
    if args.dry_run:
        print(format_plan(recipe, run=args.run, **chosen))
        return 0
    if args.run and not args.table:
        run_one(recipe, args.run, **chosen)
        return 0
    if not args.table:
        options = {'--from': args.redo, '--only': args.only}
        words = [w for option, name in options.items() if name for w in (option, name)]
        run_all(recipe, root=root, jobs=args.jobs, options=words)
    print(format_summary(summarize(recipe, root=root)))
    return 0


if __name__ == '__main__':
    run_tool(main)
