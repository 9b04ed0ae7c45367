"""Scores stored CAMs or label maps for what they do on what accompanies an object.

Every number names how its threshold was chosen: 'fixed' by nobody, 'otsu' by each photo
itself, 'val' on other photos with masks, 'oracle' on the very photos it is scored on.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmwsss.apis.cam_scores import checked_threshold, recorded_classes
from mmwsss.apis.cli import Counts, add_trust_argument, parse_and_run
from mmwsss.apis.jobs import Progress
from mmwsss.apis.label_folders import (
    added_up,
    find_map,
    read_class_names,
    read_ids,
    read_mask,
)
from mmwsss.datasets.cam_store import CAMStore
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.transforms import read_photo
from mmwsss.errors import InputError, tool
from mmwsss.evaluation.co_occurrence import GATES, CoOccurrenceMeter
from mmwsss.evaluation.meters import default_thresholds
from mmwsss.files import find_checkpoint, read_json, write_json
from mmwsss.functional.inpainting import fill_from_neighbours

POLICIES = ('fixed', 'otsu', 'val', 'oracle')
CRITERIA = ('img_fg_iou', 'fg_iou', 'miou', 'f1')
# Shown first, in this order; the JSON has all.
_SHOWN = (
    'img_fg_iou', 'iou_obj_dis', 'fg_iou', 'miou', 'precision', 'recall', 'f1', 'DAR',
    'BAR', 'DAR/BAR', 'CR', 'FPR_img_D', 'FPR_img_0', 'FPR_img_neg', 'FPR_pix_D',
    'FPR_pix_D_gated', 'FPR_pix_neg', 'FPR_pix_neg_gated', 'TPR_obj_dis',
    'TPR_obj_only', 'ctx_gap', 'accuracy', 'conflict_acc',
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CoOccurrenceOptions:
    """What is scored and how; sent to every worker process.

    Attributes:
        pred: Folder of a CAM store or of label maps.
        target: Folder of masks.
        distractors: Folder of masks of distractors, or None.
        classes: K names.
        probs: Image id -> K probabilities, in the place of those of the store.
        policies: Some of ``POLICIES``; not used for label maps.
        threshold: Of the policy 'fixed'.
        gate: One of ``GATES``.
        criterion: What 'val' and 'oracle' choose by.
    """

    pred: Path
    target: Path
    distractors: Path | None = None
    classes: Sequence[str]
    probs: Mapping[str, Sequence[float]] | None = None
    policies: Sequence[str] = ('fixed', 'otsu', 'oracle')
    threshold: float = 0.3
    gate: str = 'pred'
    criterion: str = 'img_fg_iou'

    @cached_property
    def of_cams(self) -> bool:
        """Whether ``pred`` holds CAMs and not label maps; asked of every photo."""
        return next(self.pred.rglob('*.npz'), None) is not None

    def thresholds(self) -> tuple[float, ...]:
        """All that are counted, increasing."""
        if not self.of_cams:
            return (0.5,)
        return tuple(sorted({*default_thresholds(), self.threshold}))


def eval_co_occurrence_command() -> int:
    """Parse the command line, score, print."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    for folder in (args.pred, args.target, args.distractors, args.photos):
        if folder is not None and not folder.is_dir():
            raise InputError(f'the folder {folder} does not exist')
    if args.swap and not (args.photos and args.distractors):
        raise InputError('--swap needs --photos and --distractors')
    # See tools/eval_pseudo_labels.py.
    torch.set_num_threads(1)
    options = CoOccurrenceOptions(
        pred=args.pred,
        target=args.target,
        distractors=args.distractors,
        classes=_class_names(args),
        probs=_read_probs(args.probs) if args.probs else None,
        policies=_policies(args),
        threshold=checked_threshold(args.threshold),
        gate=args.gate,
        criterion=args.criterion,
    )
    ids = read_ids(args.list)
    report = evaluate_co_occurrence(
        options,
        ids=ids,
        val_ids=read_ids(args.val_list) if args.val_list else None,
        jobs=args.jobs,
        progress=lambda done, total: tqdm(
            done, total=total, unit='image', disable=None
        ),
    )
    report['images_from'] = str(args.list)
    print(format_report(report))
    if args.swap:
        report['swap_gap'] = _swap_gap(args, options, ids)
        print(f'swap_gap: {report["swap_gap"]}')
    if args.json:
        write_json(args.json, report)
    counts.ok = len(ids)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Score CAMs or label maps on objects, on the distractors that '
        'accompany them, and on photos with only one of both. Shares, not percent.'
    )
    parser.add_argument(
        'pred',
        type=Path,
        help='a CAM store with all classes of every photo, or a folder of label maps',
    )
    parser.add_argument('target', type=Path, metavar='gt', help='folder with the masks')
    parser.add_argument('--list', type=Path, required=True, help='ids to score')
    parser.add_argument(
        '--distractors',
        type=Path,
        metavar='DIR',
        help='masks ID.png: k where the distractor of class k is, 0 elsewhere, 255 '
        'unknown; without them only figures that need none are given',
    )
    parser.add_argument(
        '--policies',
        nargs='+',
        choices=POLICIES,
        help='how thresholds are chosen (default: fixed, otsu, oracle, and val where '
        'there is a --val-list)',
    )
    parser.add_argument(
        '--threshold', type=float, default=0.3, help='of fixed (default: %(default)s)'
    )
    parser.add_argument(
        '--val-list', type=Path, help='ids, in the same folders, that val chooses on'
    )
    parser.add_argument(
        '--criterion',
        choices=CRITERIA,
        default='img_fg_iou',
        help='what val and oracle choose by (default: %(default)s)',
    )
    parser.add_argument(
        '--gate',
        choices=tuple(GATES),
        default='pred',
        help='pred (default) empties CAMs of classes that the network does not find in '
        'a photo, label those that the photo does not have',
    )
    parser.add_argument(
        '--probs',
        type=Path,
        metavar='JSON',
        help='{id: [probability of each class]}; default: those in the store',
    )
    parser.add_argument(
        '--classes', type=Path, help='class names, one a line (default: the record)'
    )
    parser.add_argument(
        '--swap',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='also the drop of the probability when distractor or object is painted '
        'over; needs --distractors and --photos',
    )
    parser.add_argument('--photos', type=Path, help='folder of photos, for --swap')
    parser.add_argument('--json', type=Path, help='write all numbers to this file')
    parser.add_argument(
        '--jobs', type=int, default=1, help='processes that share the images'
    )
    add_trust_argument(parser)


