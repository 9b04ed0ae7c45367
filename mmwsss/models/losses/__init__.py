"""Registered losses; each counts the batch of all processes together."""

from .affinity import AffinityLoss
from .boundary import BoundaryLoss, PairwiseEnergyLoss
from .cross_view import CrossViewLoss
from .knowledge_transfer import KnowledgeTransferLoss
from .reduce import all_reduce_sums
from .segmentation import BalancedCrossEntropyLoss, PresentDiceLoss
from .teacher import TeacherLoss
from .video_mil import VideoMIL

__all__ = [
    'AffinityLoss',
    'BalancedCrossEntropyLoss',
    'BoundaryLoss',
    'CrossViewLoss',
    'KnowledgeTransferLoss',
    'PairwiseEnergyLoss',
    'PresentDiceLoss',
    'TeacherLoss',
    'VideoMIL',
    'all_reduce_sums',
]
