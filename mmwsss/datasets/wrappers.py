"""Data set wrappers that keep the seed of a SeededIndex.

MMEngine's RepeatDataset and ConcatDataset keep it by themselves, since they find the
photo by arithmetic; what looks it up in a list has to be told.
"""

from mmengine.dataset import ClassBalancedDataset as _ClassBalancedDataset

from mmwsss.registry import DATASETS

from .sampler import SeededIndex


@DATASETS.register_module()
class ClassBalancedDataset(_ClassBalancedDataset):
    """MMEngine's, which repeats photos of rare classes (Gupta et al., CVPR 2019).

    Args:
        dataset: the data set or its config.
        oversample_thr: a class in a smaller share of the photos than this is rare.
        lazy_init: build the list later.
    """

    def _get_ori_dataset_idx(self, idx: int) -> int:
        found = super()._get_ori_dataset_idx(idx)
        return SeededIndex(found, idx.seed) if isinstance(idx, SeededIndex) else found
