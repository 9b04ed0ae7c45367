"""Run a recipe: all its runs, then one table; run again, it goes on.

    python tools/run_recipe.py configs/recipes/clipdino_ablation_msrc.py

The table stands in WORK_DIR/ablation.md, the numbers in WORK_DIR/ablation.json.
"""

import argparse
from pathlib import Path

from mmwsss.apis.ablation import load_ablation, run_all, run_one, summarize
from mmwsss.apis.cli import run_tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('recipe', type=Path)
    parser.add_argument('--only', metavar='RUN', help='one run, in this process')
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at a time; they share the cores'
    )
    parser.add_argument('--dry-run', action='store_true', help='name the runs and stop')
    parser.add_argument(
        '--table', action='store_true', help='only the table of what is done'
    )
    return parser.parse_args()


def main() -> int:
    """Run what is missing and print the table."""
    args = parse_args()
    ablation = load_ablation(args.recipe)
    root = Path(__file__).resolve().parents[1]
    if args.dry_run:
        print('\n'.join(ablation.runs()))
        return 0
    if args.only:
        run_one(ablation, args.only, root=root)
        return 0
    if not args.table:
        run_all(ablation, args.recipe, root=root, jobs=args.jobs)
    summarize(ablation)
    print((ablation.work_dir / 'ablation.md').read_text())
    return 0


if __name__ == '__main__':
    run_tool(main)
