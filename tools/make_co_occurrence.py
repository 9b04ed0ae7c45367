"""Draw the co-occurrence benchmark: smoke that never comes without a chimney.

    python tools/make_co_occurrence.py data/co_occurrence --p-dis-neg 0.2

--p-dis-neg is the dial: the share of the photos without smoke that have a chimney. The
same arguments give the same bytes. A folder that is complete is left alone.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from mmwsss.apis.cli import run_tool
from mmwsss.datasets.co_occurrence import SPLITS, CoOccurrence, generate


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = CoOccurrence()
    parser.add_argument('root', type=Path, help='folder to make')
    parser.add_argument(
        '--p-dis-neg',
        type=float,
        default=default.p_dis_neg,
        help='share of the train photos without the object that have its distractor '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--p-dis-pos',
        type=float,
        default=default.p_dis_pos,
        help='the same for those with the object (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument(
        '--size', type=int, default=default.size, help='side in pixels, 48 or 96'
    )
    parser.add_argument('--num-pos', type=int, default=default.num_pos)
    parser.add_argument('--num-neg', type=int, default=default.num_neg)
    parser.add_argument(
        '--cells',
        type=int,
        nargs=4,
        default=default.cells,
        metavar='N',
        help='photos of val, and of test, with object and distractor, with the '
        'distractor only, the object only, neither (default: 150 150 150 100)',
    )
    parser.add_argument(
        '--num-classes',
        type=int,
        default=1,
        help='2 adds boats, whose distractor is a pond',
    )
    parser.add_argument(
        '--frames', type=int, default=1, help='more than 1 draws clips, for example 8'
    )
    return parser.parse_args()


def main() -> None:
    """Draw with a progress bar."""
    args = parse_args()
    settings = CoOccurrence(
        seed=args.seed,
        size=args.size,
        num_classes=args.num_classes,
        num_frames=args.frames,
        num_pos=args.num_pos,
        num_neg=args.num_neg,
        p_dis_pos=args.p_dis_pos,
        p_dis_neg=args.p_dis_neg,
        cells=tuple(args.cells),
    )
    with tqdm(desc='drawing', unit='photo', disable=None) as bar:

        def advance(_: int, total: int) -> None:
            bar.total = total
            bar.update()

        drawn = generate(args.root, settings, progress=advance)
    verb = 'drawn' if drawn else 'already there'
    counts = ', '.join(f'{settings.count(split)} {split}' for split in SPLITS)
    what = 'photos' if args.frames == 1 else f'clips of {args.frames} frames'
    print(f'{counts} {what} {verb}: {args.root}')


if __name__ == '__main__':
    run_tool(main)
