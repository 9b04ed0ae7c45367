"""The command behind tools/eval_pseudo_labels.py: label maps or CAMs against masks."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.label_folders import (
    MAP_SUFFIXES,
    evaluate_folders,
    format_table,
    read_class_names,
    read_ids,
)
from mmwsss.errors import InputError, tool
from mmwsss.evaluation.meters import UNDECIDED_POLICIES
from mmwsss.files import write_json

if TYPE_CHECKING:
    from mmwsss.apis.cam_scores import SweepOptions


def eval_pseudo_labels_command() -> int:
    """Parse the command line, score, print."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    # Counting is done on small tensors, which several threads make many times slower
    # as soon as the machine has something else to do; --jobs is what speeds it up.
    torch.set_num_threads(1)
    if args.num_classes is not None and not 1 <= args.num_classes <= 255:
        raise InputError(f'--num-classes must be 1 to 255, got {args.num_classes}')
    ids = read_ids(args.list) if args.list else None
    table = _score_cams(args, ids) if _holds_cams(args.pred) else _score_maps(args, ids)
    print(f'images: {table["images_from"]}')
    if args.json:
        write_json(args.json, table)
    if args.curve:
        _draw(args.curve, table)
    counts.ok = table['images']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Score label maps or stored CAMs against masks, in percent. 255 in '
        'a mask is not scored; a class without pixels is left out of the mean.'
    )
    parser.add_argument(
        'pred',
        type=Path,
        help='a folder of index maps (ID.png or lossless ID.webp), or a store of '
        f'{tool("make_cams")}, whose CAMs are cut at every threshold',
    )
    parser.add_argument('target', type=Path, metavar='gt', help='folder with the masks')
    parser.add_argument('--list', type=Path, help='ids to score; all of PRED if absent')
    names = parser.add_mutually_exclusive_group()
    names.add_argument('--classes', type=Path, help='class names, one a line')
    names.add_argument(
        '--num-classes',
        type=int,
        help="with background (default: a store's own classes, else 21)",
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    parser.add_argument(
        '--jobs', type=int, default=1, help='processes that share the images'
    )
    maps = parser.add_argument_group('label maps')
    maps.add_argument(
        '--undecided',
        choices=sorted(UNDECIDED_POLICIES),
        help='what 255 in a label map means (default: leave_out)',
    )
    cams = parser.add_argument_group('stored CAMs')
    cams.add_argument(
        '--thresholds',
        nargs='+',
        metavar='T',
        help='of the sweep, numbers or LOW:HIGH:STEP (default: 0.01:0.99:0.01)',
    )
    cams.add_argument(
        '--threshold', type=float, help='scored without a choice (default: 0.25)'
    )
    cams.add_argument(
        '--threshold-from',
        type=Path,
        metavar='JSON',
        help="take another evaluation's best threshold, for example that of train",
    )
    cams.add_argument(
        '--at-recall',
        nargs='+',
        metavar='JSON',
        help='score also where the recall (mean over classes, background included) is '
        "that of another evaluation: a store's at its best threshold or label maps'; "
        'of several the one with the highest mIoU; or a number in percent',
    )
    cams.add_argument(
        '--curve',
        type=Path,
        metavar='PNG',
        help='draw mIoU, precision and recall against the threshold',
    )


def _holds_cams(folder: Path) -> bool:
    """Whether a folder holds CAMs and not label maps."""
    stored = next(folder.rglob('*.npz'), None)
    if stored is None:
        return False
    for suffix in MAP_SUFFIXES:
        label_map = stored.with_suffix(suffix)
        if label_map.exists():
            raise InputError(
                f'{folder} holds CAMs and label maps ({stored.name}, '
                f'{label_map.name}); move one kind to another folder'
            )
    return True


def _refuse(args: argparse.Namespace, names: Iterable[str], kind: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            option = name.replace('_', '-')
            raise InputError(
                f'--{option} is for {kind}, which {args.pred} does not hold'
            )


def _images_from(args: argparse.Namespace) -> str:
    return f'the list {args.list}' if args.list else f'all of {args.pred}'


def _progress(done: Iterable, total: int) -> Iterable:
    return tqdm(done, total=total, unit='image', disable=None)


def _names(args: argparse.Namespace) -> list[str]:
    """Class names that the command line gives, 21 without."""
    if args.classes:
        return read_class_names(args.classes)
    objects = [f'class {i}' for i in range(1, args.num_classes or 21)]
    return ['background', *objects]


def _score_maps(args: argparse.Namespace, ids: list[str] | None) -> dict:
    for_cams = ('thresholds', 'threshold', 'threshold_from', 'at_recall', 'curve')
    _refuse(args, for_cams, 'stored CAMs')
    table = evaluate_folders(
        args.pred,
        args.target,
        ids=ids,
        classes=_names(args),
        undecided=args.undecided or 'leave_out',
        jobs=args.jobs,
        progress=_progress,
    )
    print(format_table(table))
    return {**table, 'images_from': _images_from(args)}


def _score_cams(args: argparse.Namespace, ids: list[str] | None) -> dict:
    # Needs the mm packages, which label maps do not.
    from mmwsss.apis.cam_scores import evaluate_store, format_policies

    _refuse(args, ('undecided',), 'label maps')
    if args.curve and args.curve.suffix.lower() != '.png':
        raise InputError(f'--curve draws a PNG, got {args.curve}; name it FILE.png')
    table = evaluate_store(
        args.pred,
        args.target,
        ids=ids,
        classes=_store_names(args),
        options=_sweep_options(args),
        jobs=args.jobs,
        progress=_progress,
    )
    print(format_policies(table['policies']))
    print(f'\npolicy {table["headline"]}:')
    print(format_table(table))
    return {**table, 'images_from': _images_from(args)}


def _sweep_options(args: argparse.Namespace) -> 'SweepOptions':
    from mmwsss.apis.cam_scores import (
        GivenRecall,
        GivenThreshold,
        SweepOptions,
        checked_threshold,
        parse_thresholds,
    )

    options = {}
    if args.thresholds is not None:
        options['thresholds'] = parse_thresholds(args.thresholds)
    if args.threshold is not None:
        options['fixed'] = checked_threshold(args.threshold)
    if args.threshold_from is not None:
        options['given'] = GivenThreshold.read(args.threshold_from)
    if args.at_recall is not None:
        options['recall'] = GivenRecall.read(args.at_recall)
    return SweepOptions(**options)


def _store_names(args: argparse.Namespace) -> list[str]:
    """Class names of a store, which must be those of the command line."""
    from mmwsss.apis.cam_scores import recorded_classes

    recorded = recorded_classes(args.pred)
    if recorded is None:
        return _names(args)
    if args.num_classes not in (None, len(recorded) + 1):
        raise InputError(
            f'--num-classes is {args.num_classes}, but {args.pred} was made with '
            f'{len(recorded) + 1} classes with background'
        )
    names = ['background', *recorded]
    if args.classes and _names(args) != names:
        raise InputError(
            f'{args.classes} does not name the classes that {args.pred} was made with: '
            f'{", ".join(recorded)}; leave --classes out to take those'
        )
    return names


def _draw(path: Path, table: dict) -> None:
    from mmwsss.visualization.sweep_curve import sweep_figure, write_sweep_curve

    policies = table['policies']
    own = policies.get('own', {}).get('miou')
    places = {n: p['threshold'] for n, p in policies.items()}
    figure = sweep_figure(
        table['sweep'],
        thresholds={n: place for n, place in places.items() if place is not None},
        levels={} if own is None else {'mIoU, own background': own},
        title=f'{table["images"]} images, {table["images_from"]}',
    )
    write_sweep_curve(path, figure)
