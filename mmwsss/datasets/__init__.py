"""Data sets, samplers and transforms; importing this package registers them."""

from mmwsss.compat import check_mm_packages

check_mm_packages()

from .cam_store import CAMStore, LoadCAMs, PackCAMs, StoredCAMs  # noqa: E402
from .cam_stores import LoadCAMStores, PackCAMStores  # noqa: E402
from .image_label_dataset import ImageLabelDataset  # noqa: E402
from .image_labels import (  # noqa: E402
    ImageLabels,
    load_image_labels,
    save_image_labels,
)
from .sampler import SeededIndex, SeededStreamSampler  # noqa: E402
from .stored_labels import LoadPseudoLabels, PackPseudoLabels  # noqa: E402
from .transforms import (  # noqa: E402
    LoadMask,
    LoadPhoto,
    PackWSSSInputs,
    RandomCropWithBox,
)
from .wrappers import ClassBalancedDataset  # noqa: E402

__all__ = [
    'CAMStore',
    'ClassBalancedDataset',
    'ImageLabelDataset',
    'ImageLabels',
    'LoadCAMStores',
    'LoadCAMs',
    'LoadMask',
    'LoadPhoto',
    'LoadPseudoLabels',
    'PackCAMStores',
    'PackCAMs',
    'PackPseudoLabels',
    'PackWSSSInputs',
    'RandomCropWithBox',
    'SeededIndex',
    'SeededStreamSampler',
    'StoredCAMs',
    'load_image_labels',
    'save_image_labels',
]
