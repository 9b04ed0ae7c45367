"""The splits that the doctor looks at: from a folder, or from a config's data sets.

Nothing here raises for what is wrong with the data; it becomes a finding.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmwsss.apis.doctor.findings import Finding
from mmwsss.apis.prepare import photo_folder
from mmwsss.datasets.image_label_dataset import PHOTO_SUFFIXES, find_photos
from mmwsss.datasets.image_labels import ImageLabels, load_image_labels
from mmwsss.errors import InputError, tool

_LISTS = {
    'train': ('train_aug.txt', 'train.txt'),
    'val': ('val.txt',),
    'test': ('test.txt',),
}
_MASK_LOADERS = ('LoadMask', 'LoadAnnotations')
# Pictures that no list of photos takes.
_OTHER_PICTURES = ('.heic', '.heif', '.avif', '.gif', '.jp2', '.psd', '.svg', '.raw')


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some photos of a data set, with what belongs to them.

    Attributes:
        name: Such as 'train'.
        photos: Id -> file, those that exist.
        found: The same for all photos of its folder, listed or not.
        labels: Image labels; None where there are none, or none that can be read.
        labels_path: Their file, '' without.
        masks: Folder of masks, None without.
        mask_suffix: Of their files.
        needs_masks: Whether the split is scored.
        skip_unlabelled: Whether photos without an entry are left out on purpose.
        crop: (height, width) that photos are cropped to as they are, None if they are
            resized before.
    """

    name: str
    photos: Mapping[str, str]
    found: Mapping[str, str]
    labels: ImageLabels | None = None
    labels_path: str = ''
    masks: Path | None = None
    mask_suffix: str = '.png'
    needs_masks: bool = False
    skip_unlabelled: bool = False
    crop: tuple[int, int] | None = None

    @property
    def is_training(self) -> bool:
        """Whether a network is trained on it."""
        return self.name.startswith('train') or self.name == 'all'

    def mask(self, image_id: str) -> str | None:
        """The file of a photo's mask, None where the split has no masks."""
        if self.masks is None:
            return None
        return str(self.masks / f'{image_id}{self.mask_suffix}')

    def tags(self, image_id: str) -> tuple[int, ...] | None:
        """Indices of a photo's classes, None without an entry."""
        return None if self.labels is None else self.labels.labels.get(image_id)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What there is to look at, and what was wrong on the way."""

    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]


def inputs_of_folder(
    folder: Path,
    *,
    image_labels: Path | None = None,
    masks: Path | None = None,
    lists: Mapping[str, Path] | None = None,
    crop: tuple[int, int] | None = None,
) -> Inputs:
    """A folder of photos, or a data set in VOC layout.

    Args:
        folder: With photos, or with JPEGImages.
        image_labels: Their JSON; None takes image_labels.json of the folder.
        masks: Folder of masks; None takes SegmentationClass of the folder.
        lists: Split name -> list of ids; None takes those of ImageSets/Segmentation.
        crop: (height, width) that training crops to.

    Raises:
        InputError: The folder, or a file that was named, does not exist.
    """
    for path in (folder, image_labels, masks, *(lists or {}).values()):
        if path is not None and not path.exists():
            raise InputError(f'{path.absolute()} does not exist')
    findings = []
    if image_labels is None:
        names = ('image_labels.json', 'image_labels.json.gz')
        image_labels = next((folder / n for n in names if (folder / n).is_file()), None)
    labels = _labels(image_labels, findings)
    if masks is None and (folder / 'SegmentationClass').is_dir():
        masks = folder / 'SegmentationClass'
    if lists is None:
        lists = dict(_found_lists(folder))
    place = photo_folder(folder)
    photos = _photos_in(place, findings)
    findings += _other_files(place)
    common = dict(
        found=photos,
        labels=labels,
        labels_path=str(image_labels or ''),
        masks=masks,
        crop=crop,
    )
    splits = [
        Split(
            name=name,
            photos=_listed(name, path, photos, labels, findings),
            needs_masks=masks is not None and not name.startswith('train'),
            **common,
        )
        for name, path in lists.items()
    ]
    if not splits:
        splits = [Split(name='all', photos=photos, **common)]
    else:
        findings += _unlisted(photos, splits)
    return Inputs(splits=tuple(splits), findings=tuple(findings))


def inputs_of_config(config: Mapping) -> Inputs:
    """The data sets of a config's loaders; the same photos are looked at once."""
    findings: list[Finding] = []
    splits = []
    for loader in ('train', 'train_eval', 'val', 'test'):
        content = config.get(f'{loader}_dataloader')
        for dataset in _leaves(content.get('dataset') if content else None):
            splits += _split_of(dataset, loader, findings)
    unique = {}
    for split in splits:
        # The test loader is often the val loader under another name.
        key = (tuple(split.photos.values()), split.labels_path, split.masks)
        unique.setdefault(key, split)
    unique_findings = {(f.code, f.what): f for f in findings}
    return Inputs(
        splits=tuple(unique.values()), findings=tuple(unique_findings.values())
    )


