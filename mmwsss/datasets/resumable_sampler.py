"""Any data set as a stream of samples that depends on seed and position alone.

For training sets that do not take seeds from the index, such as MMSegmentation's own:
``SeededDataset`` around the set, ``ResumableSampler`` instead of ``InfiniteSampler``.
"""

import random

import numpy as np
import torch
from mmengine.registry import DATASETS as MM_DATASETS
from torch.utils.data import Dataset, get_worker_info

from mmwsss.errors import InputError
from mmwsss.registry import DATA_SAMPLERS, DATASETS

from .sampler import SeededStreamSampler, seed_augmentation


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose augmentation begins at the seed of the index.

    Args:
        dataset: Config of the data set, or the data set.
    """

    def __init__(self, *, dataset: dict | Dataset) -> None:
        if isinstance(dataset, dict):
            dataset = MM_DATASETS.build(dataset)
        self.dataset = dataset

    @property
    def metainfo(self) -> dict:
        """Classes and palette of the data set."""
        return getattr(self.dataset, 'metainfo', {})

    def full_init(self) -> None:
        """Load its annotations."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """What it knows about a sample."""
        return self.dataset.get_data_info(int(index))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            seed_augmentation(index)
            return self.dataset[int(index)]
        # Dropout draws from the same numbers as a photo that is loaded here.
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                seed_augmentation(index)
                return self.dataset[int(index)]
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@DATA_SAMPLERS.register_module()
class ResumableSampler(SeededStreamSampler):
    """Endless stream over a ``SeededDataset``, which can begin at any position.

    Args:
        dataset: A SeededDataset; what is inside does not matter.
        shuffle: A new order in every epoch; otherwise the data set's own.
        seed: The same on all ranks; None draws one and shares it.

    Raises:
        InputError: For a data set that does not take the seeds.
    """

    def __init__(
        self, dataset: SeededDataset, shuffle: bool = True, seed: int | None = None
    ) -> None:
        if not isinstance(dataset, SeededDataset):
            raise InputError(
                f'ResumableSampler needs a data set that takes seeds; put the '
                f'{type(dataset).__name__} into dict(type="mmwsss.SeededDataset", '
                'dataset=...)'
            )
        # The wrappers inside do not see the index with the seed.
        super().__init__(range(len(dataset)), shuffle=shuffle, seed=seed)
