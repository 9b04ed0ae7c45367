"""Score a trained run: raw CAMs, refined labels and the segmentor.

    python tools/evaluate.py CONFIG CHECKPOINT --out DIR

CHECKPOINT is a file, or a work directory whose last checkpoint is taken. Writes
DIR/metrics.json and DIR/pictures; a finished split is not computed again.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from mmwsss.apis.cli import add_trust_argument, run_tool
from mmwsss.apis.evaluate import EvaluationOptions, evaluate_run


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='receives everything')
    parser.add_argument(
        '--split', choices=('train', 'val'), action='append', help='default: both'
    )
    parser.add_argument('--num-pictures', type=int, default=12, help='per split')
    parser.add_argument('--device', help='default: the GPU if there is one')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> int:
    """Score and print one line per number."""
    args = parse_args()
    metrics = evaluate_run(
        args.config,
        args.checkpoint,
        args.out,
        options=EvaluationOptions(
            splits=tuple(dict.fromkeys(args.split or ('train', 'val'))),
            num_pictures=args.num_pictures,
        ),
        device=args.device,
        progress=lambda loader, split: tqdm(
            loader, desc=f'scoring {split}', unit='photo', mininterval=1
        ),
    )
    for number in metrics['numbers']:
        miou = '-' if number['miou'] is None else f'{number["miou"]:.2f}'
        kept = f', {number["kept"]:.1f} % kept' if number['kept'] < 100 else ''
        print(
            f'{number["split"]:<5} {number["title"]:<16} mIoU {miou:>6}   '
            f'{number["images"]} photos; {number["policy"]}{kept}'
        )
    print(f'written: {args.out / "metrics.json"}')
    return 0


if __name__ == '__main__':
    run_tool(main)