# --------------------------------------------------------------------------- a folder
def _labels(path: Path | None, findings: list[Finding]) -> ImageLabels | None:
    if path is None:
        findings.append(
            Finding(
                code='labels-none',
                severity='warning',
                what='there are no image labels, so tags were not looked at',
                meaning='Image labels are all that weak supervision learns from.',
                advice='Make them from your tags (mmwsss convert tags --help) and name '
                'them by --labels.',
            )
        )
        return None
    try:
        return load_image_labels(path)
    except InputError as error:
        findings.append(
            Finding(
                code='labels-unreadable',
                severity='error',
                what=str(error),
                meaning='Without valid image labels nothing can be trained.',
                advice='Correct the file as the sentence says.',
            )
        )
    return None


def _photos_in(folder: Path, findings: list[Finding]) -> dict[str, str]:
    try:
        photos = find_photos(folder)
    except InputError as error:
        findings.append(
            Finding(
                code='photo-names',
                severity='error',
                what=str(error),
                meaning='A tag or a mask would belong to two photos; nothing else was '
                'looked at.',
                advice='Rename one of them, and its mask and its entry with it.',
            )
        )
        return {}
    if not photos:
        findings.append(
            Finding(
                code='photos-none',
                severity='error',
                what=f'{folder.absolute()} holds no photo '
                f'({", ".join(PHOTO_SUFFIXES)})',
                meaning='There is nothing to train on.',
                advice='Give the folder that holds the photos.',
            )
        )
    return {image_id: str(folder / file) for image_id, file in photos}


def _found_lists(folder: Path) -> Iterator[tuple[str, Path]]:
    for name, files in _LISTS.items():
        for file in files:
            path = folder / 'ImageSets' / 'Segmentation' / file
            if path.is_file():
                yield name, path
                break


def _other_files(folder: Path) -> list[Finding]:
    others = sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_OTHER_PICTURES) and not name.startswith('.')
    )
    return Finding.of(
        others,
        code='photo-suffix',
        severity='warning',
        what='pictures of a kind that is not read: {n}',
        meaning='They are no photos of the data set, whatever their tags say.',
        advice=f'Convert them to one of {", ".join(PHOTO_SUFFIXES)}.',
    )


def _unlisted(photos: Mapping[str, str], splits: Sequence[Split]) -> list[Finding]:
    listed = set().union(*(split.photos for split in splits))
    return Finding.of(
        [image_id for image_id in photos if image_id not in listed],
        code='photo-unlisted',
        severity='note',
        what='photos in no list, which were not opened: {n}',
        meaning='They take no part in training or scores.',
        advice='Add them to a list if they should; photos with tags and without masks '
        'belong into train.',
    )


