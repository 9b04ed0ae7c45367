"""Scores a store of CAMs against a folder of masks: every threshold, several policies.

A threshold chosen on the photos that it is scored on is an oracle's choice. Each number
says where its threshold comes from. Two stores at their best thresholds differ in where
they stand on their curves as well; at equal recall they do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmwsss.apis.jobs import Progress
from mmwsss.apis.label_folders import added_up, find_map, format_cell, read_mask
from mmwsss.apis.outputs import MARKER
from mmwsss.datasets.cam_store import CAMStore, StoredCAMs
from mmwsss.errors import InputError, tool
from mmwsss.evaluation.meters import (
    LabelMeter,
    SweepMeter,
    default_thresholds,
    score_table,
)
from mmwsss.files import read_json
from mmwsss.functional import segmentation_scores


@dataclass(frozen=True)
class GivenThreshold:
    """A threshold that another evaluation found best.

    Attributes:
        value: In [0, 1].
        source: Where it was chosen, for the policy's sentence.
    """

    value: float
    source: str

    @classmethod
    def read(cls, path: Path) -> 'GivenThreshold':
        """The best threshold of an evaluation's JSON.

        Raises:
            InputError: The file is not one of a store's evaluation.
        """
        content = read_json(path)
        try:
            best = content['policies']['best']
            value, images = float(best['threshold']), int(best['images'])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f'{path} holds no best threshold; make it with: python '
                f'{tool("eval_pseudo_labels")} CAM_STORE GT --json FILE'
            ) from None
        return cls(
            checked_threshold(value), f'the best on the {images} images of {path}'
        )


@dataclass(frozen=True)
class GivenRecall:
    """A recall at which CAMs are compared with something else.

    Attributes:
        value: Percent, the mean over the classes of the masks, background included.
        source: Whose it is, for the policy's sentence.
    """

    value: float
    source: str

    @classmethod
    def read(cls, words: Sequence[str]) -> 'GivenRecall':
        """A number in percent, or the recall of an evaluation.

        Args:
            words: One number, or JSON files of evaluations. A store counts with its
                best threshold, label maps as they are; of several the one with the
                highest mIoU is taken.

        Raises:
            InputError: It is neither.
        """
        if len(words) == 1 and (number := _as_number(words[0])) is not None:
            if not 1 < number <= 100:
                raise InputError(
                    'a recall is in percent as in the tables, above 1 and up to 100, '
                    f'got {words[0]}'
                )
            return cls(number, 'given as a number')
        return max((_scored(Path(word)) for word in words), key=lambda pair: pair[0])[1]


def _as_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _scored(path: Path) -> tuple[float, GivenRecall]:
    """MIoU and recall of an evaluation's JSON."""
    content = read_json(path)
    try:
        of_cams = 'policies' in content
        table = content['policies']['best'] if of_cams else content
        miou, recall = float(table['miou']), float(table['recall'])
        where = f'{int(table["images"])} images of {path}'
        if of_cams:
            where = f'best threshold {float(table["threshold"]):g} on the {where}'
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f'{path} holds no mIoU and recall; make it with: python '
            f'{tool("eval_pseudo_labels")} PRED GT --json FILE'
        ) from None
    return miou, GivenRecall(recall, f'that of the {where}')


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """At which thresholds CAMs are scored, each in [0, 1].

    Attributes:
        thresholds: Of the sweep, increasing; the best one is chosen among them.
        fixed: Scored without any choice.
        given: Chosen elsewhere, or None.
        recall: Also score where the CAMs have this recall; None for nowhere.
    """

    thresholds: Sequence[float] = default_thresholds()
    fixed: float = 0.25
    given: GivenThreshold | None = None
    recall: GivenRecall | None = None

    def all_thresholds(self) -> tuple[float, ...]:
        """Those of the sweep and the single ones, increasing, none twice."""
        given = () if self.given is None else (self.given.value,)
        return tuple(sorted({*self.thresholds, self.fixed, *given}))


def parse_thresholds(words: Sequence[str]) -> tuple[float, ...]:
    """Thresholds from numbers and ranges ``LOW:HIGH:STEP`` (both ends included)."""
    found: set[float] = set()
    for word in words:
        try:
            numbers = [float(part) for part in word.split(':')]
            if len(numbers) == 1:
                found.update(numbers)
                continue
            low, high, step = numbers
            # Also refuses nan, and millions of thresholds.
            if not (step >= 1e-4 and 0 <= low <= high <= 1):
                raise ValueError
        except ValueError:
            raise InputError(
                f'{word!r} is no threshold in [0, 1] and no range such as '
                '0.05:0.95:0.05'
            ) from None
        count = int((high - low) / step + 1e-6) + 1
        found.update(round(low + i * step, 6) for i in range(count))
    return tuple(sorted(map(checked_threshold, found)))


