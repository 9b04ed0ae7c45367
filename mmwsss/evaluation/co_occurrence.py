"""Does a network look at the object, or at what always accompanies it?

The figures and their definitions are those of ``co_occurrence_scores``; here they are
added up over photos, for every threshold and with and without a gate. Masks, masks of
distractors and image-level probabilities are for evaluation only.
"""

import math
from collections.abc import Sequence

import torch
from mmengine.logging import MMLogger
from torch import Tensor

from mmwsss.evaluation.meters import default_thresholds
from mmwsss.evaluation.metrics import _map, _StreamingMetric
from mmwsss.functional.co_occurrence import (
    CellSums,
    co_occurrence_scores,
    region_counts,
    region_iou,
)
from mmwsss.functional.threshold import otsu_threshold
from mmwsss.registry import METRICS

GATES = {
    'none': 'CAMs as they are on all photos',
    'pred': 'CAMs of classes that the network does not find in the photo are emptied',
    'label': 'CAMs of classes that the photo does not have are emptied (image labels '
    'given)',
}
OTSU = 'otsu'
# A class whose probability is above it is found in a photo.
_FOUND = 0.5
# Without a mask of distractors a photo without them cannot be told from one with.
_NEED_DISTRACTORS = (
    'iou_obj_dis', 'iou_obj_only', 'DAR', 'DAR/BAR', 'CR', 'TPR_obj_dis',
    'TPR_obj_only', 'ctx_gap', 'FPR_img_D', 'FPR_img_0', 'conflict_acc', 'FPR_pix_D',
    'FPR_pix_D_gated',
)  # fmt: skip
_SUMS = ('images', 'positive', 'predicted', 'total', 'iou', 'false_alarms')


