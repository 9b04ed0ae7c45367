"""Findings about photos: files, sizes, rotation, and photos that are there twice."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmwsss.apis.doctor.findings import Finding
from mmwsss.apis.doctor.inputs import Split
from mmwsss.apis.doctor.scan import Scan
from mmwsss.apis.doctor.similar import equal_groups, near_groups

# A ViT's patch at stride 16, twice: fewer cells say nothing about where an object is.
SMALLEST_SIDE = 32
LARGEST_PIXELS = 16_000_000
_PLAIN_MODES = ('RGB', '')


def photo_findings(scan: Scan, splits: Sequence[Split]) -> list[Finding]:
    """What is wrong with photos by themselves, and with several of them."""
    ids = {path: i for split in splits for i, path in split.photos.items()}
    names = [ids[path] for path in scan.paths]
    return [
        *_files(scan, names),
        *_sizes(scan, names, splits),
        *_twice(scan, splits),
    ]


def _files(scan: Scan, names: Sequence[str]) -> list[Finding]:
    broken = [f'{names[i]} ({problem})' for i, problem in sorted(scan.problems.items())]
    modes = [
        f'{name} ({mode})'
        for name, mode in zip(names, scan.modes, strict=True)
        if mode not in _PLAIN_MODES
    ]
    return [
        *Finding.of(
            broken,
            code='photo-unreadable',
            severity='error',
            what='photos that cannot be read to their last pixel: {n} of '
            f'{len(names)}',
            meaning='Training stops with the name of the first one (other tools go on '
            'with a photo that is half grey, and its tags teach noise).',
            advice='Copy them again from where they came from, or take them out of the '
            'lists and the image labels.',
        ),
        *Finding.of(
            [names[i] for i in np.flatnonzero(scan.flat)],
            code='photo-blank',
            severity='warning',
            what='photos of one colour: {n}',
            meaning='There is nothing to see; with tags they teach that an object '
            'looks like nothing.',
            advice='Take them out, or correct the camera or the export.',
        ),
        *Finding.of(
            [names[i] for i in np.flatnonzero(scan.orientations > 1)],
            code='photo-rotated',
            severity='note',
            what='photos that their EXIF entry rotates: {n}',
            meaning='They are read upright here, and masks must fit the upright photo; '
            'annotation tools and OpenCV may have shown them lying.',
            advice='Compare one of them with its mask; if in doubt, save upright '
            'copies without the entry (ImageMagick: mogrify -auto-orient).',
        ),
        *Finding.of(
            modes,
            code='photo-mode',
            severity='note',
            what='photos that are not plain RGB (but grey, palette, transparent, CMYK '
            'or 16 bits): {n}',
            meaning='They are converted when they are read; transparent parts become '
            'white. If these are of one class alone, the network learns the format.',
            advice='Nothing, if they are spread over the classes; else convert all '
            'photos alike.',
        ),
    ]


def _sizes(scan: Scan, names: Sequence[str], splits: Sequence[Split]) -> list[Finding]:
    pixels = scan.sizes.prod(1, dtype=np.int64)

    def sized(which: np.ndarray) -> list[str]:
        return [
            f'{names[i]} ({scan.sizes[i, 1]}x{scan.sizes[i, 0]})'
            for i in np.flatnonzero(which & scan.readable)
        ]

    findings = Finding.of(
        sized(scan.sizes.min(1) < SMALLEST_SIDE),
        code='photo-tiny',
        severity='warning',
        what=f'photos under {SMALLEST_SIDE} pixels high or wide: {{n}}',
        meaning='A CAM has one cell per 8 to 16 pixels; here it has one or two, which '
        'cannot say where an object is.',
        advice='Leave them out, or take the photos they were cut from.',
    )
    findings += Finding.of(
        sized(pixels > LARGEST_PIXELS),
        code='photo-large',
        severity='note',
        what=f'photos with over {LARGEST_PIXELS // 1_000_000} million pixels: {{n}}',
        meaning='Opening them takes longer than a training step, and CAMs at full size '
        'take gigabytes.',
        advice='Make copies with about 2000 pixels on the long side.',
    )
    index = {path: i for i, path in enumerate(scan.paths)}
    for split in splits:
        if split.crop is None or not split.is_training:
            continue
        mine = np.zeros(len(names), bool)
        mine[[index[path] for path in split.photos.values()]] = True
        height, width = split.crop
        under = (scan.sizes[:, 0] < height) | (scan.sizes[:, 1] < width)
        findings += Finding.of(
            sized(mine & under),
            code='photo-under-crop',
            severity='warning',
            what=f'photos of {split.name} that are smaller than the crop '
            f'({width}x{height}): {{n}}',
            meaning='The rest of the crop is padding: it carries no label, and batches '
            'learn from fewer pixels.',
            advice='Take a smaller crop_size, or a RandomResize step before it.',
        )
    return findings


# ------------------------------------------------------------------- the same photo
def _twice(scan: Scan, splits: Sequence[Split]) -> list[Finding]:
    """Equal and alike photos, across splits and within one."""
    users = _users(splits)
    usable = np.flatnonzero(scan.readable & ~scan.flat)
    equal = [usable[group] for group in equal_groups(scan.digests[usable])]
    near = [
        usable[group] for group in near_groups(scan.hashes[usable], scan.thumbs[usable])
    ]
    # Groups of nothing but equal photos were told about already.
    known = {tuple(group) for group in equal}
    near = [group for group in near if tuple(group) not in known]
    findings = [*_shared(splits), *_across(equal, near, scan, users)]
    findings += _within(equal, near, scan, users)
    return findings


def _users(splits: Sequence[Split]) -> dict[str, list[tuple[Split, str]]]:
    """File -> the splits it is in, with its id there."""
    users = defaultdict(list)
    for split in splits:
        for image_id, path in split.photos.items():
            users[path].append((split, image_id))
    return users


def _shared(splits: Sequence[Split]) -> list[Finding]:
    train = {p for s in splits if s.is_training for p in s.photos.values()}
    findings = []
    for split in splits:
        if split.is_training:
            continue
        findings += Finding.of(
            [image_id for image_id, path in split.photos.items() if path in train],
            code='split-overlap',
            severity='error',
            what=f'photos of {split.name} that are training photos, too: {{n}} of '
            f'{len(split.photos)}',
            meaning='Scores tell how well the network remembers them, not how it does '
            'on new photos.',
            advice='Take them out of one of the two lists.',
        )
    return findings


def _across(
    equal: Sequence[np.ndarray],
    near: Sequence[np.ndarray],
    scan: Scan,
    users: dict[str, list[tuple[Split, str]]],
) -> list[Finding]:
    cases = (
        ('duplicate-across', 'error', equal, 'equal pixel by pixel'),
        ('similar-across', 'warning', near, 'nearly equal'),
    )
    findings = []
    for code, severity, groups, how in cases:
        pairs = [pair for group in groups for pair in _mixed(group, scan, users)]
        findings += Finding.of(
            pairs,
            code=code,
            severity=severity,
            what=f'photos of a scored split that are {how} to a training photo: {{n}}',
            meaning='The score is too good: the network, or the threshold chosen on '
            'these photos, has seen the answer.',
            advice='Put all photos of one scene, series or source into the same split.',
        )
    return findings


def _mixed(
    group: np.ndarray, scan: Scan, users: dict[str, list[tuple[Split, str]]]
) -> list[str]:
    """'a (val) = b (train)' for each scored photo of a group."""
    trained, scored = None, []
    for index in group:
        mine = users[scan.paths[index]]
        if any(split.is_training for split, _ in mine):
            trained = trained or mine[0]
        else:
            scored.append(mine[0])
    if trained is None:
        return []
    return [f'{i} ({s.name}) = {trained[1]} ({trained[0].name})' for s, i in scored]


def _within(
    equal: Sequence[np.ndarray],
    near: Sequence[np.ndarray],
    scan: Scan,
    users: dict[str, list[tuple[Split, str]]],
) -> list[Finding]:
    def shown(groups: Sequence[np.ndarray]) -> list[str]:
        texts = []
        for group in groups:
            ids = [users[scan.paths[index]][0][1] for index in group]
            more = f' = ... ({len(ids)} photos)' if len(ids) > 3 else ''
            texts.append(' = '.join(ids[:3]) + more)
        return texts

    contradicting = []
    for group in equal:
        tags = {
            split.tags(image_id)
            for index in group
            for split, image_id in users[scan.paths[index]]
        }
        if len(tags) > 1:
            contradicting.append(group)
    extra = sum(len(group) - 1 for group in equal)
    alike = sum(len(group) - 1 for group in near)
    return [
        *Finding.of(
            shown(contradicting),
            code='duplicate-tags',
            severity='warning',
            what='photos that are there more than once with different tags: {n}',
            meaning='The same pixels say yes and no to a class; its CAM gets weaker '
            'everywhere.',
            advice='Correct the tags, or keep one copy.',
        ),
        *Finding.of(
            shown(equal),
            code='duplicate',
            severity='note',
            what=f'photos that are there more than once: {{n}} ({extra} copies)',
            meaning='They count more than others; in a scored split they count double.',
            advice='Keep one copy of each.',
        ),
        *Finding.of(
            shown(near),
            code='similar',
            severity='note',
            what=f'groups of nearly equal photos: {{n}} ({alike} beyond the first of '
            'each)',
            meaning='A series counts as one photo where variety is concerned: classes '
            'that live on few scenes are learned by their surroundings.',
            advice='Split train and val by series, not by photo; more scenes help '
            'more than more frames.',
        ),
    ]
