"""Draw the synthetic benchmark: photos, masks and image labels in VOC's layout.

    python tools/make_synthetic.py data/synthetic

The same arguments give the same bytes. A folder that is complete is left alone.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from mmwsss.apis.cli import run_tool
from mmwsss.datasets.synthetic import generate


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', type=Path, help='folder to make')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--num-train', type=int, default=600)
    parser.add_argument('--num-val', type=int, default=150)
    return parser.parse_args()


def main() -> None:
    """Draw with a progress bar."""
    args = parse_args()
    with tqdm(desc='drawing', unit='photo') as bar:

        def advance(_: int, total: int) -> None:
            bar.total = total
            bar.update()

        drawn = generate(
            args.root,
            seed=args.seed,
            num_train=args.num_train,
            num_val=args.num_val,
            progress=advance,
        )
    verb = 'drawn' if drawn else 'already there'
    print(f'{args.num_train} train and {args.num_val} val photos {verb}: {args.root}')


if __name__ == '__main__':
    run_tool(main)
