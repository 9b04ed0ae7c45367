"""Write the report of a run, or of several side by side, as one HTML file.

    python tools/report.py DIR
    python tools/report.py DIR DIR ... --out comparison.html

DIR is what tools/evaluate.py wrote, a run's folder (finished or not), or a recipe's
folder, whose runs are compared. The page of one DIR is DIR/report.html.
"""

import argparse
from pathlib import Path

from mmwsss.apis.cli import run_tool
from mmwsss.visualization.report import write_report
from mmwsss.visualization.report_gallery import MAX_PHOTOS


def main() -> int:
    """Write the report and print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('dirs', type=Path, nargs='+', metavar='DIR')
    parser.add_argument('--out', type=Path, help='the page (default: DIR/report.html)')
    parser.add_argument('--run', type=Path, help='work directory with the training log')
    parser.add_argument(
        '--max-photos',
        type=int,
        default=MAX_PHOTOS,
        help='photos shown of each set, all runs together (default: %(default)s)',
    )
    args = parser.parse_args()
    page = write_report(
        args.dirs, out=args.out, run_dir=args.run, max_photos=args.max_photos
    )
    print(f'written: {page}')
    return 0


if __name__ == '__main__':
    run_tool(main)