def checked_threshold(threshold: float) -> float:
    """The threshold, or an InputError if it is not in [0, 1]."""
    if not 0 <= threshold <= 1:
        raise InputError(f'thresholds lie in [0, 1], got {threshold:g}')
    return threshold


def recorded_classes(root: Path) -> list[str] | None:
    """The K class names a store was made with, None where no record tells."""
    marker = Path(root) / MARKER
    if not marker.is_file():
        return None
    record = read_json(marker)
    settings = record.get('settings', {}) if isinstance(record, dict) else {}
    return settings.get('class list')


class _CAMMeter:
    """CAMs at all thresholds and, where they have one, by their own background."""

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        self.sweep = SweepMeter(num_classes, thresholds=thresholds)
        self.own = LabelMeter(num_classes)

    def state(self) -> dict:
        return {'sweep': self.sweep.state(), 'own': self.own.state()}

    def add_state(self, state: dict) -> None:
        self.sweep.add_state(state['sweep'])
        self.own.add_state(state['own'])


def evaluate_store(
    store_dir: Path,
    target_dir: Path,
    *,
    ids: Sequence[str] | None,
    classes: Sequence[str],
    options: SweepOptions | None = None,
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
) -> dict:
    """Score stored CAMs at the size of the masks; the photos' classes are given.

    Args:
        store_dir: Holds ``ID.npz``, see ``CAMStore``.
        target_dir: Holds the masks, ``ID.png`` or ``ID.webp``.
        ids: Images to score; None for every one in the store.
        classes: C names, background first.
        options: Thresholds.
        jobs: Processes.
        progress: Wraps the stream of scored ids, called with it and their number.

    Returns:
        ``policies``: name -> scores in percent with ``threshold`` and ``policy``, a
        sentence. 'best' is the sweep's best threshold, 'fixed' one that nobody chose,
        'given' another evaluation's, 'own' the argmax with the CAMs' own background
        (only where they have one), 'equal_recall' the place between two thresholds of
        the sweep where the recall is that of ``options.recall``, see
        ``score_at_recall``; its scores are None where there is none. ``sweep``:
        ``threshold``, ``miou``, ``precision`` and ``recall`` of each. ``headline``:
        'own', 'given' or 'best', the first that is there, whose scores stand at the
        top level too.

    Raises:
        InputError: Files are missing, damaged or do not belong together.
    """
    options = options or SweepOptions()
    store, target_dir = CAMStore(store_dir), Path(target_dir)
    names = stored_ids(store.root) if ids is None else list(ids)
    if not target_dir.is_dir():
        raise InputError(f'the folder {target_dir} does not exist')
    masks = [(name, find_map(target_dir, name)) for name in names]
    own = store.read(names[0]).background is not None
    meter = added_up(
        partial(_CAMMeter, len(classes), options.all_thresholds()),
        partial(_add_photo, store, len(classes), own),
        masks,
        jobs=jobs,
        progress=progress,
    )
    policies = _policies(meter, classes, options, own=own)
    headline = next(n for n in ('own', 'given', 'best') if n in policies)
    sweep = [r for r in meter.sweep.sweep() if r['threshold'] in options.thresholds]
    return {
        'headline': headline,
        **policies[headline],
        'policies': policies,
        'sweep': sweep,
    }


def stored_ids(root: Path) -> list[str]:
    """Ids of all photos in a store.

    Raises:
        InputError: There is none.
    """
    files = [path.relative_to(root) for path in Path(root).rglob('*.npz')]
    if not files:
        raise InputError(f'{root} holds no stored CAMs (.npz)')
    return sorted(path.with_suffix('').as_posix() for path in files)


def _add_photo(
    store: CAMStore,
    num_classes: int,
    own: bool,
    meter: _CAMMeter,
    photo: tuple[str, Path],
) -> None:
    stored, target = _read(store, num_classes, own, photo)
    # Interpolation takes no map of zero channels, so a background goes along.
    background = stored.background if own else np.zeros(stored.cams.shape[1:], 'f4')
    scores = torch.from_numpy(np.concatenate([background[None], stored.cams]))
    scores = F.interpolate(
        scores[None], tuple(target.shape), mode='bilinear', align_corners=False
    )
    meter.sweep.update_present(scores[0, 1:], stored.classes.tolist(), target)
    if own:
        meter.own.update(_own_label(scores, stored.classes), target)


def _read(
    store: CAMStore, num_classes: int, own: bool, photo: tuple[str, Path]
) -> tuple[StoredCAMs, Tensor]:
    """CAMs and mask (H, W) of a photo, which belong together."""
    name, mask_path = photo
    stored, path = store.read(name), store.path(name)
    target = torch.from_numpy(read_mask(mask_path, num_classes))
    if stored.size != tuple(target.shape):
        raise InputError(
            f'{path} holds CAMs of a photo of {stored.size[1]} x {stored.size[0]} but '
            f'its mask is {target.shape[1]} x {target.shape[0]}; both must have the '
            'size of the photo'
        )
    highest = stored.classes.max(initial=-1) + 1
    if highest >= num_classes:
        raise InputError(
            f'{path} holds the CAM of class {highest}, but there are {num_classes} '
            'classes with background; check the number of classes'
        )
    if (stored.background is not None) != own:
        raise InputError(
            f'{path} has {"no " if own else "a "}background of its own, unlike the '
            'first photo; a store holds one kind of CAMs, make them again'
        )
    return stored, target