def _policies(args: argparse.Namespace) -> tuple[str, ...]:
    default = [p for p in POLICIES if p != 'val' or args.val_list]
    chosen = args.policies or default
    if ('val' in chosen) != (args.val_list is not None):
        raise InputError('the policy val needs a --val-list, and only that one does')
    return tuple(p for p in POLICIES if p in chosen)


def _class_names(args: argparse.Namespace) -> list[str]:
    if args.classes:
        return read_class_names(args.classes)[1:]
    recorded = recorded_classes(args.pred)
    if recorded is None:
        raise InputError(
            f'no record in {args.pred} names the classes; give --classes FILE, one '
            'name a line'
        )
    return recorded


def _read_probs(path: Path) -> dict[str, list[float]]:
    content = read_json(path)
    try:
        found = {name: [float(p) for p in values] for name, values in content.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f'{path} must hold {{id: [probability of each class, ...]}}'
        ) from None
    for name, values in found.items():
        if not all(0 <= p <= 1 for p in values):
            raise InputError(
                f'{path} has for {name} {values}, which are no probabilities in '
                '[0, 1]; write those, not logits'
            )
    return found


def evaluate_co_occurrence(
    options: CoOccurrenceOptions,
    *,
    ids: Sequence[str],
    val_ids: Sequence[str] | None = None,
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
) -> dict:
    """Score photos by every policy.

    Args:
        options: What and how.
        ids: Photos that are scored.
        val_ids: Photos that the policy 'val' chooses on; none of ``ids``.
        jobs: Processes.
        progress: Wraps the stream of scored photos, called with it and their number.

    Returns:
        ``policies``: name -> figures of ``CoOccurrenceMeter.result`` with
        ``threshold`` and ``policy``, a sentence. ``gate`` and ``decision``: sentences.
        For label maps the one policy is 'labels'.

    Raises:
        InputError: Files are missing, damaged or do not belong together.
    """
    count = partial(_counted, options, jobs=jobs, progress=progress)
    both = sorted(set(ids) & set(val_ids or ()))
    if both:
        raise InputError(
            f'{len(both)} photos are scored and chosen on, the first is {both[0]}; '
            'the lists must share none'
        )
    meter = count(ids)
    cuts = {}
    if not options.of_cams:
        cuts['labels'] = 0, 'label maps, no threshold'
    elif 'fixed' in options.policies:
        where = meter.thresholds.index(options.threshold)
        cuts['fixed'] = where, 'threshold fixed beforehand'
    if options.of_cams and 'otsu' in options.policies:
        cuts['otsu'] = -1, "each photo's own threshold after Otsu, without masks"
    best = partial(CoOccurrenceMeter.best, gate=options.gate, figure=options.criterion)
    if options.of_cams and 'val' in options.policies:
        cuts['val'] = (
            best(count(val_ids)),
            f'threshold with the best {options.criterion} on {len(val_ids)} other '
            'photos with masks',
        )
    if options.of_cams and 'oracle' in options.policies:
        cuts['oracle'] = (
            best(meter),
            f'threshold with the best {options.criterion} on these same photos: an '
            'oracle choice',
        )
    policies = {}
    for name, (cut, sentence) in cuts.items():
        chosen = name not in ('otsu', 'labels')
        policies[name] = {
            'policy': sentence,
            'threshold': meter.thresholds[cut] if chosen else None,
            **meter.result(cut, gate=options.gate, classes=options.classes),
        }
    return {
        'policies': policies,
        'gate': f'{options.gate}: {GATES[options.gate]}',
        'decision': meter.decision,
    }


