"""A threshold for CAMs that no mask has chosen.

The photos themselves tell: a mask that follows an object's appearance says more about
the colours under it than one that is too large or too small. The threshold whose masks
say most, on average over the tagged photos, is taken.

Two things say how sure that is. Photos are drawn again, which tells how far the choice
moves with other photos of the same kind. And each photo's CAMs are laid over others
that have none of its tags: where they say nearly as much there, the masks follow what
all photos share (a skyline, say), and not the objects.
"""

import argparse
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.photos import Photo, add_list_arguments, find_photos
from mmwsss.apis.stored_cams import check_store, read_cams
from mmwsss.datasets.cam_store import CAMStore
from mmwsss.errors import InputError, tool
from mmwsss.files import write_json
from mmwsss.functional import color_words, threshold_information

# Dense where CAMs that agree in little have theirs.
THRESHOLDS = tuple((step / 200) ** 2 for step in range(1, 200))
LEVELS = 3
MAX_PHOTOS = 2000
DRAWS = 200
# Of the choices on photos drawn again, the middle ones.
CONFIDENCE = 0.8
# Photos that wait to be the other one.
_POOL = 32
_OTHERS = 2
# Stores of MSRC, where the choice comes near the best threshold, stay below it; one of
# smoke, where the masks follow the skyline, lies above.
_DOUBTFUL = 0.7


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and how sure it is.

    Attributes:
        threshold: In (0, 1).
        low: Eight of ten drawings of as many photos choose a threshold from here
        high: up to here.
        moved: Share of the pixels whose label differs between ``low`` and ``high``,
            mean over the photos.
        photos: Number of photos that it was chosen on.
        shared: Information of the same masks laid over photos without their classes,
            as a share of that over their own; None where there are no such photos.
        information: Mean information at each of ``THRESHOLDS``, in nats.
    """

    threshold: float
    low: float
    high: float
    moved: float
    photos: int
    shared: float | None
    information: tuple[float, ...]

    @property
    def doubtful(self) -> bool:
        """Whether the choice may follow what all photos share, not the objects."""
        return self.shared is not None and self.shared > _DOUBTFUL

    @property
    def described(self) -> str:
        """A sentence for people."""
        said = (
            f'threshold {self.threshold:.3g}, chosen without masks on {self.photos} '
            f'tagged photos; other photos of the kind would choose {self.low:.3g} to '
            f'{self.high:.3g} ({CONFIDENCE:.0%} of {DRAWS} drawings), which changes '
            f'{self.moved:.1%} of the pixels'
        )
        if self.shared is None:
            return f'{said}; every photo has the same tags, so nothing confirms it'
        said = (
            f'{said}; laid over photos without the objects, the same masks fit '
            f'{self.shared:.0%} as well'
        )
        if not self.doubtful:
            return said
        return (
            f'{said}: DOUBTFUL, they may follow what all photos share, so look at some '
            'masks, or give a number'
        )


@dataclass(frozen=True, eq=False)
class TaggedPhoto:
    """A photo for the choice of a threshold.

    Attributes:
        pixels: (3, H, W) uint8 RGB.
        cams: (P, h, w) in [0, 1] of the P classes that it shows; P may be 0.
        classes: Their indices.
    """

    pixels: Tensor
    cams: Tensor
    classes: Collection[int]


def select_threshold(photos: Iterable[TaggedPhoto]) -> ThresholdChoice:
    """Choose the threshold of CAMs by photos alone.

    Args:
        photos: In an order without meaning. Each is let go before the next is asked
            for. The choice is made on the grid of the CAMs.

    Raises:
        InputError: No photo shows anything, or no CAM says anything.
    """
    own, elsewhere, areas = [], [], []
    pool, generator = [], np.random.default_rng(0)
    thresholds = torch.tensor(THRESHOLDS)
    for photo in photos:
        grid = photo.cams.shape[1:]
        words = color_words(_on_grid(photo.pixels, grid), levels=LEVELS)
        if len(photo.cams):
            best = photo.cams.float().amax(0)[None].cpu()
            own.append(_information(words, best))
            areas.append((best.flatten()[:, None] > thresholds).float().mean(0).numpy())
            others = [w for w, c in pool if not set(c) & set(photo.classes)]
            for place in generator.permutation(len(others))[:_OTHERS]:
                other = others[place]
                laid = _resized(best[None], other.shape[1:])[0]
                elsewhere.append(_information(other, laid))
        if len(pool) == _POOL:
            pool.pop(generator.integers(_POOL))
        pool.append((words, photo.classes))
    if not own:
        raise InputError(
            'a threshold is chosen on photos that show something, but no photo has a '
            'tag; give a number'
        )
    return _choice(np.stack(own), np.stack(areas), np.array(elsewhere))


def _information(words: Tensor, best: Tensor) -> np.ndarray:
    found = threshold_information(
        words, best, thresholds=torch.tensor(THRESHOLDS), num_words=LEVELS**3
    )
    return found[0].numpy()


def _choice(
    own: np.ndarray, areas: np.ndarray, elsewhere: np.ndarray
) -> ThresholdChoice:
    """The choice of curves (N, T): information, area above, information elsewhere."""
    mean = own.mean(0)
    if not mean.max() > 0:
        raise InputError(
            'no threshold separates anything in these CAMs, they may all be constant; '
            'look at some of them, or give a number'
        )
    generator, count = np.random.default_rng(0), len(own)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    choices = (drawn @ own).argmax(1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(choices, [tail, 100 - tail], method='nearest')
    area, chosen = areas.mean(0), mean.argmax()
    shared = None
    if len(elsewhere):
        shared = round(float(elsewhere.mean(0)[chosen] / mean[chosen]), 4)
    return ThresholdChoice(
        threshold=THRESHOLDS[chosen],
        low=THRESHOLDS[low],
        high=THRESHOLDS[high],
        moved=round(float(area[low] - area[high]), 4),
        photos=count,
        shared=shared,
        information=tuple(mean.round(6).tolist()),
    )


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=False)


def _on_grid(photo: Tensor, size: Sequence[int]) -> Tensor:
    """A photo (3, H, W) uint8 as (1, 3, h, w), each cell the mean of what it covers."""
    return F.interpolate(
        photo[None].float(),
        tuple(size),
        mode='bilinear',
        align_corners=False,
        antialias=True,
    )


def select_for_store(store_dir: Path, photos: Sequence[Photo]) -> ThresholdChoice:
    """Choose the threshold of a store of CAMs.

    Args:
        store_dir: The store.
        photos: Its photos; of many, ``MAX_PHOTOS`` drawn ones are looked at.

    Raises:
        InputError: CAMs or photos are missing or damaged, or tell nothing.
    """
    store = CAMStore(store_dir)
    # Neighbours in a list are often alike.
    order = np.random.default_rng(0).permutation(len(photos))[:MAX_PHOTOS]
    kept = [photos[i] for i in order]
    check_store(store, kept)
    return select_threshold(_stored(store, photo) for photo in kept)


def _stored(store: CAMStore, photo: Photo) -> TaggedPhoto:
    stored, pixels = read_cams(store, photo), photo.pixels()
    if stored.size != tuple(pixels.shape[1:]):
        raise InputError(
            f'{store.path(photo.id)} holds CAMs of a photo of {stored.size}, but '
            f'{photo.path} has {tuple(pixels.shape[1:])}; make the CAMs again'
        )
    return TaggedPhoto(pixels, torch.from_numpy(stored.cams), photo.classes)


def select_threshold_command() -> int:
    """Parse the command line, choose a threshold, say it and how sure it is."""
    return parse_and_run(add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'A threshold for stored CAMs that no mask has chosen: the one '
        'whose masks follow the appearance of the photos most, and how sure that is. '
        f'{tool("make_pseudo_labels")} --background auto does the same.'
    )
    parser.add_argument('config', help='config of the data set')
    parser.add_argument('--cams', type=Path, required=True, help='the store')
    parser.add_argument('--json', type=Path, help='also write it there')
    add_list_arguments(parser)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    _, found = find_photos(args)
    choice = select_for_store(args.cams, found.photos)
    print(choice.described)
    if args.json:
        write_json(args.json, {**asdict(choice), 'thresholds': THRESHOLDS})
    counts.ok = choice.photos
