"""Write the report of a scored run as one HTML file.

    python tools/report.py DIR [--run WORK_DIR]

DIR is what tools/evaluate.py wrote; the report is DIR/report.html.
"""

import argparse
from pathlib import Path

from mmwsss.apis.cli import run_tool
from mmwsss.visualization.report import write_report


def main() -> int:
    """Write the report and print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('dir', type=Path)
    parser.add_argument('--run', type=Path, help='work directory with the training log')
    args = parser.parse_args()
    print(f'written: {write_report(args.dir, run_dir=args.run)}')
    return 0


if __name__ == '__main__':
    run_tool(main)
