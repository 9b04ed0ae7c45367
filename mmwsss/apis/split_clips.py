"""Lists of clips for training, validation and test that share no camera."""

import argparse
from pathlib import Path

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.datasets.clips import check_apart, load_clips, read_clip_ids, split_clips
from mmwsss.errors import InputError
from mmwsss.files import write_text


def split_clips_command() -> int:
    """Parse the command line, write or check the lists, say what is in them."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    clips = load_clips(args.clips)
    if args.check:
        splits = {path: read_clip_ids(path) for path in args.check}
        check_apart(clips, splits)
        print(f'no group is in two of {", ".join(args.check)}')
        counts.ok = len(splits)
        return
    if args.out is None:
        raise InputError('give --out, the folder of the lists, or --check')
    shares = {'train': 1 - args.val - args.test, 'val': args.val, 'test': args.test}
    shares = {name: share for name, share in shares.items() if share or name == 'train'}
    splits = split_clips(clips, shares, seed=args.seed)
    there = [p for p in map(_file(args.out), splits) if p.exists()]
    if there and not args.overwrite:
        raise InputError(
            f'{there[0]} is there already; add --overwrite or give another --out'
        )
    for name, ids in splits.items():
        write_text(_file(args.out)(name), ''.join(f'{i}\n' for i in ids))
        groups = {clips.clips[i].group for i in ids}
        print(f'{_file(args.out)(name)}: {len(ids)} clips of {len(groups)} groups')
    counts.ok = len(splits)


def _file(folder: Path):
    return lambda name: folder / f'{name}_clips.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Split a list of clips by group (camera), never by clip or frame: '
        'OUT/train_clips.txt, OUT/val_clips.txt, OUT/test_clips.txt, one clip id a '
        'line; or check lists that are there.'
    )
    parser.add_argument('clips', help='the JSON of clips')
    parser.add_argument('--out', type=Path, help='folder of the lists')
    parser.add_argument(
        '--val', type=float, default=0.2, help='share of the clips (default: 0.2)'
    )
    parser.add_argument(
        '--test', type=float, default=0.0, help='share of the clips (default: 0)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the order of groups')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace lists that are there'
    )
    parser.add_argument(
        '--check',
        nargs='+',
        metavar='LIST',
        help='instead: refuse these lists if a group is in two of them',
    )
