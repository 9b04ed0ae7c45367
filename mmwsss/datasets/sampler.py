"""A stream of samples that depends on the seed and the position in it alone.

Position p of the stream holds the same photo with the same augmentation whatever the
number of processes, of workers, or of interruptions. Rank r of W takes the positions
r, r + W, ..., so that W ranks with batch b see together what one process with batch
W * b sees.
"""

import hashlib
import random
from collections.abc import Iterator, Sized
from fractions import Fraction

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmwsss.errors import InputError, tool
from mmwsss.registry import DATA_SAMPLERS

from .photo_weights import HOW_TO_MAKE, load_photo_weights

# Wrappers that lose the seed, and what to write in a config instead.
KEEPS_SEEDS = {'ClassBalancedDataset': 'mmwsss.ClassBalancedDataset'}


class SeededIndex(int):
    """A data set index that also says how to seed the sample's augmentation.

    It keeps the seed through ``index % length`` and ``index - offset``, which is how
    RepeatDataset and ConcatDataset find the photo.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SeededIndex':
        """An int with a seed."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self):
        return SeededIndex, (int(self), self.seed)

    def __mod__(self, other: int) -> 'SeededIndex':
        return SeededIndex(int(self) % other, self.seed)

    def __sub__(self, other: int) -> 'SeededIndex':
        return SeededIndex(int(self) - other, self.seed)


def seed_augmentation(index: int) -> None:
    """Start all random numbers at the seed of a SeededIndex; do nothing for others."""
    if isinstance(index, SeededIndex):
        random.seed(index.seed)
        np.random.seed(index.seed % 2**32)
        torch.manual_seed(index.seed)


@DATA_SAMPLERS.register_module()
class SeededStreamSampler(Sampler):
    """Endless stream for iteration-based training.

    Args:
        dataset: anything with a length; a wrapper has to hand the seed on.
        shuffle: a new order in every epoch; otherwise the data set's own.
        seed: the same on all ranks; None draws one and shares it.

    Raises:
        InputError: for a wrapper that turns the index into one without a seed.
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int | None = None
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError('the data set is empty')
        check_seeds_pass(dataset)
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.skipped = 0

    def __iter__(self) -> Iterator[SeededIndex]:
        position = self.skipped * self.world_size + self.rank
        epoch, order = -1, None
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                order = self._order(epoch)
            yield SeededIndex(
                order[position % self.size], stable_seed(self.seed, position)
            )
            position += self.world_size

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        return self._shuffled(f'epoch {epoch}', self.size)

    def _shuffled(self, name: str, count: int) -> list[int]:
        """An order of ``count`` things that depends on the seed and its name alone."""
        generator = torch.Generator()
        generator.manual_seed(stable_seed(self.seed, name))
        return torch.randperm(count, generator=generator).tolist()

    def skip(self, num_samples: int) -> None:
        """Begin after ``num_samples`` samples of this rank, counted from the start.

        The maintained mmengine calls this when a run is resumed; upstream draws the
        skipped batches again, which ends at the same place.
        """
        if num_samples < 0:
            raise ValueError(f'num_samples must not be negative, got {num_samples}')
        self.skipped = num_samples

    def __len__(self) -> int:
        """Length of the data set; the stream itself has no end."""
        return self.size


@DATA_SAMPLERS.register_module()
class BalancedStreamSampler(SeededStreamSampler):
    """Endless stream in which photos with and without objects keep a proportion.

    The stream falls into short blocks of exactly that proportion, in random order
    inside: of 0.5 each pair of positions has one of both. Photos of either kind come
    in epochs of their own, each once. Like the plain stream it depends on seed and
    position alone, and W ranks see together what one process sees.

    Args:
        dataset: with ``get_data_info(i)['image_label']``, wrapped or not.
        pos_fraction: share of the photos with an object, between 0 and 1; rounded to
            a fraction of at most 32.
        seed: the same on all ranks; None draws one and shares it.

    Raises:
        ValueError: for a share that leaves one kind out.
        InputError: if the data set has photos of one kind only.
    """

    def __init__(
        self, dataset: Sized, pos_fraction: float = 0.5, seed: int | None = None
    ) -> None:
        super().__init__(dataset, shuffle=True, seed=seed)
        share = Fraction(pos_fraction).limit_denominator(32)
        if not 0 < share < 1:
            raise ValueError(
                f'pos_fraction must lie between 0 and 1, got {pos_fraction}'
            )
        self.block = share.denominator
        self.positives = share.numerator
        shown = [
            any(dataset.get_data_info(i)['image_label'] > 0) for i in range(self.size)
        ]
        self.parts = {
            kind: [i for i, there in enumerate(shown) if there == kind]
            for kind in (True, False)
        }
        for kind, part in self.parts.items():
            if not part:
                raise InputError(
                    f'no photo of the data set is {"with" if kind else "without"} an '
                    'object, so that batches cannot be balanced; add such photos '
                    f'({tool("prepare_data")} crops cuts some out) or take '
                    'mmwsss.SeededStreamSampler'
                )

    def __iter__(self) -> Iterator[SeededIndex]:
        position = self.skipped * self.world_size + self.rank
        orders = {}
        while True:
            positive, number = self._turn(position)
            part = self.parts[positive]
            epoch, place = divmod(number, len(part))
            if orders.get(positive, (None,))[0] != epoch:
                name = f'{"with" if positive else "without"} objects, epoch {epoch}'
                orders[positive] = epoch, self._shuffled(name, len(part))
            index = part[orders[positive][1][place]]
            yield SeededIndex(index, stable_seed(self.seed, position))
            position += self.world_size

    def _turn(self, position: int) -> tuple[bool, int]:
        """Whether a position's photo has objects, and its number among such photos."""
        block, place = divmod(position, self.block)
        place = self._shuffled(f'block {block}', self.block)[place]
        if place < self.positives:
            return True, block * self.positives + place
        negatives = self.block - self.positives
        return False, block * negatives + place - self.positives


