"""What a classifier takes for an object in its own training photos, and is none.

Image labels suffice, nobody has to say what the shortcut is: where an early, hasty
classifier finds a class in a photo without it, it sees what usually attends the class.
Such photos get a larger weight (``mmwsss.WeightedStreamSampler``), and what it looks at
in them can be cut out (``mmwsss.PasteRegions``).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.outputs import text_hash
from mmwsss.apis.photos import Photo, PhotoList, add_list_arguments, find_photos
from mmwsss.apis.stored_cams import check_store
from mmwsss.datasets.cam_store import STRIDE, CAMStore, StoredCAMs
from mmwsss.datasets.crops import peak_box
from mmwsss.datasets.drawn_folder import draw_folder
from mmwsss.datasets.image_labels import save_image_labels
from mmwsss.datasets.photo_weights import save_photo_weights
from mmwsss.datasets.transforms import read_photo
from mmwsss.errors import InputError, tool
from mmwsss.files import write_json

MARKER = 'regions_of.json'
# Likelier than not.
_DECIDED = 0.5


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A class that a photo does not show and the classifier finds in it.

    Attributes:
        photo: The photo.
        number: Index of the class.
        box: (top, left, bottom, right) of what speaks for it, in pixels.
    """

    photo: Photo
    number: int
    box: tuple[int, int, int, int]


