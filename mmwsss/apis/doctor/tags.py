"""Findings about image labels: entries, classes and pairs of classes."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mmwsss.apis.doctor.findings import Finding
from mmwsss.apis.doctor.inputs import Split
from mmwsss.errors import tool

FEW_PHOTOS = 10  # that a class needs at the very least
ALMOST = 0.95
# Of so few photos with a class, all may show another one by chance.
_ENOUGH = 5


def tag_findings(splits: Sequence[Split]) -> list[Finding]:
    """What is wrong with entries, and what cannot be learned from them."""
    findings = []
    for split in splits:
        if split.labels is not None:
            findings += _entries(split)
    findings += _lonely_entries(splits)
    for split in splits:
        # train_eval is a part of train.
        trained = split.is_training and split.name != 'train_eval'
        if split.labels is not None and trained:
            findings += _classes(split)
    return findings


def _entries(split: Split) -> list[Finding]:
    missing = [i for i in split.photos if i not in split.labels.labels]
    left_out = split.skip_unlabelled and len(missing) < len(split.photos)
    return Finding.of(
        missing,
        code='entry-missing',
        severity='note' if left_out else 'error',
        what=f'photos of {split.name} without an entry in {split.labels_path}: {{n}} '
        f'of {len(split.photos)}',
        meaning='They are left out of training.'
        if left_out
        else 'Training refuses to guess: a photo without an entry is not one without '
        'objects.',
        advice='Add entries (an empty list for a photo without objects), or set '
        'skip_unlabelled=True in the data set.',
    )


def _lonely_entries(splits: Sequence[Split]) -> list[Finding]:
    findings = []
    for path in dict.fromkeys(s.labels_path for s in splits if s.labels is not None):
        mine = [s for s in splits if s.labels_path == path]
        photos = set().union(*(s.found for s in mine))
        findings += Finding.of(
            [i for i in mine[0].labels.labels if i not in photos],
            code='entry-lonely',
            severity='note',
            what=f'entries of {path} without a photo: {{n}} of '
            f'{len(mine[0].labels.labels)}',
            meaning='If photos lack entries as well, the ids do not match (an id is '
            'the path below the folder of photos, without suffix).',
            advice='Nothing, if those photos lie elsewhere; else correct the ids.',
        )
    return findings


def _classes(split: Split) -> list[Finding]:
    names = split.labels.classes
    ids = [i for i in split.photos if i in split.labels.labels]
    if not ids:
        return []
    tags = np.stack([split.labels.multi_hot(i) for i in ids]).astype(np.int64)
    counts = tags.sum(0)
    return [
        *_frequency(names, counts, len(ids), split.name),
        *_background(tags, split.name),
        *_pairs(names, counts, tags.T @ tags, len(ids)),
    ]


def _frequency(
    names: Sequence[str], counts: np.ndarray, number: int, split: str
) -> list[Finding]:
    def where(which: np.ndarray) -> list[str]:
        return [f'{names[k]} ({counts[k]} photos)' for k in np.flatnonzero(which)]

    always = counts == number
    return [
        *Finding.of(
            where(counts == 0),
            code='class-never',
            severity='warning',
            what=f'classes in no photo of {split}: {{n}} of {len(names)}',
            meaning='Nothing is learned about them, and a mean over all classes has '
            'zeros in it.',
            advice='Tag photos that show them, or take them out of "classes" (which '
            'renumbers the masks).',
        ),
        *Finding.of(
            where((counts > 0) & (counts < FEW_PHOTOS) & ~always),
            code='class-rare',
            severity='warning',
            what=f'classes in fewer than {FEW_PHOTOS} photos of {split}: {{n}} of '
            f'{len(names)}',
            meaning='The classifier remembers these photos; its CAM shows what they '
            'share, seldom the object.',
            advice='Add photos, or repeat them: mmwsss.ClassBalancedDataset in the '
            'config.',
        ),
        *Finding.of(
            where(always),
            code='class-always',
            severity='error',
            what=f'classes in every photo of {split}: {{n}} of {len(names)}',
            meaning='The classifier may always say yes and never has to look: its CAM '
            'is arbitrary.',
            advice='Add photos without the class, or cut crops without it from those '
            f'with masks ({tool("prepare_data")} crops).',
        ),
        *Finding.of(
            where((counts >= ALMOST * number) & ~always),
            code='class-nearly-always',
            severity='warning',
            what=f'classes in {100 * ALMOST:g} % of the photos of {split} or more: '
            '{n}',
            meaning='The few photos without the class are all that its CAM is learned '
            'from.',
            advice='Add photos without it, from the same places.',
        ),
    ]


def _background(tags: np.ndarray, split: str) -> list[Finding]:
    if (tags.sum(1) == 0).any():
        return []
    return [
        Finding(
            code='no-background-photo',
            severity='warning',
            what=f'no photo of {split} is without any object (of {len(tags)})',
            meaning='What surrounds objects is only ever seen with them, so CAMs spill '
            'over to it (rails of trains, water of boats, the sky behind smoke).',
            advice='Add photos of the same places without the objects, with an empty '
            'list of tags.',
            count=len(tags),
        )
    ]


def _pairs(
    names: Sequence[str], counts: np.ndarray, together: np.ndarray, number: int
) -> list[Finding]:
    same, implied, nearly = [], [], []
    for a, b in combinations(range(len(names)), 2):
        if counts[a] > counts[b]:
            a, b = b, a
        n = together[a, b]
        # A class that is everywhere is with all others, which was said already.
        everywhere = counts[b] >= ALMOST * number
        if counts[a] < _ENOUGH or n < ALMOST * counts[a] or everywhere:
            continue
        text = f'{names[a]} with {names[b]} ({n} of {counts[a]}'
        if n == counts[a] == counts[b]:
            same.append(f'{names[a]} and {names[b]} ({n} photos)')
        elif n == counts[a]:
            implied.append(f'{text}, {names[b]} alone in {counts[b] - n})')
        else:
            nearly.append(f'{text})')
    return [
        *Finding.of(
            same,
            code='pair-same',
            severity='error',
            what='pairs of classes that are always there together, neither alone: {n}',
            meaning='Their tags are the same column: no network can tell which pixels '
            'belong to which, and both CAMs cover both.',
            advice='Add photos with one of them alone, join the two classes, or help '
            'one by its words (a CLIP-based config).',
        ),
        *Finding.of(
            implied,
            code='pair-implied',
            severity='warning',
            what='classes that never appear without a certain other class: {n}',
            meaning='The companion is as good a hint as the object, so the CAM of the '
            'first covers the second as well.',
            advice='Add photos of the first without the second; see the co-occurrence '
            'figures of mmwsss.CoOccurrenceMetric after training.',
        ),
        *Finding.of(
            nearly,
            code='pair-nearly',
            severity='note',
            what=f'classes with another one in {100 * ALMOST:g} % of their photos or '
            'more: {n}',
            meaning='The few photos without the companion decide whether the CAM '
            'leaves it out.',
            advice='Repeat those photos or add such ones.',
        ),
    ]
