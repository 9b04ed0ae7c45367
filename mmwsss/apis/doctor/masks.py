"""Findings about masks: files, values, sizes, names, and whether tags agree."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmwsss.apis.doctor.findings import Finding
from mmwsss.apis.doctor.inputs import Split
from mmwsss.apis.doctor.scan import MaskFacts, Scan
from mmwsss.errors import tool

VOID = 255
# A class whose objects cover less of a photo, in the middle, is under a few CAM cells.
TINY_SHARE = 0.01
_FEW = 5  # photos with a class, for a statement about its size


@dataclass(frozen=True)
class _Pair:
    """A photo of a split and its mask."""

    split: Split
    image_id: str
    index: int
    mask: MaskFacts


def mask_findings(scan: Scan, splits: Sequence[Split]) -> list[Finding]:
    """What is wrong with the masks of all splits; they are never needed to train."""
    findings = []
    seen: set[int] = set()
    pairs = []
    for split in splits:
        if split.masks is None:
            continue
        mine = list(_pairs(split, scan))
        findings += _names(split, mine)
        # A photo of two splits is told about once.
        pairs += [pair for pair in mine if pair.index not in seen]
        seen |= {pair.index for pair in mine}
    there = [pair for pair in pairs if pair.mask.kind == 'index']
    return [
        *findings,
        *_files(pairs),
        *_sizes(there, scan),
        *_values(there),
        *_agreement(there),
        *_tiny(there),
    ]


def _pairs(split: Split, scan: Scan) -> Iterator[_Pair]:
    index = {path: i for i, path in enumerate(scan.paths)}
    for image_id, path in split.photos.items():
        mask = scan.masks.get(index[path])
        if mask is not None:
            yield _Pair(split, image_id, index[path], mask)


def _names(split: Split, pairs: Sequence[_Pair]) -> list[Finding]:
    missing = [pair.image_id for pair in pairs if pair.mask.kind == 'missing']
    if not split.needs_masks and len(missing) == len(pairs):
        return []  # Photos to train on have no masks.
    return Finding.of(
        missing,
        code='mask-missing',
        severity='error' if split.needs_masks else 'note',
        what=f'photos of {split.name} without a mask in {split.masks}: {{n}} of '
        f'{len(pairs)}',
        meaning='They cannot be scored: validation stops at the first of them.'
        if split.needs_masks
        else 'They cannot be scored; they can be trained on, which takes tags alone.',
        advice=f'Name masks as the photo, with {split.mask_suffix}; keep photos '
        'without masks out of val and test.',
    )


def lonely_masks(splits: Sequence[Split]) -> list[Finding]:
    """Masks that belong to no photo."""
    findings = []
    for folder, suffix in {(s.masks, s.mask_suffix) for s in splits if s.masks}:
        known = {i for s in splits if s.masks == folder for i in s.found}
        if not folder.is_dir():
            continue
        names = (p.relative_to(folder).as_posix() for p in folder.rglob(f'*{suffix}'))
        lonely = sorted(n for n in names if n.removesuffix(suffix) not in known)
        findings += Finding.of(
            lonely,
            code='mask-lonely',
            severity='note',
            what=f'masks in {folder} without a photo: {{n}}',
            meaning='If photos lack masks as well, the names do not match.',
            advice='Name masks exactly as their photos, with the subfolder.',
        )
    return findings


def _files(pairs: Sequence[_Pair]) -> list[Finding]:
    def of_kind(kind: str) -> list[str]:
        return [pair.image_id for pair in pairs if pair.mask.kind == kind]

    number = sum(pair.mask.kind != 'missing' for pair in pairs)
    return [
        *Finding.of(
            of_kind('unreadable'),
            code='mask-unreadable',
            severity='error',
            what=f'masks that cannot be read: {{n}} of {number}',
            meaning='Scoring stops at the first of them.',
            advice='Copy or make them again.',
        ),
        *Finding.of(
            of_kind('colour'),
            code='mask-colour',
            severity='error',
            what=f'masks with several channels, colour pictures: {{n}} of {number}',
            meaning='A mask holds the class index in one channel: 0 background, k the '
            'k-th class, 255 void. Colours are not indices and cannot be scored.',
            advice='Write index PNGs, one value for each colour (a palette keeps the '
            'colours to look at).',
        ),
        *Finding.of(
            of_kind('deep'),
            code='mask-deep',
            severity='error',
            what=f'masks with more than 8 bits: {{n}} of {number}',
            meaning='The values cannot be class indices with 255 as void.',
            advice='Save them with 8 bits, classes as 1, 2, 3, ...',
        ),
    ]


def _sizes(pairs: Sequence[_Pair], scan: Scan) -> list[Finding]:
    other, lying = [], []
    for pair in pairs:
        size = tuple(scan.sizes[pair.index].tolist())
        if not scan.readable[pair.index] or pair.mask.size == size:
            continue
        shown = (
            f'{pair.image_id} ({pair.mask.size[1]}x{pair.mask.size[0]}, photo '
            f'{size[1]}x{size[0]})'
        )
        rotated = scan.orientations[pair.index] > 4 and pair.mask.size == size[::-1]
        (lying if rotated else other).append(shown)
    return [
        *Finding.of(
            other,
            code='mask-size',
            severity='error',
            what='masks of another size than their photo: {n}',
            meaning='Pixels cannot be compared; scoring stops at the first of them.',
            advice='Export masks at full size; enlarge them with nearest neighbour '
            'alone, since mixed indices are other classes.',
        ),
        *Finding.of(
            lying,
            code='mask-lying',
            severity='error',
            what='masks that fit their photo before its EXIF rotation: {n}',
            meaning='They were drawn on the lying photo, which is read upright here.',
            advice='Rotate these masks as the EXIF entry says, or save the photos '
            'without the entry.',
        ),
    ]


def _values(pairs: Sequence[_Pair]) -> list[Finding]:
    binary, beyond = [], []
    for pair in pairs:
        labels = pair.split.labels
        if labels is None:
            continue
        values = set(pair.mask.values)
        tags = pair.split.tags(pair.image_id)
        if tags and VOID in values and values <= {0, VOID}:
            binary.append(pair.image_id)
        wrong = [v for v in values if len(labels.classes) < v < VOID]
        if wrong:
            beyond.append(f'{pair.image_id} (value {max(wrong)})')
    tagged = sum(bool(pair.split.tags(pair.image_id)) for pair in pairs)
    # Now and then a mask has nothing but void around an object that nobody drew.
    mostly = len(binary) * 2 > tagged
    return [
        *Finding.of(
            binary,
            code='mask-0-255',
            severity='error' if mostly else 'note',
            what='masks of tagged photos with nothing but 0 and 255: {n} of '
            f'{tagged}',
            meaning='255 is void and is not scored, so the objects do not count at all.'
            if mostly
            else 'Nothing but background is scored there.',
            advice=f'Save the object as 1: {tool("prepare_data")} binary-masks '
            'MASKS OUT.'
            if mostly
            else 'Look at one of them; objects that were left undrawn are fine.',
        ),
        *Finding.of(
            beyond,
            code='mask-value',
            severity='error',
            what='masks with values beyond the number of classes: {n}',
            meaning='The class list and the masks do not belong together, or masks '
            'were enlarged with smoothing; scoring stops at the first of them.',
            advice='Check the order and number of classes in the image labels.',
        ),
    ]


def _agreement(pairs: Sequence[_Pair]) -> list[Finding]:
    untagged, undrawn = [], []
    for pair in pairs:
        tags = pair.split.tags(pair.image_id)
        values = set(pair.mask.values)
        if tags is None or values <= {VOID}:
            continue
        names = pair.split.labels.classes
        drawn = {v - 1 for v in values if 0 < v <= len(names)}
        # Told about already: nothing drawn but void.
        if not drawn and VOID in values:
            continue
        for found, target in (
            (drawn - set(tags), untagged),
            (set(tags) - drawn, undrawn),
        ):
            target += [f'{pair.image_id} ({names[k]})' for k in sorted(found)]
    return [
        *Finding.of(
            untagged,
            code='tag-missing',
            severity='warning',
            what='classes in a mask that the photo is not tagged with: {n}',
            meaning='A missing tag teaches that the class is not there, and its pixels '
            'can never be labelled.',
            advice='Add the tag, or correct the mask.',
        ),
        *Finding.of(
            undrawn,
            code='tag-undrawn',
            severity='note',
            what='tagged classes that are not in the mask: {n}',
            meaning='The tag may be wrong, or the object is void or was not drawn.',
            advice='Look at some; wrong tags make CAMs of things that are not there.',
        ),
    ]


def _tiny(pairs: Sequence[_Pair]) -> list[Finding]:
    shares = defaultdict(list)
    for pair in pairs:
        if pair.split.labels is None:
            continue
        total = sum(pair.mask.counts)
        for value, count in zip(pair.mask.values, pair.mask.counts, strict=True):
            if 0 < value <= len(pair.split.labels.classes):
                shares[pair.split.labels.classes[value - 1]].append(count / total)
    tiny = {
        name: float(np.median(found))
        for name, found in shares.items()
        if len(found) >= _FEW and np.median(found) < TINY_SHARE
    }
    return Finding.of(
        [f'{name} ({100 * share:.2f} %)' for name, share in sorted(tiny.items())],
        code='class-tiny',
        severity='warning',
        what=f'classes that cover less than {100 * TINY_SHARE:g} % of a photo that '
        'shows them (median): {n}',
        meaning='At 320 pixels that is four cells of a CAM at stride 16 or fewer: maps '
        'are larger than the object, and thresholds cut it away.',
        advice=f'Train on crops around them ({tool("prepare_data")} crops), at a '
        'larger scale, or with a network of stride 8.',
    )


def mask_folder_missing(splits: Sequence[Split]) -> list[Finding]:
    """Folders of masks that a config names and that are not there."""
    missing = sorted({str(s.masks) for s in splits if s.masks and not s.masks.is_dir()})
    needed = any(s.needs_masks and str(s.masks) in missing for s in splits)
    return Finding.of(
        [str(Path(folder).absolute()) for folder in missing],
        code='mask-folder',
        severity='error' if needed else 'note',
        what='folders of masks that do not exist: {n}',
        meaning='Training needs none; scores do.',
        advice='Correct data_prefix.seg_map_path, or train without validation.',
    )