def find_shortcuts_command() -> int:
    """Parse the command line, look for mistakes, write what is asked for."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    if not (args.weights or args.regions):
        raise InputError('nothing is asked for: give --weights JSON or --regions DIR')
    if not 1 <= args.factor < float('inf'):
        raise InputError(f'--factor must be a number of 1 or more, got {args.factor}')
    if args.share is not None and not 0 < args.share < 1:
        raise InputError(f'--share must be in (0, 1), got {args.share}')
    if not 0 < args.cut <= 1:
        raise InputError(f'--cut is a share in (0, 1], got {args.cut}')
    _, found = find_photos(args)
    wrong, mistakes = find_mistakes(CAMStore(args.cams), found, cut=args.cut)
    print(
        f'{len(wrong)} of {len(found.photos)} photos are decided wrongly, '
        f'{len({mistake.photo.id for mistake in mistakes})} of them for a class that '
        'they do not show'
    )
    if args.weights:
        factor = args.factor
        if args.share is not None:
            factor = factor_of(args.share, len(wrong), len(found.photos))
        weights = {p.id: factor if p.id in wrong else 1.0 for p in found.photos}
        save_photo_weights(args.weights, weights)
        print(f'weights: {args.weights}')
    if args.regions:
        drawn = cut_out(mistakes, found.class_names, args.regions, cut=args.cut)
        print(f'regions {"cut out" if drawn else "already there"}: {args.regions}')
    counts.ok = len(found.photos)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Weigh training photos by whether a classifier gets them wrong, '
        'and cut out what it takes for objects there. It reads its CAMs and '
        'probabilities of the same photos. Take one that was trained for a fraction '
        'of the time: later it knows the exceptions by heart.'
    )
    parser.add_argument('config', help='config that names the photos')
    parser.add_argument(
        'cams',
        type=Path,
        help=f'CAM store of {tool("make_cams")} --all-classes, of these photos',
    )
    add_list_arguments(parser)
    parser.add_argument(
        '--weights', type=Path, metavar='JSON', help='write the weights there'
    )
    weight = parser.add_mutually_exclusive_group()
    weight.add_argument(
        '--factor',
        type=float,
        default=10.0,
        help='weight of a photo that is decided wrongly; that of others is 1 '
        '(default: %(default)s)',
    )
    weight.add_argument(
        '--share',
        type=float,
        help='instead: the share of the samples that such photos are to make up, '
        'however few they are; 1 is the least factor',
    )
    parser.add_argument(
        '--regions',
        type=Path,
        metavar='DIR',
        help='write pieces of the photos there in which it finds a missing class',
    )
    parser.add_argument(
        '--cut',
        type=float,
        default=0.5,
        help='a piece holds what is connected to the peak of the map above this share '
        'of it (default: %(default)s)',
    )


def factor_of(share: float, num_wrong: int, num_photos: int) -> float:
    """Weight by which ``num_wrong`` photos are ``share`` of what is drawn, at least 1.

    Raises:
        InputError: None of the photos, or all of them, are decided wrongly.
    """
    if not 0 < num_wrong < num_photos:
        raise InputError(
            f'the classifier is wrong about {num_wrong} of {num_photos} photos, so '
            'that no weight gives them another share; train it '
            f'{"longer" if num_wrong else "for a shorter time"}'
        )
    return max(1.0, share / (1 - share) * (num_photos - num_wrong) / num_wrong)


def find_mistakes(
    store: CAMStore, found: PhotoList, *, cut: float
) -> tuple[set[str], list[Mistake]]:
    """Photos of which a classifier gets a class wrong.

    Args:
        store: With CAMs of all classes, and probabilities, of each photo.
        found: The photos and their image labels.
        cut: See ``datasets.crops.peak_box``.

    Returns:
        Ids of all such photos, and the classes that are found and missing.

    Raises:
        InputError: The store lacks photos, classes or probabilities.
    """
    check_store(store, found.photos)
    wrong, mistakes = set(), []
    for photo in found.photos:
        stored = store.read(photo.id)
        _check_stored(stored, store.path(photo.id), len(found.class_names))
        shown = photo.image_label(len(found.class_names)).numpy() > 0
        seen = stored.probs > _DECIDED
        if (seen != shown).any():
            wrong.add(photo.id)
        for number in np.flatnonzero(seen & ~shown):
            box = peak_box(stored.cams[number], cut)
            if box is not None:
                box = _in_pixels(box, stored.size)
                mistakes.append(Mistake(photo=photo, number=int(number), box=box))
    return wrong, mistakes


def _check_stored(stored: StoredCAMs, path: Path, num_classes: int) -> None:
    if stored.probs is None or len(stored.probs) != num_classes:
        raise InputError(
            f'{path} does not hold the probabilities of {num_classes} classes; make '
            'the CAMs with a network that gives them, mmwsss.CrossArch for example'
        )
    if len(stored.classes) != num_classes:
        raise InputError(
            f'{path} holds CAMs of {len(stored.classes)} of {num_classes} classes; '
            f'make them with {tool("make_cams")} --all-classes'
        )


def _in_pixels(box: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    return tuple(min(side * STRIDE, size[axis % 2]) for axis, side in enumerate(box))


def cut_out(
    mistakes: Sequence[Mistake],
    class_names: Sequence[str],
    out: Path,
    *,
    cut: float,
) -> bool:
    """Write the pieces, which is what ``mmwsss.PasteRegions`` reads.

    ``out`` appears whole: JPEGImages/ID_k.png for class k of photo ID, counted from 1,
    image_labels.json (classes of the photo that a piece is from) and regions.json (its
    photo, its place, and the class that it was taken for).

    Returns:
        True if pieces were written, False if they were there.

    Raises:
        InputError: There are no pieces, or ``out`` holds something else.
    """
    if not mistakes:
        raise InputError(
            'the classifier finds no class in a photo without it, so that there is '
            'nothing to cut out; train it for a shorter time'
        )
    pieces = {
        f'{mistake.photo.id}_{mistake.number + 1}': mistake for mistake in mistakes
    }
    boxes = {name: mistake.box for name, mistake in pieces.items()}
    marker = {'cut': cut, 'boxes': text_hash(sorted(boxes.items()))}

    def draw(folder: Path) -> None:
        for name, mistake in pieces.items():
            _save_piece(folder / 'JPEGImages' / f'{name}.png', mistake)
        _save_record(folder, pieces, class_names)

    return draw_folder(
        out, marker_name=MARKER, marker=marker, what='a folder of regions', draw=draw
    )


def _save_piece(path: Path, mistake: Mistake) -> None:
    top, left, bottom, right = mistake.box
    piece = read_photo(mistake.photo.path)[top:bottom, left:right, ::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(piece)).save(path)


def _save_record(
    folder: Path, pieces: Mapping[str, Mistake], class_names: Sequence[str]
) -> None:
    labels = {
        name: [class_names[k] for k in mistake.photo.classes]
        for name, mistake in pieces.items()
    }
    save_image_labels(folder / 'image_labels.json', class_names, labels)
    record = {
        name: {
            'photo': mistake.photo.id,
            'box': mistake.box,
            'taken_for': class_names[mistake.number],
        }
        for name, mistake in pieces.items()
    }
    write_json(folder / 'regions.json', record)
