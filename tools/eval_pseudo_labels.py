"""Score a folder of label maps against masks.

    python tools/eval_pseudo_labels.py PRED GT --list val.txt --classes classes.txt

Both folders hold index maps named ID.png (or lossless ID.webp); 255 in a mask is not
scored. The numbers are percent; a class without pixels is left out of the mean.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from mmwsss.apis.cli import run_tool
from mmwsss.apis.label_folders import (
    evaluate_folders,
    format_table,
    read_class_names,
    read_ids,
)
from mmwsss.errors import InputError
from mmwsss.evaluation.meters import UNDECIDED_POLICIES
from mmwsss.files import write_json


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('pred', type=Path, help='folder with the label maps')
    parser.add_argument('target', type=Path, metavar='gt', help='folder with the masks')
    parser.add_argument('--list', type=Path, help='ids to score; all of PRED if absent')
    names = parser.add_mutually_exclusive_group()
    names.add_argument('--classes', type=Path, help='class names, one a line')
    names.add_argument(
        '--num-classes', type=int, default=21, help='with background (default: 21)'
    )
    parser.add_argument(
        '--undecided',
        choices=sorted(UNDECIDED_POLICIES),
        default='leave_out',
        help='what 255 in a label map means (default: leave_out)',
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    return parser.parse_args()


def main() -> int:
    """Score and print."""
    args = parse_args()
    if not 1 <= args.num_classes <= 255:
        raise InputError(f'--num-classes must be 1 to 255, got {args.num_classes}')
    if args.classes:
        classes = read_class_names(args.classes)
    else:
        objects = [f'class {i}' for i in range(1, args.num_classes)]
        classes = ['background', *objects]
    table = evaluate_folders(
        args.pred,
        args.target,
        ids=read_ids(args.list) if args.list else None,
        classes=classes,
        undecided=args.undecided,
        progress=lambda names: tqdm(names, unit='image', disable=None),
    )
    print(format_table(table))
    if args.json:
        write_json(args.json, table)
    return 0


if __name__ == '__main__':
    run_tool(main)
