"""Scores a folder of label maps against a folder of masks."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from mmwsss.apis.jobs import Progress, run_jobs
from mmwsss.datasets.transforms import DAMAGED
from mmwsss.errors import InputError
from mmwsss.evaluation.meters import UNDECIDED_POLICIES, LabelMeter
from mmwsss.files import png_damage

MAP_SUFFIXES = ('.png', '.webp')
# One sum goes from process to process for so many photos.
_LARGEST_SHARE = 64


class Meter(Protocol):
    """Sums that processes can send to each other."""

    def state(self) -> dict:
        """The sums."""

    def add_state(self, state: dict) -> None:
        """Add the sums of another meter."""


def read_label_map(path: Path) -> np.ndarray:
    """Read an index map as (H, W) uint8.

    Palette and grey PNG hold the index directly; lossless WebP (which has no index
    mode) holds it in three equal channels.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            values = np.array(image)
        if image.format == 'PNG' and (damage := png_damage(content)):
            raise OSError(damage)
    except FileNotFoundError:
        raise InputError(f'{path} does not exist') from None
    except DAMAGED as error:
        raise InputError(
            f'{path} cannot be read as a label map ({error}); delete it and make it '
            'again'
        ) from None
    if values.ndim == 3:
        first = values[..., 0]
        if mode == 'LA' or not all(
            np.array_equal(first, values[..., c]) for c in (1, 2)
        ):
            raise InputError(
                f'{path} is a colour picture (mode {mode}), not an index map; save '
                'the class index itself, as palette or grey PNG'
            )
        values = first
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise InputError(
                f'{path} holds values up to {int(values.max())}; a label map has '
                'indices 0 to 255'
            )
        values = values.astype(np.uint8)
    return values


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """Read a mask (H, W) uint8 of indices below ``num_classes`` and 255."""
    mask = read_label_map(path)
    _check_range(mask, path, num_classes)
    return mask


def read_ids(path: Path) -> list[str]:
    """Read image ids, one a line (the first word counts); none twice, none empty."""
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'the list {path} cannot be read: {error}') from None
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise InputError(f'the list {path} names no image')
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise InputError(f'the list {path} names {twice} more than once')
    return ids


def read_class_names(path: Path) -> list[str]:
    """Read class names, one a line; background is put in front unless it is there."""
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'the class list {path} cannot be read: {error}') from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f'the class list {path} names no class')
    return names if names[0] == 'background' else ['background', *names]


def evaluate_folders(
    pred_dir: Path,
    target_dir: Path,
    *,
    ids: Iterable[str] | None,
    classes: Sequence[str],
    undecided: str = 'leave_out',
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
) -> dict:
    """Score label maps against masks with 255 = not scored in the masks.

    Args:
        pred_dir: Holds ``ID.png`` or ``ID.webp``.
        target_dir: Holds the masks, named alike.
        ids: Images to score; None for every map in ``pred_dir``.
        classes: C names, background first.
        undecided: What a predicted 255 means, see :class:`LabelMeter`.
        jobs: Processes.
        progress: Wraps the stream of scored ids, called with it and their number.

    Returns:
        Scores in percent with ``per_class``, ``images``, ``kept`` and ``policy``.
    """
    pred_dir, target_dir = Path(pred_dir), Path(target_dir)
    for folder in (pred_dir, target_dir):
        if not folder.is_dir():
            raise InputError(f'the folder {folder} does not exist')
    names = sorted(_ids_in(pred_dir)) if ids is None else list(ids)
    if not names:
        raise InputError(f'{pred_dir} holds no label map ({", ".join(MAP_SUFFIXES)})')
    pairs = [(find_map(pred_dir, name), find_map(target_dir, name)) for name in names]
    meter = added_up(
        partial(LabelMeter, len(classes), undecided=undecided),
        partial(_add_pair, len(classes)),
        pairs,
        jobs=jobs,
        progress=progress,
    )
    return {**meter.result(classes), 'policy': UNDECIDED_POLICIES[undecided]}


