"""One kind of object: masks of any two values into ours, crops with and without it."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmwsss.apis.cli import Counts
from mmwsss.apis.label_folders import (
    MAP_SUFFIXES,
    find_map,
    read_ids,
    read_label_map,
)
from mmwsss.apis.make_pseudo_labels import write_map
from mmwsss.apis.outputs import text_hash
from mmwsss.datasets.crops import make_negative_crops, make_positive_crops
from mmwsss.datasets.drawn_folder import draw_folder, write_lines
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.image_labels import save_image_labels
from mmwsss.datasets.sampler import stable_seed
from mmwsss.datasets.transforms import read_photo, without_overlay
from mmwsss.errors import InputError
from mmwsss.files import write_json

MARKER = 'crops_of.json'
_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """How photos are cut; noted beside the crops.

    Attributes:
        size: Side of the square crops in pixels.
        foreground: Mask values that are the object.
        class_name: Its name.
        positives: Crops with the object per photo, at most.
        negatives: Crops without it per photo, at most.
        min_area: Share of a positive crop that is object, at least.
        max_area: Pixels of the object in a negative crop, at most.
        remove_overlay: Shares of the height, from the top, and of the width, from the
            left, that are cut off before.
        seed: Of the places.
    """

    size: int
    foreground: tuple[int, ...] = (1,)
    class_name: str = 'object'
    positives: int = 1
    negatives: int = 1
    min_area: float = 0.005
    max_area: int = 0
    remove_overlay: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            '--size must be at least 1': self.size >= 1,
            '--foreground must lie in 1 to 255': all(
                0 < value < 256 for value in self.foreground
            ),
            '--positives must not be negative': self.positives >= 0,
            '--negatives must not be negative': self.negatives >= 0,
            '--min-area is a share in [0, 1]': 0 <= self.min_area <= 1,
            '--max-area must not be negative': self.max_area >= 0,
            '--remove-overlay takes shares in [0, 1)': all(
                0 <= share < 1 for share in self.remove_overlay
            ),
        }
        for rule, kept in rules.items():
            if not kept:
                name = rule.split()[0].removeprefix('--').replace('-', '_')
                raise InputError(f'{rule}, got {getattr(self, name)}')


def add_binary_verbs(verbs: argparse._SubParsersAction) -> None:
    """The verbs 'crops' and 'binary-masks' of prepare_data.py."""
    default = CropOptions(size=1)
    crops = verbs.add_parser(
        'crops',
        help='square crops with and without one kind of object, by its masks',
    )
    crops.add_argument('photos', type=Path, help='folder of photos')
    crops.add_argument('masks', type=Path, help='folder of masks named alike')
    crops.add_argument('out', type=Path, help='folder to make, in VOC layout')
    crops.add_argument(
        '--list',
        type=Path,
        nargs='+',
        default=[],
        help='image ids, one a line; each list becomes one of its name (default: all '
        'photos, as train)',
    )
    crops.add_argument('--size', type=int, required=True, help='side in pixels')
    crops.add_argument('--class-name', default=default.class_name)
    crops.add_argument(
        '--positives', type=int, default=default.positives, help='a photo, at most'
    )
    crops.add_argument(
        '--negatives', type=int, default=default.negatives, help='a photo, at most'
    )
    crops.add_argument(
        '--min-area',
        type=float,
        default=default.min_area,
        help='share of a crop with the object that it covers (default: %(default)s)',
    )
    crops.add_argument(
        '--max-area',
        type=int,
        default=default.max_area,
        help='pixels of it let through in a crop without (default: %(default)s)',
    )
    crops.add_argument(
        '--remove-overlay',
        type=float,
        nargs=2,
        default=default.remove_overlay,
        metavar=('TOP', 'LEFT'),
        help="cut a camera's logo off first, shares of height and width",
    )
    crops.add_argument('--seed', type=int, default=default.seed)
    masks = verbs.add_parser(
        'binary-masks', help='masks with 0 and 255, say, to 0, 1 and void'
    )
    masks.add_argument('masks', type=Path, help='folder of masks')
    masks.add_argument('out', type=Path, help='folder to make')
    for sub, values in ((crops, default.foreground), (masks, (255,))):
        sub.add_argument(
            '--foreground',
            type=int,
            nargs='+',
            default=values,
            metavar='VALUE',
            help='mask values that are the object (default: '
            f'{values[0]}); 255 is void unless it is named here',
        )


def binary_command(args: argparse.Namespace, counts: Counts) -> None:
    """Do one of the verbs."""
    if args.verb == 'binary-masks':
        counts.ok = convert_masks(args.masks, args.out, foreground=args.foreground)
        print(f'{counts.ok} masks written: {args.out}')
        return
    options = CropOptions(
        size=args.size,
        foreground=tuple(args.foreground),
        class_name=args.class_name,
        positives=args.positives,
        negatives=args.negatives,
        min_area=args.min_area,
        max_area=args.max_area,
        remove_overlay=tuple(args.remove_overlay),
        seed=args.seed,
    )
    if make_crops(args.photos, args.masks, args.out, options, lists=args.list):
        counts.ok = 1
    else:
        counts.skipped = 1
        print(f'already there: {args.out}')


def convert_masks(masks: Path, out: Path, *, foreground: Sequence[int]) -> int:
    """Write masks of one kind of object as palette PNGs with 0, 1 and void.

    Returns:
        Their number.

    Raises:
        InputError: There are none, one cannot be read, the object is in none, or
            another mask would be replaced.
    """
    files = sorted(p for p in masks.glob('*') if p.suffix.lower() in MAP_SUFFIXES)
    if not files:
        raise InputError(f'{masks} holds no mask ({", ".join(MAP_SUFFIXES)})')
    if out.resolve() == masks.resolve():
        raise InputError(f'{out} is the folder of the masks; give another one')
    shown = 0
    for file in tqdm(files, unit='mask', disable=None):
        mask = read_binary_mask(file, foreground)
        shown += int((mask == 1).sum())
        written = out / f'{file.stem}.png'
        if not written.exists():
            write_map(written, mask, palette=True)
        elif not np.array_equal(read_label_map(written), mask):
            raise InputError(
                f'{written} is there already and is another mask; give another folder, '
                'or remove it'
            )
    _check_shown(shown, masks, foreground)
    return len(files)


def read_binary_mask(path: Path, foreground: Sequence[int]) -> np.ndarray:
    """A mask (H, W) uint8 with 0, 1 where it has one of the values, 255 void.

    Raises:
        InputError: It holds another value.
    """
    values = read_label_map(path)
    shown = np.isin(values, foreground)
    other = values[~shown & (values != 0) & (values != 255)]
    if other.size:
        raise InputError(
            f'{path} holds the value {other[0]}, which is neither 0, nor 255 (void), '
            f'nor the object ({", ".join(map(str, foreground))}); name the values of '
            f'the object, for example --foreground {other[0]}'
        )
    return np.where(shown, 1, np.where(values == 0, 0, 255)).astype(np.uint8)


def _check_shown(shown: int, masks: Path, foreground: Sequence[int]) -> None:
    if not shown:
        raise InputError(
            f'no mask of {masks} shows the object, by the value '
            f'{", ".join(map(str, foreground))}; objects saved as 255 need '
            '--foreground 255'
        )


def make_crops(
    photos: Path,
    masks: Path,
    out: Path,
    options: CropOptions,
    *,
    lists: Sequence[Path] = (),
) -> bool:
    """Cut photos into crops with and without the object, in VOC layout.

    ``out`` appears whole: JPEGImages, SegmentationClass, ImageSets/Segmentation,
    image_labels.json (an empty list without the object), classes.txt, and crops.json
    with each crop's photo and place. Equal arguments give equal crops.

    Args:
        photos: Folder of photos.
        masks: Folder of masks named alike.
        out: Folder to make.
        options: How.
        lists: Image ids, one a line; each gives the list of its name.

    Returns:
        True if crops were made, False if they were there.

    Raises:
        InputError: Files are missing or damaged, or ``out`` holds something else.
    """
    for folder in (photos, masks):
        if not folder.is_dir():
            raise InputError(f'the folder {folder} does not exist')
    files = dict(find_photos(photos))
    splits = {path.stem: read_ids(path) for path in lists} or {'train': sorted(files)}
    for name, ids in splits.items():
        missing = [i for i in ids if i not in files]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(ids)} photos of {name} are not in {photos}, '
                f'the first is {missing[0]}'
            )
    marker = {
        'photos': str(photos.resolve()),
        'masks': str(masks.resolve()),
        'lists': {name: text_hash(ids) for name, ids in splits.items()},
        **{
            k: list(v) if isinstance(v, tuple) else v
            for k, v in asdict(options).items()
        },
    }

    def draw(folder: Path) -> None:
        sources = {}
        shown = 0
        for split, ids in splits.items():
            names = []
            for image_id in tqdm(ids, unit='photo', disable=None, desc=split):
                path = photos / files[image_id]
                found, area = _cut_photo(path, find_map(masks, image_id), options)
                shown += area
                for kind, crops in found.items():
                    for number, (image, mask, place) in enumerate(crops):
                        name = f'{image_id}_{kind}{number}'
                        _save(folder, name, image, mask)
                        names.append(name)
                        sources[name] = {'photo': image_id, 'top_left': place}
            write_lines(folder / 'ImageSets' / 'Segmentation' / f'{split}.txt', names)
        _check_shown(shown, masks, options.foreground)
        _write_labels(folder, sources, options)

    return draw_folder(
        out, marker_name=MARKER, marker=marker, what='a folder of crops', draw=draw
    )


def _write_labels(folder: Path, sources: dict, options: CropOptions) -> None:
    labels = {
        name: [options.class_name] if name.rpartition('_')[2][0] == 'p' else []
        for name in sources
    }
    positives = sum(map(bool, labels.values()))
    for count, kind in ((positives, 'with'), (len(labels) - positives, 'without')):
        print(f'{count} crops {kind} {options.class_name}')
    save_image_labels(folder / 'image_labels.json', [options.class_name], labels)
    write_lines(folder / 'classes.txt', ['background', options.class_name])
    write_json(folder / 'crops.json', sources)


def _cut_photo(
    photo: Path, mask_path: Path, options: CropOptions
) -> tuple[dict[str, list], int]:
    """Crops (image BGR, mask, place) by kind, 'p' and 'n', and the object's pixels."""
    image = read_photo(str(photo))
    mask = read_binary_mask(mask_path, options.foreground)
    if mask.shape != image.shape[:2]:
        raise InputError(
            f'the mask {mask_path} is {mask.shape[1]} x {mask.shape[0]}, its photo '
            f'{image.shape[1]} x {image.shape[0]}; they must agree'
        )
    top, left = options.remove_overlay
    part = without_overlay(mask.shape, top=top, left=left)
    image, mask = image[part], mask[part]
    generator = np.random.default_rng(stable_seed(options.seed, photo.stem))
    size = options.size
    crops = {
        'p': make_positive_crops(
            image,
            mask,
            size,
            min_area_ratio=options.min_area,
            n=options.positives,
            generator=generator,
        ),
        'n': make_negative_crops(
            image,
            mask,
            size,
            max_area=options.max_area,
            n=options.negatives,
            generator=generator,
        ),
    }
    corner = part[0].start, part[1].start
    found = {
        kind: [
            (
                crop,
                mask[row : row + size, column : column + size],
                (row + corner[0], column + corner[1]),
            )
            for crop, (row, column) in of_kind
        ]
        for kind, of_kind in crops.items()
    }
    return found, int((mask == 1).sum())


def _save(root: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    path = root / 'JPEGImages' / f'{name}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(path, quality=_QUALITY)
    write_map(root / 'SegmentationClass' / f'{name}.png', mask, palette=True)
