"""MMEngine metrics over the streaming meters, for any ``val_evaluator``.

MMSeg's IoUMetric keeps four vectors per photo; these keep one matrix per process and
give the same numbers, also when a distributed sampler repeats photos at the end.
"""

from collections.abc import Sequence

from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from mmwsss.evaluation.meters import LabelMeter, SweepMeter, default_thresholds
from mmwsss.registry import METRICS


class _StreamingMetric(BaseMetric):
    """Holds back the newest photo, since only the end tells whether it is a repeat.

    A distributed sampler fills the last round with photos from the beginning; these
    are the last ones of the last ranks. mmengine cuts a gathered list of per-photo
    results for that reason; here the newest photo's sums stay apart until the end.
    """

    def __init__(self, *, prefix: str | None) -> None:
        super().__init__(collect_device='cpu', prefix=prefix)
        self._total = None
        self._newest: dict | None = None

    def new_meter(self) -> LabelMeter | SweepMeter:
        raise NotImplementedError

    def add_sample(self, meter: LabelMeter | SweepMeter, sample: dict) -> None:
        raise NotImplementedError

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Add the photos of a batch."""
        for sample in data_samples:
            if self._total is None:
                self._total = self.new_meter()
            if self._newest is not None:
                self._total.add_state(self._newest)
            meter = self.new_meter()
            self.add_sample(meter, sample)
            self._newest = meter.state()

    def evaluate(self, size: int) -> dict:
        """Add up over the processes, leave repeated photos out, and score."""
        total = self._total or self.new_meter()
        mine = (total.state(), self._newest)
        self._total, self._newest = None, None
        parts = all_gather_object(mine)
        seen = sum(p['num_images'] + (n is not None) for p, n in parts)
        surplus = min(max(seen - size, 0), len(parts) - 1)
        meter = self.new_meter()
        for rank, (part, newest) in enumerate(parts):
            meter.add_state(part)
            if newest is not None and rank < len(parts) - surplus:
                meter.add_state(newest)
        metrics = self.compute_metrics([meter])
        prefix = f'{self.prefix}/' if self.prefix else ''
        return {f'{prefix}{name}': value for name, value in metrics.items()}

    def _log_classes(self, title: str, table: dict) -> None:
        rows = [f'{title}, IoU in percent:']
        for row in table['per_class']:
            value = 'no pixels' if row['iou'] is None else f'{row["iou"]:.2f}'
            rows.append(f'  {row["name"]:<20} {value:>9}')
        MMLogger.get_current_instance().info('\n'.join(rows))


def _map(sample: dict, field: str) -> Tensor:
    value = sample[field]
    data = value['data'] if isinstance(value, dict) else value
    data = getattr(data, 'data', data)
    return data.squeeze(0) if data.ndim == 3 and data.shape[0] == 1 else data


@METRICS.register_module()
class PseudoLabelMetric(_StreamingMetric):
    """MIoU of label maps in the data samples against ``gt_sem_seg``.

    Args:
        field: Field of the data sample with the label map: ``'pred_sem_seg'`` for a
            segmentor, or any map (H, W) or (1, H, W) with 255 = undecided.
        undecided: See :class:`mmwsss.evaluation.LabelMeter`.
        ignore_index: Pixels of this value in the mask are not scored.
        prefix: Put in front of the metric names.
    """

    def __init__(
        self,
        *,
        field: str = 'pred_sem_seg',
        undecided: str = 'leave_out',
        ignore_index: int = 255,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix=prefix)
        self.field = field
        self.undecided = undecided
        self.ignore_index = ignore_index

    def new_meter(self) -> LabelMeter:
        """A meter for the dataset's classes."""
        return LabelMeter(
            len(self.dataset_meta['classes']),
            undecided=self.undecided,
            ignore_index=self.ignore_index,
        )

    def add_sample(self, meter: LabelMeter, sample: dict) -> None:
        """Score one data sample."""
        pred = _map(sample, self.field)
        meter.update(pred, _map(sample, 'gt_sem_seg').to(pred.device))

    def compute_metrics(self, results: list) -> dict:
        """The names of MMSeg's IoUMetric, in percent, and the share kept."""
        table = results[0].result(self.dataset_meta['classes'])
        self._log_classes(self.field, table)
        return {
            'mIoU': round(table['miou'] or 0.0, 2),
            'mPrecision': round(table['precision'] or 0.0, 2),
            'mRecall': round(table['recall'] or 0.0, 2),
            'aAcc': round(table['accuracy'] or 0.0, 2),
            'kept': round(table['kept'], 2),
        }


@METRICS.register_module()
class CAMMetric(_StreamingMetric):
    """MIoU of CAMs at the best and at a fixed threshold.

    Args:
        field: Field of the data sample with the CAMs (K, H, W) in [0, 1].
        thresholds: Thresholds of the sweep; empty for 0.01, 0.02, ..., 0.99.
        fixed_threshold: Also report this one; must be among the thresholds.
        ignore_index: Pixels of this value in the mask are not scored.
        prefix: Put in front of the metric names.
    """

    def __init__(
        self,
        *,
        field: str = 'cams',
        thresholds: Sequence[float] = (),
        fixed_threshold: float = 0.25,
        ignore_index: int = 255,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix=prefix)
        self.field = field
        self.thresholds = tuple(thresholds) or default_thresholds()
        if fixed_threshold not in self.thresholds:
            raise ValueError(
                f'fixed_threshold must be among the thresholds, got {fixed_threshold}'
            )
        self.fixed_threshold = fixed_threshold
        self.ignore_index = ignore_index

    def new_meter(self) -> SweepMeter:
        """A meter for the dataset's classes."""
        return SweepMeter(
            len(self.dataset_meta['classes']),
            thresholds=self.thresholds,
            ignore_index=self.ignore_index,
        )

    def add_sample(self, meter: SweepMeter, sample: dict) -> None:
        """Score one data sample."""
        cams = sample[self.field]
        cams = getattr(cams, 'data', cams)
        image_label = getattr(sample['image_label'], 'data', sample['image_label'])
        meter.update(
            cams,
            image_label.to(cams.device),
            _map(sample, 'gt_sem_seg').to(cams.device),
        )

    def compute_metrics(self, results: list) -> dict:
        """MIoU in percent at the best threshold, the threshold, and the fixed one."""
        meter = results[0]
        classes = self.dataset_meta['classes']
        best = meter.result(classes, index=meter.best())
        fixed_index = self.thresholds.index(self.fixed_threshold)
        fixed = meter.result(classes, index=fixed_index)
        self._log_classes(f'{self.field} at {best["threshold"]:.2f}', best)
        return {
            'mIoU': round(best['miou'] or 0.0, 2),
            'threshold': best['threshold'],
            f'mIoU@{self.fixed_threshold:g}': round(fixed['miou'] or 0.0, 2),
        }