# --------------------------------------------------------------------------- the lists
def _listed(
    name: str,
    path: Path,
    photos: Mapping[str, str],
    labels: ImageLabels | None,
    findings: list[Finding],
) -> dict[str, str]:
    """The photos of a list; what is wrong with it is noted."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.append(
            Finding(
                code='list-unreadable',
                severity='error',
                what=f'the list {path} cannot be read ({error})',
                meaning=f'There is no split {name}.',
                advice='Save it as UTF-8 text with one id a line.',
            )
        )
        return {}
    known = {} if labels is None else labels.labels
    lines = [line.strip() for line in lines if line.strip()]
    # A list may have a second column, ids may have spaces.
    ids = [i if i in photos or i in known else i.split()[0] for i in lines]
    findings += Finding.of(
        [image_id for image_id in dict.fromkeys(ids) if image_id not in photos],
        code='list-photo',
        severity='error',
        what=f'ids of the {name} list without a photo: {{n}} of {len(ids)}',
        meaning='Training stops before its first step.',
        advice=f'Correct {path} or add the photos (ids have no suffix, and the '
        'subfolder in front).',
    )
    findings += Finding.of(
        sorted({image_id for image_id in _repeated(ids)}),
        code='list-twice',
        severity='error',
        what=f'ids that the {name} list names more than once: {{n}}',
        meaning='These photos count double in training and in scores, and tools that '
        'make one file per photo refuse the list.',
        advice=f'Take the repeated lines out of {path}.',
    )
    return {image_id: photos[image_id] for image_id in ids if image_id in photos}


def _repeated(ids: Sequence[str]) -> Iterator[str]:
    seen = set()
    for image_id in ids:
        if image_id in seen:
            yield image_id
        seen.add(image_id)


# -------------------------------------------------------------------------- the config
def _leaves(dataset: Mapping | None) -> Iterator[Mapping]:
    """The data sets inside wrappers that join, repeat or balance."""
    if not dataset:
        return
    if 'datasets' in dataset:
        for one in dataset['datasets']:
            yield from _leaves(one)
    elif 'dataset' in dataset:
        yield from _leaves(dataset['dataset'])
    else:
        yield dataset


def _split_of(dataset: Mapping, name: str, findings: list[Finding]) -> list[Split]:
    root = Path(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    if 'img_path' not in prefix:
        findings.append(
            Finding(
                code='dataset-unknown',
                severity='note',
                what=f'the data set {dataset.get("type")} of {name} was not looked at',
                meaning='Only data sets of photos with data_prefix.img_path are known.',
                advice='Give its folder of photos instead of the config.',
            )
        )
        return []
    folder = root / prefix['img_path']
    if not folder.is_dir():
        findings.append(
            Finding(
                code='folder-missing',
                severity='error',
                what=f'the folder of photos {folder.absolute()} does not exist',
                meaning='There is nothing to train on or to score.',
                advice='Correct data_root (or --data), or fetch the data set: '
                f'{tool("prepare_data")} check --help.',
            )
        )
        return []
    labels_path = dataset.get('image_labels')
    labels = _labels(root / labels_path, findings) if labels_path else None
    found = photos = _photos_in(folder, findings)
    if dataset.get('ann_file'):
        suffix = dataset.get('img_suffix', '.jpg')
        found = {i: p for i, p in found.items() if p.endswith(suffix)}
        path = root / dataset['ann_file']
        photos = _listed(name, path, found, labels, findings)
    pipeline = dataset.get('pipeline') or ()
    masks = prefix.get('seg_map_path')
    return [
        Split(
            name=name,
            photos=photos,
            found=found,
            labels=labels,
            labels_path=str(root / labels_path) if labels_path else '',
            masks=None if masks is None else root / masks,
            mask_suffix=dataset.get('seg_map_suffix', '.png'),
            needs_masks=any(_step(step) in _MASK_LOADERS for step in pipeline),
            skip_unlabelled=bool(dataset.get('skip_unlabelled')),
            crop=_crop(pipeline),
        )
    ]


def _crop(pipeline: Sequence[Mapping]) -> tuple[int, int] | None:
    for step in pipeline:
        if 'Resize' in _step(step):
            return None
        size = step.get('crop_size')
        if size is not None:
            return (size, size) if isinstance(size, int) else tuple(size)
    return None


def _step(step: Mapping) -> str:
    return str(step.get('type', '')).rpartition('.')[2]
