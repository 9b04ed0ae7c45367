"""What a threshold chosen without masks loses against the best one by masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmwsss.apis.cam_scores import SweepOptions, evaluate_store
from mmwsss.apis.label_folders import MAP_SUFFIXES
from mmwsss.apis.photos import Photo
from mmwsss.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ThresholdLoss:
    """Scores with image labels given, at two thresholds of the same CAMs.

    Attributes:
        photos: Number of photos with a mask.
        threshold: The one that was chosen without masks.
        miou: There, in percent.
        oracle: The best one by the masks.
        oracle_miou: There, in percent.
        points: ``oracle_miou - miou``, at least 0.
    """

    photos: int
    threshold: float
    miou: float
    oracle: float
    oracle_miou: float
    points: float

    @property
    def described(self) -> str:
        """Lines for people."""
        return (
            f'compared by the masks of {self.photos} photos, which chose nothing of '
            'the above:\n'
            f'  chosen without masks  {self.threshold:.4f}  {self.miou:6.2f} mIoU\n'
            f'  oracle, by the masks  {self.oracle:.4f}  {self.oracle_miou:6.2f} mIoU\n'
            f'  loss                          {self.points:6.2f} points'
        )


def threshold_loss(
    store_dir: Path,
    masks: Path,
    photos: Sequence[Photo],
    class_names: Sequence[str],
    *,
    threshold: float,
    among: Sequence[float],
) -> ThresholdLoss:
    """Score a threshold and the best one by masks.

    Args:
        store_dir: The CAMs.
        masks: Folder of ``ID.png`` or ``ID.webp``; photos without one are left out.
        photos: Those of the store that may have masks.
        class_names: K foreground classes.
        threshold: In [0, 1].
        among: Thresholds of which the best is taken, ``threshold`` too.

    Raises:
        InputError: No photo has a mask, or one does not fit.
    """
    if not masks.is_dir():
        raise InputError(f'the folder {masks} does not exist; correct --masks')
    ids = [
        photo.id
        for photo in photos
        if any((masks / f'{photo.id}{suffix}').is_file() for suffix in MAP_SUFFIXES)
    ]
    if not ids:
        raise InputError(
            f'{masks} holds no mask of the {len(photos)} photos, the first is '
            f'{photos[0].id}; masks are called as their photos: correct --masks'
        )
    scored = evaluate_store(
        store_dir,
        masks,
        ids=ids,
        classes=['background', *class_names],
        options=SweepOptions(thresholds=sorted({*among, threshold}), fixed=threshold),
    )
    fixed, best = (scored['policies'][name] for name in ('fixed', 'best'))
    return ThresholdLoss(
        photos=len(ids),
        threshold=threshold,
        miou=fixed['miou'],
        oracle=best['threshold'],
        oracle_miou=best['miou'],
        points=round(best['miou'] - fixed['miou'], 4),
    )