@DATA_SAMPLERS.register_module()
class WeightedStreamSampler(SeededStreamSampler):
    """Endless stream in which photos come as often as their weights say.

    An epoch has as many positions as the data set has photos. A photo of weight w
    comes w * photos / (sum of weights) times in it, rounded up or down by chance
    (systematic sampling), so that equal weights give each photo once. With weights of
    ``tools/find_shortcuts.py`` it is the second stage of "Just Train Twice" (Liu et
    al., ICML 2021): photos that a first classifier gets wrong come more often. Like
    the plain stream it depends on seed and position alone.

    Args:
        dataset: with ``get_data_info(i)['img_id']``, wrapped or not.
        weights: JSON, see ``datasets/photo_weights.py``; photos that the data set does
            not have may be in it too.
        seed: the same on all ranks; None draws one and shares it.

    Raises:
        InputError: if a photo has no weight, or all weights are 0.
    """

    def __init__(self, dataset: Sized, weights: str, seed: int | None = None) -> None:
        super().__init__(dataset, shuffle=True, seed=seed)
        known = load_photo_weights(weights)
        ids = [dataset.get_data_info(i)['img_id'] for i in range(self.size)]
        missing = [image_id for image_id in ids if image_id not in known]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(ids)} photos have no weight in {weights}, the '
                f'first is {missing[0]}; {HOW_TO_MAKE}'
            )
        sums = np.cumsum([known[image_id] for image_id in ids])
        if sums[-1] == 0:
            raise InputError(f'all weights of the photos are 0 in {weights}')
        # Where the share of each photo ends, but for the last one.
        self.borders = sums[:-1] / sums[-1]

    def _order(self, epoch: int) -> list[int]:
        offset = stable_seed(self.seed, f'offset of epoch {epoch}') / 2**63
        places = (np.arange(self.size) + offset) / self.size
        drawn = np.searchsorted(self.borders, places, side='right')
        return [int(drawn[i]) for i in super()._order(epoch)]


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, equal in every process and version."""
    text = '/'.join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big') >> 1


def check_seeds_pass(dataset: object) -> None:
    """Refuse a data set wrapper that loses the seed of a SeededIndex.

    Such a run would look fine, but its augmentation would depend on the number of
    workers and on interruptions.
    """
    for wrapper in _wrappers(dataset):
        found = wrapper._get_ori_dataset_idx(SeededIndex(len(wrapper) - 1, 0))
        index = found[-1] if isinstance(found, tuple) else found
        if not isinstance(index, SeededIndex):
            name = type(wrapper).__name__
            better = KEEPS_SEEDS.get(name, 'RepeatDataset or ConcatDataset')
            raise InputError(
                f'the data set wrapper {name} loses the seed of the index, so that '
                f'augmentation would not be the same after a resume; use {better} '
                'instead'
            )


def _wrappers(dataset: object) -> Iterator:
    """The wrappers of MMEngine's kind around a data set, from the outside inwards."""
    if hasattr(dataset, '_get_ori_dataset_idx'):
        yield dataset
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for part in inner:
        if part is not None:
            yield from _wrappers(part)
