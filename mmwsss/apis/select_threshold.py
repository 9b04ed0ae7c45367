"""A threshold for CAMs that no mask has chosen.

The photos themselves tell: a mask that follows an object's appearance says more about
the colours under it than one that is too large or too small. The threshold whose masks
say most, on average over the tagged photos, is taken. What the height in the photo
says already does not count, or masks would follow the skyline: in most photos sky and
ground have their own colours.

Two things say how sure that is. Photos are drawn again, which tells how far the choice
moves with other photos of the same kind. And it tells how much another threshold says,
whose masks are clearly larger or smaller: where it is nearly as much, either may be
right.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.photos import Photo, add_list_arguments, find_photos
from mmwsss.apis.stored_cams import check_store, read_cams
from mmwsss.apis.threshold_loss import threshold_loss
from mmwsss.datasets.cam_store import CAMStore
from mmwsss.errors import InputError, tool
from mmwsss.files import write_json
from mmwsss.functional import color_words, threshold_information

# Dense where CAMs that agree in little have theirs.
THRESHOLDS = tuple((step / 200) ** 2 for step in range(1, 200))
LEVELS = 2
BANDS = 8
MAX_PHOTOS = 2000
DRAWS = 200
# Of the choices on photos drawn again, the middle ones.
CONFIDENCE = 0.8
# Share of the pixels that masks of a rival must differ in.
APART = 0.1
# Of 17 cases of MSRC and the drawn benchmark, 10 stay below both limits and lose 1.0
# point or less against the best threshold; 7 do not and lose up to 8.6. See
# docs/troubleshooting.md.
_RIVAL = 0.95
_MOVED = 0.2


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
        rival: The most that a threshold says whose masks differ in ``APART`` of the
            pixels or more, as a share of what the chosen one says; 0 without any.
        rival_threshold: That one, or None.
        information: Mean information at each of ``THRESHOLDS``, in nats.
    """

    threshold: float
    low: float
    high: float
    moved: float
    photos: int
    rival: float
    rival_threshold: float | None
    information: tuple[float, ...]

    @property
    def doubtful(self) -> bool:
        """Whether a clearly different threshold may be as good."""
        return self.rival > _RIVAL or self.moved > _MOVED

    @property
    def described(self) -> str:
        """A sentence for people."""
        said = (
            f'threshold {self.threshold:.3g}, chosen without masks on {self.photos} '
            f'tagged photos; other photos of the kind would choose {self.low:.3g} to '
            f'{self.high:.3g} ({CONFIDENCE:.0%} of {DRAWS} drawings), which changes '
            f'{self.moved:.1%} of the pixels'
        )
        if self.rival_threshold is not None:
            said = (
                f'{said}; of those with clearly larger or smaller masks, '
                f'{self.rival_threshold:.3g} fits {self.rival:.0%} as well'
            )
        if not self.doubtful:
            return said
        return f'{said}: DOUBTFUL, so look at some masks, or give a number'


@dataclass(frozen=True, eq=False)
class TaggedPhoto:
    """A photo for the choice of a threshold.

    Attributes:
        pixels: (3, H, W) uint8 RGB.
        cams: (P, h, w) in [0, 1] of the P classes that it shows; P may be 0.
    """

    pixels: Tensor
    cams: Tensor


def select_threshold(photos: Iterable[TaggedPhoto]) -> ThresholdChoice:
    """Choose the threshold of CAMs by photos alone.

    Args:
        photos: Each is let go before the next is asked for; those that show nothing
            say nothing. The choice is made on the grid of the CAMs.

    Raises:
        InputError: No photo shows anything, or no CAM says anything.
    """
    information, areas = [], []
    thresholds = torch.tensor(THRESHOLDS)
    for photo in photos:
        if not len(photo.cams):
            continue
        best = photo.cams.float().amax(0)[None].cpu()
        words = color_words(_on_grid(photo.pixels, best.shape[1:]), levels=LEVELS)
        found = threshold_information(
            words,
            best,
            thresholds=thresholds,
            num_words=LEVELS**3,
            places=_bands(best.shape),
            num_places=BANDS,
        )
        information.append(found[0].numpy())
        areas.append((best.flatten()[:, None] > thresholds).float().mean(0).numpy())
    if not information:
        raise InputError(
            'a threshold is chosen on photos that show something, but no photo has a '
            'tag; give a number'
        )
    return _choice(np.stack(information), np.stack(areas))


def _bands(shape: Sequence[int]) -> Tensor:
    """The band of each pixel (1, h, w), from the top, all nearly equally high."""
    _, height, width = shape
    rows = torch.arange(height) * BANDS // height
    return rows[None, :, None].expand(1, height, width)


def _choice(information: np.ndarray, areas: np.ndarray) -> ThresholdChoice:
    """The choice of curves (N, T): information, share of the pixels above."""
    mean = information.mean(0)
    if not mean.max() > 0:
        raise InputError(
            'no threshold separates anything in these CAMs, they may all be constant; '
            'look at some of them, or give a number'
        )
    generator, count = np.random.default_rng(0), len(information)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    choices = (drawn @ information).argmax(1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(choices, [tail, 100 - tail], method='nearest')
    area, chosen = areas.mean(0), mean.argmax()
    apart = np.abs(area - area[chosen]) > APART
    rival = np.where(apart, mean, -1).argmax()
    return ThresholdChoice(
        threshold=THRESHOLDS[chosen],
        low=THRESHOLDS[low],
        high=THRESHOLDS[high],
        moved=round(float(area[low] - area[high]), 4),
        photos=count,
        rival=round(float(mean[rival] / mean[chosen]), 4) if apart.any() else 0.0,
        rival_threshold=THRESHOLDS[rival] if apart.any() else None,
        information=tuple(mean.round(6).tolist()),
    )


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
        photos: Its photos; of many with tags, ``MAX_PHOTOS`` drawn ones are looked at.

    Raises:
        InputError: CAMs or photos are missing or damaged, or tell nothing.
    """
    store = CAMStore(store_dir)
    tagged = [photo for photo in photos if photo.classes]
    # Neighbours in a list are often alike.
    order = np.random.default_rng(0).permutation(len(tagged))[:MAX_PHOTOS]
    kept = [tagged[i] for i in order]
    check_store(store, kept)
    return select_threshold(_stored(store, photo) for photo in kept)


def _stored(store: CAMStore, photo: Photo) -> TaggedPhoto:
    stored, pixels = read_cams(store, photo), photo.pixels()
    if stored.size != tuple(pixels.shape[1:]):
        raise InputError(
            f'{store.path(photo.id)} holds CAMs of a photo of {stored.size}, but '
            f'{photo.path} has {tuple(pixels.shape[1:])}; make the CAMs again'
        )
    return TaggedPhoto(pixels, torch.from_numpy(stored.cams))


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
    parser.add_argument(
        '--masks',
        type=Path,
        metavar='DIR',
        help='masks of the photos, or of some: also say what the threshold loses '
        'against the best one by them. They choose nothing',
    )
    parser.add_argument('--json', type=Path, help='also write it there')
    add_list_arguments(parser)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    _, found = find_photos(args)
    choice = select_for_store(args.cams, found.photos)
    print(choice.described)
    written = {**asdict(choice), 'thresholds': THRESHOLDS}
    if args.masks:
        loss = threshold_loss(
            args.cams,
            args.masks,
            found.photos,
            found.class_names,
            threshold=choice.threshold,
            among=THRESHOLDS,
        )
        print(loss.described)
        written['masks'] = asdict(loss)
    if args.json:
        write_json(args.json, written)
    counts.ok = choice.photos