def _add_pair(num_classes: int, meter: LabelMeter, pair: tuple[Path, Path]) -> None:
    pred_path, target_path = pair
    pred, target = read_label_map(pred_path), read_mask(target_path, num_classes)
    if pred.shape != target.shape:
        raise InputError(
            f'{pred_path} is {pred.shape[1]} x {pred.shape[0]} but its mask is '
            f'{target.shape[1]} x {target.shape[0]}; both must have the size of '
            'the photo'
        )
    _check_range(pred, pred_path, num_classes)
    meter.update(torch.from_numpy(pred), torch.from_numpy(target))


# ------------------------------------------------------------- sums of many processes
@dataclass
class _Share:
    photos: list
    sums: dict | None = None


def added_up(
    new_meter: Callable[[], Meter],
    add: Callable[[Meter, object], None],
    photos: Sequence,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
) -> Meter:
    """Score photos in one or several processes and add their sums up.

    Args:
        new_meter: Makes an empty meter; picklable for several processes.
        add: Scores one photo into a meter; picklable too.
        photos: What ``add`` is called on.
        jobs: Processes.
        progress: Wraps the stream of scored photos, called with it and their number.

    Raises:
        InputError: Bad input in any process.
    """
    total = new_meter()
    size = max(1, min(_LARGEST_SHARE, len(photos) // (4 * max(jobs, 1))))
    shares = [_Share(list(photos[i : i + size])) for i in range(0, len(photos), size)]

    def collected(done: Iterable[_Share]) -> Iterable:
        for share in done:
            total.add_state(share.sums)
            # The sums of all shares at once would be gigabytes for 80 classes.
            share.sums = None
            yield from share.photos

    run_jobs(
        partial(_scorer, new_meter, add),
        shares,
        jobs=jobs,
        progress=lambda done, _: progress(collected(done), len(photos)),
    )
    return total


def _scorer(new_meter: Callable, add: Callable, number: int) -> Callable:
    return partial(_score_share, new_meter, add)


def _score_share(new_meter: Callable, add: Callable, share: _Share) -> None:
    """Note the sums on the share, which comes back from a process as it is then."""
    meter = new_meter()
    for photo in share.photos:
        add(meter, photo)
    share.sums = meter.state()


def format_table(table: dict) -> str:
    """Lay a score table out as text, percent with two decimals.

    Args:
        table: As from ``evaluate_folders``.
    """
    width = max(len('pixel accuracy'), *(len(r['name']) for r in table['per_class']))
    lines = [f'{"class":<{width}}     IoU   prec.  recall']
    for row in table['per_class']:
        cells = (row['iou'], row['precision'], row['recall'])
        lines.append(f'{row["name"]:<{width}} ' + ' '.join(map(format_cell, cells)))
    means = (table['miou'], table['precision'], table['recall'])
    lines.append(f'{"mean":<{width}} ' + ' '.join(map(format_cell, means)))
    lines.append(f'{"pixel accuracy":<{width}} {format_cell(table["accuracy"])}')
    lines.append('')
    miou, total = format_cell(table['miou']).strip(), len(table['per_class'])
    lines.append(
        f'mIoU {miou} over {table["scored_classes"]} of {total} classes, '
        f'{table["images"]} images'
    )
    if table['kept'] < 100:
        lines.append(
            f'{table["kept"]:.2f} % of the scored pixels are decided; {table["policy"]}'
        )
    return '\n'.join(lines)


def format_cell(value: float | None) -> str:
    """A percentage with two decimals, a dash for None."""
    return f'{"-":>7}' if value is None else f'{value:7.2f}'


def _ids_in(folder: Path) -> set[str]:
    return {p.stem for p in folder.iterdir() if p.suffix.lower() in MAP_SUFFIXES}


def find_map(folder: Path, name: str) -> Path:
    """The file of an image's map, or an InputError."""
    for suffix in MAP_SUFFIXES:
        path = folder / f'{name}{suffix}'
        if path.is_file():
            return path
    raise InputError(
        f'{folder} has no map for image {name} (looked for '
        f'{" and ".join(name + suffix for suffix in MAP_SUFFIXES)})'
    )


def _check_range(values: np.ndarray, path: Path, num_classes: int) -> None:
    wrong = values[(values >= num_classes) & (values != 255)]
    if wrong.size:
        raise InputError(
            f'{path} holds the index {int(wrong.max())}, but there are {num_classes} '
            'classes with background; check the number of classes'
        )