def _counted(
    options: CoOccurrenceOptions,
    ids: Sequence[str],
    *,
    jobs: int,
    progress: Progress,
) -> CoOccurrenceMeter:
    meter = added_up(
        partial(
            CoOccurrenceMeter,
            len(options.classes),
            thresholds=options.thresholds(),
            otsu=options.of_cams,
        ),
        partial(_add_photo, options),
        ids,
        jobs=jobs,
        progress=progress,
    )
    if not int(meter.total[..., 0].sum()):
        raise InputError(
            f'no mask of {options.target} shows an object in these {len(ids)} photos; '
            f'objects saved as 255 count as void: {tool("prepare_data")} '
            'binary-masks MASKS OUT'
        )
    return meter


def _add_photo(
    options: CoOccurrenceOptions, meter: CoOccurrenceMeter, name: str
) -> None:
    num_classes = len(options.classes)
    target = _read(options.target, name, num_classes, None)
    distractor = None
    if options.distractors is not None:
        distractor = _read(options.distractors, name, num_classes, target.shape)
    if options.of_cams:
        cams, probs = _stored(options, name, tuple(target.shape))
    else:
        label = _read(options.pred, name, num_classes, target.shape)
        classes = torch.arange(1, num_classes + 1)[:, None, None]
        cams, probs = (label == classes).float(), None
    if options.probs is not None:
        probs = _given_probs(options, name)
    meter.update(cams, target, distractor=distractor, probs=probs)


def _read(
    folder: Path, name: str, num_classes: int, size: tuple[int, ...] | None
) -> Tensor:
    path = find_map(folder, name)
    values = read_mask(path, num_classes + 1)
    if size is not None and values.shape != tuple(size):
        raise InputError(
            f'{path} is {values.shape[1]} x {values.shape[0]}, but the mask of the '
            f'photo is {size[1]} x {size[0]}'
        )
    return torch.from_numpy(values)