def _own_label(scores: Tensor, classes: np.ndarray) -> Tensor:
    """Label (H, W) of scores (1, 1 + P, H, W) of the background and P classes."""
    # Many times as fast as argmax; the first one wins a tie there as well.
    short = scores[0].max(dim=0).indices
    return torch.from_numpy(np.concatenate([[0], classes + 1]))[short]


def _policies(
    meter: _CAMMeter, classes: Sequence[str], options: SweepOptions, *, own: bool
) -> dict[str, dict]:
    images, count = meter.sweep.num_images, len(options.thresholds)
    best = meter.sweep.best(among=options.thresholds)
    chosen = {
        'best': (
            meter.sweep.thresholds[best],
            f'the best of {count} thresholds on these same {images} images: an oracle '
            'choice',
        ),
        'fixed': (options.fixed, 'fixed beforehand'),
    }
    if options.given is not None:
        chosen['given'] = (options.given.value, options.given.source)
    policies = {}
    if own:
        policies['own'] = {
            'policy': "image labels given; the CAMs' own background, no threshold",
            'threshold': None,
            **meter.own.result(classes),
        }
    for name, (threshold, source) in chosen.items():
        index = meter.sweep.thresholds.index(threshold)
        policies[name] = {
            'policy': f'image labels given; threshold {threshold:g}, {source}',
            **meter.sweep.result(classes, index=index),
        }
    if options.recall is not None:
        policies['equal_recall'] = score_at_recall(
            meter.sweep, classes, among=options.thresholds, recall=options.recall
        )
    return policies


def score_at_recall(
    sweep: SweepMeter,
    classes: Sequence[str],
    *,
    among: Sequence[float],
    recall: GivenRecall,
) -> dict:
    """Scores where CAMs have a given recall, the mean over classes with background.

    Taken are the highest threshold of ``among`` that reaches the recall and the next
    one, which does not. Their confusions are mixed so that the recall is met exactly:
    it is linear in them, since the masks are the same. That is what one gets who takes
    either threshold at random, so IoU and precision are those of labels that exist.

    Args:
        sweep: The counts.
        classes: C names, background first.
        among: Thresholds of ``sweep``.
        recall: What is to be met.

    Returns:
        As a policy of ``evaluate_store``; ``threshold`` is interpolated. All scores
        are None where no threshold reaches the recall, or the highest one does.
    """
    kept = [i for i, t in enumerate(sweep.thresholds) if t in among]
    recalls = 100 * segmentation_scores(sweep.confusion[kept])['mean_recall']
    reached = (recalls >= recall.value).nonzero()[:, 0].tolist()
    said = f'a recall of {recall.value:.2f} %, {recall.source}'
    if not reached or reached[-1] == len(kept) - 1:
        return {
            'policy': f'image labels given; no threshold has {said}: they have '
            f'{recalls.min():.2f} to {recalls.max():.2f} %',
            **dict.fromkeys(('threshold', 'miou', 'precision', 'recall')),
        }
    first, second = kept[reached[-1]], kept[reached[-1] + 1]
    above, below = recalls[reached[-1]], recalls[reached[-1] + 1]
    share = float((above - recall.value) / (above - below))
    low, high = sweep.thresholds[first], sweep.thresholds[second]
    mixed = torch.lerp(*sweep.confusion[[first, second]].double(), share)
    counted = sweep.result(classes, index=first)
    table = score_table(mixed, classes)
    # The sums of the mixed counts are whole numbers but for rounding.
    for row, whole in zip(table['per_class'], counted['per_class'], strict=True):
        row['pixels'] = whole['pixels']
    return {
        'policy': f'image labels given; {said}, between the thresholds {low:g} and '
        f'{high:g} (mean over the classes, background included)',
        **counted,
        **table,
        'pixels': counted['pixels'],
        'threshold': round(low + share * (high - low), 4),
    }


def format_policies(policies: dict[str, dict]) -> str:
    """Lay the scores of a store's policies out as text, with their sentences."""
    width = max(len('policy'), *map(len, policies))
    lines = [f'{"policy":<{width}} threshold    mIoU   prec.  recall']
    for name, table in policies.items():
        threshold = table['threshold']
        shown = '-' if threshold is None else f'{threshold:g}'
        cells = (table['miou'], table['precision'], table['recall'])
        lines.append(f'{name:<{width}} {shown:>9} ' + ' '.join(map(format_cell, cells)))
    lines.append('')
    lines += [f'{name}: {table["policy"]}' for name, table in policies.items()]
    return '\n'.join(lines)
