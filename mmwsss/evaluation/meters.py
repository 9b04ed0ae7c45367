"""Streaming scores of label maps and CAMs: one confusion matrix, any number of photos.

The meters hold a few integers per class, never a picture, so 40,000 photos cost as
much memory as one. They know nothing about MM packages and can be used alone.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mmwsss.functional.confusion import (
    confusion_matrix,
    segmentation_scores,
    threshold_sweep,
)

UNDECIDED_POLICIES = {
    'leave_out': 'undecided pixels (255) are left out of the score',
    'background': 'undecided pixels (255) count as background',
    'wrong': 'undecided pixels (255) count as missed',
}


def default_thresholds() -> tuple[float, ...]:
    """The thresholds 0.01, 0.02, ..., 0.99 of a full sweep."""
    return tuple(i / 100 for i in range(1, 100))


def percent(value: float) -> float | None:
    """Scale a share to percent with four decimals; None for a class without pixels."""
    value = float(value)
    return None if math.isnan(value) else round(100 * value, 4)


def score_table(confusion: Tensor, classes: Sequence[str]) -> dict:
    """Turn a confusion matrix into plain numbers for JSON, in percent.

    Args:
        confusion: (C, C) or larger with rows = target; rows and columns beyond the
            number of class names take part in the sums only.
        classes: C names, background first.

    Returns:
        ``miou``, ``precision``, ``recall`` (means over the classes with target
        pixels), ``accuracy``, ``pixels`` and ``per_class``, a list of dicts in the
        order of ``classes``; None stands where a class has no pixels.
    """
    scores = segmentation_scores(confusion)
    pixels = confusion.sum(dim=1).tolist()
    per_class = [
        {
            'name': name,
            'iou': percent(scores['iou'][i]) if pixels[i] else None,
            'precision': percent(scores['precision'][i]) if pixels[i] else None,
            'recall': percent(scores['recall'][i]) if pixels[i] else None,
            'pixels': int(pixels[i]),
        }
        for i, name in enumerate(classes)
    ]
    return {
        'miou': percent(scores['mean_iou']),
        'precision': percent(scores['mean_precision']),
        'recall': percent(scores['mean_recall']),
        'accuracy': percent(scores['accuracy']),
        'pixels': int(sum(pixels)),
        'scored_classes': sum(count > 0 for count in pixels[: len(classes)]),
        'per_class': per_class,
    }


class LabelMeter:
    """Adds up the confusion of label maps against masks.

    Args:
        num_classes: C, background included.
        undecided: What a predicted 255 means: ``'leave_out'`` scores the decided
            pixels only (report the share kept beside it), ``'background'`` takes it
            as class 0, ``'wrong'`` counts it as a miss of the true class and as a
            false alarm of none.
        ignore_index: Pixels of this value in the mask are not scored.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        undecided: str = 'leave_out',
        ignore_index: int = 255,
    ) -> None:
        if undecided not in UNDECIDED_POLICIES:
            raise ValueError(
                f'undecided must be one of {sorted(UNDECIDED_POLICIES)}, '
                f'got {undecided!r}'
            )
        self.num_classes = num_classes
        self.undecided = undecided
        self.ignore_index = ignore_index
        # Misses that are a false alarm of no class need a column of their own.
        self._size = num_classes + (undecided == 'wrong')
        self.confusion = torch.zeros(self._size, self._size, dtype=torch.int64)
        self.num_images = 0
        self.decided_pixels = 0
        self.target_pixels = 0

    def update(self, pred: Tensor, target: Tensor) -> Tensor:
        """Add one label map (H, W) and its mask (H, W).

        Returns:
            The map's own confusion (C, C); under the policy ``'wrong'`` (C + 1,
            C + 1), the last column holding the undecided pixels.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f'pred and target must have one shape, got {tuple(pred.shape)} '
                f'and {tuple(target.shape)}'
            )
        pred, target = pred.long(), target.long()
        open_pixels = pred == self.ignore_index
        scored = target != self.ignore_index
        if self.undecided == 'leave_out':
            target = target.masked_fill(open_pixels, self.ignore_index)
        stand_in = 0
        if self.undecided == 'wrong':
            stand_in = self.num_classes
            if (pred == stand_in).any() or (target == stand_in).any():
                raise ValueError(
                    f'labels must lie in [0, {stand_in}) or be {self.ignore_index}, '
                    f'got {stand_in}'
                )
        confusion = confusion_matrix(
            pred.masked_fill(open_pixels, stand_in)[None],
            target[None],
            self._size,
            ignore_index=self.ignore_index,
        ).cpu()
        self.confusion += confusion
        self.num_images += 1
        self.target_pixels += int(scored.sum())
        self.decided_pixels += int((scored & ~open_pixels).sum())
        return confusion

    def result(self, classes: Sequence[str]) -> dict:
        """Scores in percent, the number of images and the share of decided pixels."""
        table = score_table(self.confusion, classes)
        kept = self.decided_pixels / self.target_pixels if self.target_pixels else 0.0
        return {**table, 'images': self.num_images, 'kept': round(100 * kept, 4)}

    def state(self) -> dict:
        """The sums as plain Python, for JSON and for adding up over processes."""
        return {
            'confusion': self.confusion.tolist(),
            'num_images': self.num_images,
            'decided_pixels': self.decided_pixels,
            'target_pixels': self.target_pixels,
        }

    def add_state(self, state: dict) -> None:
        """Add the sums of another meter of the same kind."""
        self.confusion += torch.tensor(state['confusion'], dtype=torch.int64)
        self.num_images += state['num_images']
        self.decided_pixels += state['decided_pixels']
        self.target_pixels += state['target_pixels']


class SweepMeter:
    """Adds up the confusion of CAMs cut at many thresholds at once.

    Args:
        num_classes: C, background included.
        thresholds: Increasing values in (0, 1); background wins where no CAM of a
            present class is above the threshold.
        ignore_index: Pixels of this value in the mask are not scored.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        thresholds: Sequence[float],
        ignore_index: int = 255,
    ) -> None:
        self.thresholds = tuple(float(value) for value in thresholds)
        if not self.thresholds:
            raise ValueError('thresholds must hold at least one value, got none')
        self.ignore_index = ignore_index
        self.confusion = torch.zeros(
            len(self.thresholds), num_classes, num_classes, dtype=torch.int64
        )
        self.num_images = 0

    def update(self, cams: Tensor, image_label: Tensor, target: Tensor) -> None:
        """Add the CAMs (K, H, W) of one photo with labels (K,) and mask (H, W)."""
        present = (image_label > 0).nonzero()[:, 0]
        self.update_present(cams[present], present.tolist(), target)

    def update_present(
        self, cams: Tensor, classes: Sequence[int], target: Tensor
    ) -> None:
        """Add one photo by the CAMs of its own classes alone.

        Args:
            cams: (P, H, W).
            classes: P ascending indices into the foreground classes.
            target: (H, W) in [0, C) or ``ignore_index``.

        Raises:
            ValueError: if a target is out of range or shapes do not belong together.
        """
        target, num_classes = target.long(), self.confusion.shape[-1]
        scored = target != self.ignore_index
        wrong = target[scored & ((target < 0) | (target >= num_classes))]
        if wrong.numel():
            raise ValueError(
                f'target must lie in [0, {num_classes}), got {int(wrong[0])}'
            )
        # Of 20 classes a photo has two: the sweep sees those and the mask's alone.
        target = target.masked_fill(~scored, num_classes)
        shown = target.flatten().bincount(minlength=num_classes)[1:num_classes]
        kept = sorted({*classes, *shown.nonzero()[:, 0].tolist()}) or [0]
        rows = [kept.index(k) for k in classes]
        maps = cams.new_zeros(len(kept), *target.shape)
        maps[rows] = cams
        image_label = cams.new_zeros(len(kept))
        image_label[rows] = 1
        full = [0, *(k + 1 for k in kept)]
        short = target.new_full((num_classes + 1,), self.ignore_index)
        short[full] = torch.arange(len(full), device=target.device)
        counts = threshold_sweep(
            maps[None],
            image_label[None],
            short[target][None],
            thresholds=self.thresholds,
            ignore_index=self.ignore_index,
        )
        full = torch.tensor(full)
        self.confusion[:, full[:, None], full] += counts.cpu()
        self.num_images += 1

    def sweep(self) -> list[dict]:
        """Per threshold ``threshold`` and, in percent, ``miou, precision, recall``."""
        scores = segmentation_scores(self.confusion)
        return [
            {
                'threshold': threshold,
                'miou': percent(scores['mean_iou'][i]),
                'precision': percent(scores['mean_precision'][i]),
                'recall': percent(scores['mean_recall'][i]),
            }
            for i, threshold in enumerate(self.thresholds)
        ]

    def curve(self) -> list[float | None]:
        """MIoU in percent at each threshold."""
        return [row['miou'] for row in self.sweep()]

    def best(self, among: Collection[float] | None = None) -> int:
        """Position of the threshold with the highest mIoU; the lowest one on a tie.

        Args:
            among: Thresholds that may win; None for all.
        """
        candidates = [
            i for i, t in enumerate(self.thresholds) if among is None or t in among
        ]
        values = [-1.0 if value is None else value for value in self.curve()]
        return max(candidates, key=values.__getitem__)

    def result(self, classes: Sequence[str], *, index: int) -> dict:
        """Scores in percent at the threshold of that position."""
        table = score_table(self.confusion[index], classes)
        return {
            **table,
            'images': self.num_images,
            'kept': 100.0,
            'threshold': self.thresholds[index],
        }

    def state(self) -> dict:
        """The sums as plain Python, for JSON and for adding up over processes."""
        return {'confusion': self.confusion.tolist(), 'num_images': self.num_images}

    def add_state(self, state: dict) -> None:
        """Add the sums of another meter of the same kind."""
        self.confusion += torch.tensor(state['confusion'], dtype=torch.int64)
        self.num_images += state['num_images']