def _stored(
    options: CoOccurrenceOptions, name: str, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """CAMs (K, H, W) at the size of the mask, and probabilities."""
    store = CAMStore(options.pred)
    stored, path = store.read(name), store.path(name)
    num_classes = len(options.classes)
    if stored.size != size:
        raise InputError(
            f'{path} holds CAMs of a photo of {stored.size[1]} x {stored.size[0]} but '
            f'its mask is {size[1]} x {size[0]}; both must have the size of the photo'
        )
    if stored.classes.max(initial=-1) >= num_classes:
        raise InputError(
            f'{path} holds the CAM of class {stored.classes.max() + 1}, but there are '
            f'{num_classes} classes; check --classes'
        )
    if len(stored.classes) < num_classes and options.gate != 'label':
        missing = next(k for k in range(num_classes) if k not in stored.classes)
        raise InputError(
            f'{path} has no CAM of {options.classes[missing]}, which its image label '
            'does not name, so false alarms would not be seen; make the CAMs with '
            f'{tool("make_cams")} --all-classes, or score with --gate label'
        )
    cams = F.interpolate(
        stored.dense(num_classes)[None], size, mode='bilinear', align_corners=False
    )
    probs = None if stored.probs is None else torch.from_numpy(stored.probs)
    return cams[0], probs


def _given_probs(options: CoOccurrenceOptions, name: str) -> Tensor:
    values = options.probs.get(name)
    if values is None or len(values) != len(options.classes):
        raise InputError(
            f'the probabilities of {name} must be {len(options.classes)} numbers, got '
            f'{values}'
        )
    return torch.tensor(values)


def format_report(report: Mapping) -> str:
    """Lay the figures out as text, policies side by side."""
    policies = report['policies']
    lines = [f'{"":<18}' + ''.join(f'{name:>9}' for name in policies)]
    for figure in ('threshold', *_SHOWN):
        values = [table.get(figure) for table in policies.values()]
        if any(value is not None for value in values):
            cells = ''.join(f'{_cell(value):>9}' for value in values)
            lines.append(f'{figure:<18}{cells}')
    first = next(iter(policies.values()))
    lines.append('')
    lines += [f'{name}: {table["policy"]}' for name, table in policies.items()]
    lines.append(f'gate {report["gate"]}')
    lines.append(f'a photo shows a class by: {report["decision"]}')
    counts = first.get('cells')
    lines.append(
        f'photos: {first["images"]}' + (f', by cell {counts}' if counts else '')
    )
    return '\n'.join(lines)


def _cell(value: float | None) -> str:
    return '-' if value is None else f'{value:.4g}'


# --------------------------------------------------------------------- painting over
def swap_gap(
    class_probs: Callable[[Tensor], Tensor],
    photos: Iterable[tuple[Tensor, Tensor, Tensor]],
) -> dict[str, float | int | None]:
    """How much a probability drops when the distractor goes, and when the object goes.

    Regions are filled from their surroundings. A network that looks at the object
    loses nothing with the distractor and everything with the object.

    Args:
        class_probs: Photo (3, H, W) uint8 -> probabilities (K,).
        photos: (photo, target (H, W), distractor (H, W)); those with both of a class
            count, once for each such class.

    Returns:
        Mean drops ``without_distractor`` and ``without_object``, their difference
        ``swap_gap`` (the first less the second, negative is good) and ``pairs``.
    """
    drops = []
    for photo, target, distractor in photos:
        both = set(target.unique().tolist()) & set(distractor.unique().tolist())
        for k in sorted(both - {0, 255}):
            shown = target == k
            before = float(class_probs(photo)[k - 1])
            regions = ((distractor == k) & ~shown, shown)
            after = [
                float(class_probs(fill_from_neighbours(photo, region))[k - 1])
                for region in regions
            ]
            drops.append([before - value for value in after])
    if not drops:
        return dict.fromkeys(('without_distractor', 'without_object', 'swap_gap')) | {
            'pairs': 0
        }
    first, second = (
        math.fsum(column) / len(drops) for column in zip(*drops, strict=True)
    )
    return {
        'without_distractor': round(first, 4),
        'without_object': round(second, 4),
        'swap_gap': round(first - second, 4),
        'pairs': len(drops),
    }


def _swap_gap(
    args: argparse.Namespace, options: CoOccurrenceOptions, ids: Sequence[str]
) -> dict:
    from mmengine.registry import init_default_scope

    from mmwsss.apis.evaluate import load_model
    from mmwsss.apis.jobs import device_of
    from mmwsss.apis.train import load_config

    config = load_config(args.swap[0], None, None)
    init_default_scope(config.get('default_scope', 'mmseg'))
    model, _ = load_model(config, find_checkpoint(args.swap[1]), device_of(0, None))
    if not hasattr(model, 'class_probs'):
        raise InputError(
            f'{type(model).__name__} gives no class probabilities of a photo; --swap '
            'needs a network such as mmwsss.CrossArch'
        )
    files = dict(find_photos(args.photos))
    num_classes = len(options.classes)

    def photos() -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        for name in tqdm(ids, unit='photo', disable=None, desc='swap'):
            if name not in files:
                raise InputError(f'{args.photos} has no photo {name}')
            bgr = read_photo(str(args.photos / files[name]))
            photo = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1]))
            target = _read(options.target, name, num_classes, bgr.shape[:2])
            distractor = _read(options.distractors, name, num_classes, bgr.shape[:2])
            yield photo.movedim(-1, 0), target, distractor

    return swap_gap(model.class_probs, photos())