class CoOccurrenceMeter:
    """Adds up what CAMs and image-level decisions do in each cell and region.

    Args:
        num_classes: K, foreground classes.
        thresholds: Of the CAMs, in [0, 1].
        otsu: Also cut each photo at a threshold of its own (that of the largest CAM
            among its classes, after the gate).
        ignore_index: Pixels of this value in a mask are not scored.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        thresholds: Sequence[float],
        otsu: bool = False,
        ignore_index: int = 255,
    ) -> None:
        self.thresholds = tuple(float(value) for value in thresholds)
        if not self.thresholds and not otsu:
            raise ValueError('thresholds must hold at least one value, got none')
        self.num_classes = num_classes
        self.otsu = otsu
        self.ignore_index = ignore_index
        cuts, cells = len(self.thresholds) + otsu, (num_classes, 4)
        counts = {
            'images': cells,
            'positive': (cuts, *cells),
            'predicted': (len(GATES), cuts, *cells, 3),
            'total': (*cells, 3),
            'false_alarms': (len(GATES), cuts),
        }
        for name, shape in counts.items():
            setattr(self, name, torch.zeros(shape, dtype=torch.int64))
        self.iou = torch.zeros(len(GATES), cuts, *cells, dtype=torch.float64)
        self.background = 0
        self.num_images = 0
        self.with_distractors = 0
        self.with_probs = 0

    def update(
        self,
        cams: Tensor,
        target: Tensor,
        *,
        distractor: Tensor | None = None,
        probs: Tensor | None = None,
    ) -> None:
        """Add one photo.

        Args:
            cams: (K, H, W) in [0, 1] of all classes, present or not.
            target: (H, W) in [0, K] or void.
            distractor: (H, W), k where the distractor of class k is, or void; None
                where the photos have no such masks.
            probs: (K,) of the image-level classifier in [0, 1]; above 0.5 a class is
                found. None: it is found where any pixel is predicted, and the gate
                'pred' changes nothing.
        """
        annotated = distractor is not None
        if not annotated:
            distractor = torch.zeros_like(target)
        classes = torch.arange(1, self.num_classes + 1, device=target.device)
        void = self.ignore_index
        has_object = (target == classes[:, None, None]).flatten(1).any(1)
        has_distractor = (distractor == classes[:, None, None]).flatten(1).any(1)
        found = None if probs is None else probs.to(cams.device) > _FOUND
        gates = (None, found, has_object)
        cell = (2 * has_object + has_distractor).cpu()
        rows = torch.arange(self.num_classes)
        for number, gate in enumerate(gates):
            gated = cams if gate is None else cams * gate[:, None, None]
            counts = region_counts(
                gated,
                target,
                distractor,
                thresholds=self._cuts(gated),
                ignore_index=void,
            )
            predicted = counts.predicted.cpu()
            self.predicted[number][:, rows, cell] += predicted
            self.false_alarms[number] += counts.false_alarms.cpu()
            self.iou[number][:, rows, cell] += region_iou(counts).nan_to_num().cpu()
            if number == 0:
                self.total[rows, cell] += counts.total.cpu()
                seen = predicted.sum(-1) > 0 if found is None else found.cpu()
                self.positive[:, rows, cell] += seen.long()
        self.images[rows, cell] += 1
        scored = (target != void) & (distractor != void)
        self.background += int(((target == 0) & scored).sum())
        self.num_images += 1
        self.with_distractors += annotated
        self.with_probs += probs is not None

    def _cuts(self, cams: Tensor) -> Tensor:
        cuts = cams.new_tensor(self.thresholds)
        if not self.otsu:
            return cuts
        return torch.cat([cuts, otsu_threshold(cams.amax(0))[None]])

    def scores(self, cut: int, *, gate: str = 'pred') -> dict[str, Tensor]:
        """Figures (K,) at one cut; those that need distractors only if all have them.

        Args:
            cut: Position in ``thresholds``; -1 for Otsu's, where there is one.
            gate: One of ``GATES``.
        """
        number = list(GATES).index(gate)
        sums = CellSums(
            images=self.images,
            positive=self.positive[cut],
            predicted=self.predicted[number, cut],
            ungated=self.predicted[0, cut],
            total=self.total,
            iou=self.iou[number, cut],
            false_alarms=self.false_alarms[number, cut],
            background=torch.tensor(self.background),
        )
        left_out = () if self.annotated else _NEED_DISTRACTORS
        return {
            k: v for k, v in co_occurrence_scores(sums).items() if k not in left_out
        }

    @property
    def annotated(self) -> bool:
        """Whether all photos so far came with masks of distractors."""
        return 0 < self.num_images == self.with_distractors

    @property
    def decision(self) -> str:
        """How photos are classified, one phrase."""
        if self.with_probs == self.num_images:
            return f'class probability above {_FOUND:g}'
        return 'any predicted pixel, since there are no class probabilities'

    def best(self, *, gate: str = 'pred', figure: str = 'img_fg_iou') -> int:
        """Position of the threshold with the highest figure; the lowest on a tie."""
        cuts = range(len(self.thresholds))
        values = [mean(self.scores(cut, gate=gate)[figure]) for cut in cuts]
        return max(cuts, key=lambda cut: -1 if values[cut] is None else values[cut])

    def result(
        self, cut: int, *, gate: str = 'pred', classes: Sequence[str] | None = None
    ) -> dict:
        """Figures as plain numbers for JSON, None where there is nothing to count.

        Args:
            cut: See ``scores``.
            gate: One of ``GATES``.
            classes: K names, for the figures of each.

        Returns:
            name -> mean over the classes that have a value, with ``images``, ``cells``
            (photos in each cell) and, for several classes, ``per_class``.
        """
        scores = self.scores(cut, gate=gate)
        result = {name: mean(values) for name, values in scores.items()}
        names = ('none', 'dis_only', 'obj_only', 'obj_dis')
        result['images'] = self.num_images
        if self.annotated:
            counts = self.images.sum(0).tolist()
            result['cells'] = dict(zip(names, counts, strict=True))
        if classes is not None and self.num_classes > 1:
            result['per_class'] = {
                name: {figure: mean(v[k : k + 1]) for figure, v in scores.items()}
                for k, name in enumerate(classes)
            }
        return result

    def state(self) -> dict:
        """The sums as plain Python, for adding up over processes."""
        tables = {name: getattr(self, name).tolist() for name in _SUMS}
        numbers = ('background', 'num_images', 'with_distractors', 'with_probs')
        return {**tables, **{name: getattr(self, name) for name in numbers}}

    def add_state(self, state: dict) -> None:
        """Add the sums of another meter of the same kind."""
        for name, value in state.items():
            own = getattr(self, name)
            if isinstance(own, Tensor):
                value = torch.tensor(value, dtype=own.dtype).view_as(own)
            setattr(self, name, own + value)


def mean(values: Tensor) -> float | None:
    """Mean of the values that are not NaN, four decimals; None without any."""
    value = float(values.nanmean())
    return None if math.isnan(value) else round(value, 4)


@METRICS.register_module()
class CoOccurrenceMetric(_StreamingMetric):
    """Figures of co-occurrence for any ``val_evaluator``; shares, not percent.

    The data samples need ``gt_sem_seg`` and CAMs of all classes, also of those that a
    photo does not have, or the false alarms on photos without the object stay
    unseen (``mmwsss.AllClasses`` in the pipeline asks a CAM network for them).
    Masks of distractors come from ``mmwsss.LoadDistractorMask``; without them only the
    figures that need none are there. ``class_probs`` (K,) decide on photos; without
    them any predicted pixel does.

    Args:
        threshold: Of the CAMs: a number; 'otsu' for each photo's own; 'oracle' for the
            best of 0.01 to 0.99 on the scored photos, whose figures are called
            ``oracle_*``. A threshold chosen on other photos is given as a number.
        gate: 'none', 'pred' or 'label', see ``GATES``.
        field: Field of the data sample with the CAMs (K, H, W) in [0, 1].
        ignore_index: Pixels of this value in a mask are not scored.
        prefix: Put in front of the metric names.
    """

    def __init__(
        self,
        *,
        threshold: float | str = 0.3,
        gate: str = 'pred',
        field: str = 'cams',
        ignore_index: int = 255,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix=prefix)
        named = isinstance(threshold, str) and threshold in (OTSU, 'oracle')
        if not named and not (
            isinstance(threshold, (int, float)) and 0 <= threshold <= 1
        ):
            raise ValueError(
                "threshold must lie in [0, 1] or be 'otsu' or 'oracle', got "
                f'{threshold!r}'
            )
        if gate not in GATES:
            raise ValueError(f'gate must be one of {tuple(GATES)}, got {gate!r}')
        self.threshold = threshold
        self.gate = gate
        self.field = field
        self.ignore_index = ignore_index

    def new_meter(self) -> CoOccurrenceMeter:
        """A meter for the dataset's classes."""
        thresholds = {OTSU: (), 'oracle': default_thresholds()}
        return CoOccurrenceMeter(
            len(self.dataset_meta['classes']) - 1,
            thresholds=thresholds.get(self.threshold, (self.threshold,)),
            otsu=self.threshold == OTSU,
            ignore_index=self.ignore_index,
        )

    def add_sample(self, meter: CoOccurrenceMeter, sample: dict) -> None:
        """Score one data sample."""
        cams = getattr(sample[self.field], 'data', sample[self.field])
        distractor = None
        if 'distractor_map' in sample:
            distractor = _map(sample, 'distractor_map').to(cams.device)
        probs = sample.get('class_probs')
        meter.update(
            cams,
            _map(sample, 'gt_sem_seg').to(cams.device),
            distractor=distractor,
            probs=getattr(probs, 'data', probs),
        )

    def compute_metrics(self, results: list) -> dict:
        """The figures that have a value, as shares with four decimals."""
        meter = results[0]
        cut, name, prefix = 0, str(self.threshold), ''
        if self.threshold == 'oracle':
            cut, prefix = meter.best(gate=self.gate), 'oracle_'
            name = f'{meter.thresholds[cut]:g}, chosen on these photos: an oracle'
        scores = meter.result(cut, gate=self.gate)
        MMLogger.get_current_instance().info(
            f'co-occurrence at threshold {name}; {GATES[self.gate]}; photos decided by '
            f'{meter.decision}; photos by cell: {scores.get("cells", "no distractors")}'
        )
        return {
            f'{prefix}{figure}': value
            for figure, value in scores.items()
            if isinstance(value, float)
        }
