"""Checks a data set before training, and the installation.

Photos and masks are opened once, in several processes; of 100,000 photos some hundred
bytes each are kept. Nothing is written beside them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from mmwsss.apis.doctor.findings import Report
from mmwsss.apis.doctor.inputs import Inputs, Split, inputs_of_config, inputs_of_folder
from mmwsss.apis.doctor.installation import (
    command_line,
    installation_findings,
    installed_versions,
)
from mmwsss.apis.doctor.masks import lonely_masks, mask_findings, mask_folder_missing
from mmwsss.apis.doctor.photos import photo_findings
from mmwsss.apis.doctor.scan import Scan, scan_photos
from mmwsss.apis.doctor.tags import tag_findings
from mmwsss.apis.jobs import Progress
from mmwsss.apis.stages import available_cores
from mmwsss.errors import InputError

# A process more pays off for so many photos; starting it takes seconds.
_PHOTOS_PER_JOB = 2000


def run_doctor(
    *,
    folder: Path | None = None,
    image_labels: Path | None = None,
    masks: Path | None = None,
    lists: Mapping[str, Path] | None = None,
    crop: tuple[int, int] | None = None,
    config: Mapping | None = None,
    open_photos: bool = True,
    installation: bool = True,
    jobs: int | None = None,
    progress: Progress = lambda done, total: done,
) -> Report:
    """Look at a data set, or at those of a config, and at this machine.

    Args:
        folder: Photos, or a data set in VOC layout; None looks at none.
        image_labels: JSON of image labels, see :func:`inputs_of_folder`.
        masks: Folder of masks.
        lists: Split name -> list of ids; names that begin with 'train' are trained on.
        crop: (height, width) of a training crop.
        config: In place of the folder; its weights and workers are looked at as well.
        open_photos: False looks at names, lists and tags alone.
        installation: Also look at packages, GPU, threads, disk and weights.
        jobs: Processes that open photos; None takes what pays off.
        progress: Wraps the stream of opened photos.

    Raises:
        InputError: A file that was named does not exist, or folder and config both.
    """
    if folder is not None and config is not None:
        raise InputError('give a folder of photos or a config, not both')
    report = Report()
    inputs = None
    if folder is not None:
        inputs = inputs_of_folder(
            folder, image_labels=image_labels, masks=masks, lists=lists, crop=crop
        )
    elif config is not None:
        inputs = inputs_of_config(config)
    if inputs is not None:
        _check_data(inputs, report, open_photos, jobs, progress)
    if installation:
        report.facts.update(_machine())
        report.add(installation_findings(config))
    return report


def _check_data(
    inputs: Inputs,
    report: Report,
    open_photos: bool,
    jobs: int | None,
    progress: Progress,
) -> None:
    splits = inputs.splits
    pairs: dict[str, str | None] = {}
    for split in splits:
        for image_id, path in split.photos.items():
            pairs[path] = pairs.get(path) or split.mask(image_id)
    report.facts.update(_counts(splits, len(pairs)))
    report.add(inputs.findings)
    report.add(tag_findings(splits))
    report.add(mask_folder_missing(splits))
    report.add(lonely_masks(splits))
    if not open_photos:
        report.facts['opened'] = 'no photo'
        return
    jobs = jobs or max(1, min(available_cores(), len(pairs) // _PHOTOS_PER_JOB))
    scan = scan_photos(list(pairs.items()), jobs=jobs, progress=progress)
    report.facts.update(_sizes(scan))
    report.add(photo_findings(scan, splits))
    report.add(mask_findings(scan, splits))


def _counts(splits: tuple[Split, ...], photos: int) -> dict[str, object]:
    classes = {s.labels.classes for s in splits if s.labels is not None}
    shown = ', '.join(f'{s.name} {len(s.photos)}' for s in splits)
    facts: dict[str, object] = {'photos': photos, 'splits': shown or 'none'}
    for names in classes:
        first = ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
        facts['classes'] = f'{len(names)} ({first})'
    return facts


def _sizes(scan: Scan) -> dict[str, object]:
    sizes = scan.sizes[scan.readable]
    if not len(sizes):
        return {'opened': 'no photo'}
    order = sizes.prod(1).argsort(kind='stable')
    named = {
        'smallest': order[0],
        'median': order[len(order) // 2],
        'largest': order[-1],
    }
    shown = [f'{name} {sizes[i, 1]}x{sizes[i, 0]}' for name, i in named.items()]
    return {
        'opened': f'{len(sizes)} photos, {len(scan.masks)} masks',
        'sizes': ', '.join(shown),
    }


def _machine() -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        'packages': ', '.join(f'{n} {v}' for n, v in installed_versions().items()),
        'machine': command_line(),
        'gpus': ', '.join(gpus) or 'none',
        'threads': f'{torch.get_num_threads()} of {available_cores()} cores',
    }
