"""Data sets, samplers and transforms; importing this package registers them."""

from mmwsss.compat import check_mm_packages

check_mm_packages()

from .cam_store import CAMStore, LoadCAMs, PackCAMs, StoredCAMs  # noqa: E402
from .cam_stores import LoadCAMStores, PackCAMStores  # noqa: E402
from .clips import (  # noqa: E402
    ClipList,
    check_apart,
    extract_frames,
    load_clips,
    split_clips,
)
from .embedding_store import EmbeddingStore, Prompts  # noqa: E402
from .image_label_dataset import ImageLabelDataset  # noqa: E402
from .image_labels import (  # noqa: E402
    ImageLabels,
    load_image_labels,
    save_image_labels,
)
from .regions import PasteRegions  # noqa: E402
from .resumable_sampler import ResumableSampler, SeededDataset  # noqa: E402
from .sampler import (  # noqa: E402
    BalancedStreamSampler,
    SeededIndex,
    SeededStreamSampler,
    WeightedStreamSampler,
)
from .segment_store import SegmentStore  # noqa: E402
from .stored_labels import LoadPseudoLabels, PackPseudoLabels  # noqa: E402
from .transforms import (  # noqa: E402
    AllClasses,
    LoadDistractorMask,
    LoadMask,
    LoadPhoto,
    PackWSSSInputs,
    RandomCropWithBox,
    RemoveOverlay,
)
from .video import ClipStreamSampler, VideoClipDataset  # noqa: E402
from .wrappers import ClassBalancedDataset  # noqa: E402

__all__ = [
    'AllClasses',
    'BalancedStreamSampler',
    'CAMStore',
    'ClassBalancedDataset',
    'ClipList',
    'ClipStreamSampler',
    'EmbeddingStore',
    'ImageLabelDataset',
    'ImageLabels',
    'LoadCAMStores',
    'LoadCAMs',
    'LoadDistractorMask',
    'LoadMask',
    'LoadPhoto',
    'LoadPseudoLabels',
    'PackCAMStores',
    'PackCAMs',
    'PackPseudoLabels',
    'PackWSSSInputs',
    'PasteRegions',
    'Prompts',
    'RandomCropWithBox',
    'RemoveOverlay',
    'ResumableSampler',
    'SeededDataset',
    'SeededIndex',
    'SeededStreamSampler',
    'SegmentStore',
    'StoredCAMs',
    'VideoClipDataset',
    'WeightedStreamSampler',
    'check_apart',
    'extract_frames',
    'load_clips',
    'load_image_labels',
    'save_image_labels',
    'split_clips',
]
